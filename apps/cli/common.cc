#include "common.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>

namespace ultraflash::cli {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

// Nothing that happens to stderr may end the work; fmt would throw.
void print_error_line(const std::string& line) {
  std::fputs((line + "\n").c_str(), stderr);
  std::fflush(stderr);
}

bool quiet_progress = false;

}  // namespace

int fail(const Status& status) {
  std::string line = status.message();
  // Parts of it may come from a file or a file's name.
  for (char& c : line) c = static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  print_error_line("ultraflash: " + line);
  return status_code_info(status.code()).exit_status;
}

void init_logging(bool verbose, bool quiet) {
  quiet_progress = quiet;
  auto logger = spdlog::stderr_color_mt("ultraflash");
  logger->set_pattern("%n: %^%l%$: %v");
  logger->set_level(verbose ? spdlog::level::debug
                            : (quiet ? spdlog::level::err : spdlog::level::warn));
  spdlog::set_default_logger(std::move(logger));
}

Logger stderr_logger() {
  return Logger(
      [](LogLevel level, std::string_view line) { spdlog::log(spdlog_level(level), "{}", line); });
}

bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

std::string human_bytes(uint64_t bytes) {
  static constexpr std::array kUnits = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000.0 && unit + 1 < kUnits.size()) {
    value /= 1000.0;
    ++unit;
  }
  return unit == 0 || value >= 100.0 ? fmt::format("{:.0f} {}", value, kUnits[unit])
                                     : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string human_count(int64_t count) {
  const auto value = static_cast<double>(count);
  if (value >= 1e9) return fmt::format("{:.2f} B", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.1f} M", value / 1e6);
  if (value >= 1e3) return fmt::format("{:.0f} k", value / 1e3);
  return fmt::format("{}", count);
}

ProgressLine::ProgressLine() : terminal_(stderr_is_terminal()) {}

ProgressLine::~ProgressLine() { finish(); }

void ProgressLine::update(double fraction, std::string_view text) {
  if (quiet_progress) return;
  const double time = now();
  const double interval = terminal_ ? 0.05 : 2.0;
  if (time - last_time_ < interval && fraction < 1.0) return;
  last_time_ = time;
  if (!terminal_) {
    print_error_line(std::string(text));
    return;
  }
  constexpr int kWidth = 28;
  std::string bar;
  if (fraction >= 0.0) {
    const int filled = static_cast<int>(std::lround(std::min(fraction, 1.0) * kWidth));
    bar = fmt::format("[{:=<{}}{:<{}}] {:3.0f} %  ", "", filled, "", kWidth - filled,
                      100.0 * std::min(fraction, 1.0));
  }
  std::fputs(fmt::format("\r\033[K{}{}", bar, text).c_str(), stderr);
  std::fflush(stderr);
  open_ = true;
}

void ProgressLine::finish() {
  if (open_) print_error_line("");
  open_ = false;
}

}  // namespace ultraflash::cli
