// ultraflash: the command line program. Parses, calls the library, prints. No model knowledge.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>

#include "common.h"
#include "ultraflash/version.h"

int main(int argc, char** argv) {
  using namespace ultraflash;
  using namespace ultraflash::cli;
  // A reader that goes away is an error of write(), not the end of the program.
  std::signal(SIGPIPE, SIG_IGN);

  CLI::App app("Real-time, high-resolution, streaming video generation", "ultraflash");
  app.set_version_flag("--version", fmt::format("ultraflash {} ({})", version(), commit()));
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "Help of every subcommand");
  app.failure_message(CLI::FailureMessage::simple);
  app.get_formatter()->column_width(34);
  bool verbose = false;
  bool quiet = false;
  app.add_flag("-v,--verbose", verbose, "Log everything on stderr");
  app.add_flag("-q,--quiet", quiet, "Only errors on stderr");
  app.fallthrough();

  Command command;
  add_generate(app, command);
  add_verify(app, command);
  add_bench(app, command);
  add_inspect(app, command);
  add_convert(app, command);
  add_make_weights(app, command);
  add_list(app, command);
  add_doctor(app, command);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version print on stdout and succeed; everything else is a usage error.
    const bool wanted = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success);
    app.exit(error);
    return wanted ? 0 : status_code_info(StatusCode::kInvalidArgument).exit_status;
  }
  init_logging(verbose, quiet);
  try {
    return command();
  } catch (const std::exception& error) {
    return fail(Status(StatusCode::kInternal, error.what()));
  }
}
