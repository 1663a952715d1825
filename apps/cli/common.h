// What all subcommands share: failing, output, logging, progress.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "ultraflash/log.h"
#include "ultraflash/status.h"

namespace ultraflash::cli {

/// Prints the message on stderr, as one line, and returns the exit status of its code.
int fail(const Status& status);

/// Sets up stderr: warnings, errors and progress; with `verbose` everything, with `quiet` only
/// errors.
void init_logging(bool verbose, bool quiet);
/// A logger that writes there.
Logger stderr_logger();

/// True when stderr is a terminal, so that a bar may be drawn over itself.
bool stderr_is_terminal();

/// "1.4 GB", "36 MB", "512 B": decimal units.
std::string human_bytes(uint64_t bytes);
/// "1.42 B", "36 M": counts of parameters.
std::string human_count(int64_t count);

/// A progress bar on a terminal, plain lines otherwise. One line per unit of work, never on stdout.
class ProgressLine {
 public:
  ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine();

  /// `fraction` in [0, 1], or negative when the end is unknown. Plain lines come at most every two
  /// seconds.
  void update(double fraction, std::string_view text);
  /// Ends the bar's line.
  void finish();

 private:
  bool terminal_;
  bool open_ = false;
  double last_time_ = -1e9;
};

/// Adds a subcommand; `run` is called after a successful parse and returns the exit status.
using Command = std::function<int()>;
void add_generate(CLI::App& app, Command& chosen);
void add_verify(CLI::App& app, Command& chosen);
void add_bench(CLI::App& app, Command& chosen);
void add_eval(CLI::App& app, Command& chosen);
void add_inspect(CLI::App& app, Command& chosen);
void add_convert(CLI::App& app, Command& chosen);
void add_make_weights(CLI::App& app, Command& chosen);
void add_list(CLI::App& app, Command& chosen);
void add_doctor(CLI::App& app, Command& chosen);
/// Only in builds with the trainer (UF_TRAIN).
void add_train(CLI::App& app, Command& chosen);

}  // namespace ultraflash::cli
