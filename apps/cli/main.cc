// ultraflash: the command line program. Parses, calls the library, prints. No model knowledge.
#include <fcntl.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "common.h"
#include "exit_status.h"
#include "options.h"
#include "ultraflash/version.h"

namespace ultraflash::cli {
namespace {

// A program that was started with a standard stream closed would write its text into the first file
// that it opens.
void open_standard_streams() {
  for (const int fd : {0, 1, 2}) {
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) {
      // Standard output must still fail: its reader would miss what is written.
      const int opened = open("/dev/null", fd == 1 ? O_RDONLY : O_RDWR);
      if (opened != fd) return;
    }
  }
}

// One sentence instead of CLI11's two lines.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  const std::string program =
      chosen.empty() ? "ultraflash" : fmt::format("ultraflash {}", chosen.front()->get_name());
  const std::vector<std::string> rest = app.remaining(/*recurse=*/true);
  std::string what = error.what();
  if (!rest.empty() && chosen.empty()) {
    what = fmt::format("no command '{}'", rest.front().substr(0, 60));
  } else if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError) &&
             !rest.empty()) {
    const bool is_option = rest.front().starts_with("-");
    what = fmt::format(
        "{} '{}'", is_option ? "no option" : "an argument too many:", rest.front().substr(0, 60));
  } else if (chosen.empty()) {
    what = "no command given";
  } else if (what.find("At Most 1 required") != std::string::npos) {
    what = what.substr(0, what.find(':')) + ": given more than once";
  }
  for (char& c : what) c = c == '\n' ? ' ' : c;
  return fmt::format("{}; see '{} --help'", what, program);
}

int run(int argc, char** argv) {
  CLI::App app("Real-time, high-resolution, streaming video generation", "ultraflash");
  app.set_version_flag("--version", fmt::format("ultraflash {} ({})", version(), commit()),
                       "Print the version and exit");
  app.require_subcommand(1);
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.set_help_all_flag("--help-all", "Help of every command");
  app.formatter(std::make_shared<HelpFormatter>());
  app.footer(exit_status_help());
  bool verbose = false;
  bool quiet = false;
  app.add_flag("-v,--verbose", verbose, "Log everything on stderr");
  app.add_flag("-q,--quiet", quiet, "Only errors on stderr, no progress");
  app.fallthrough();

  Command command;
  add_generate(app, command);
  add_verify(app, command);
  add_bench(app, command);
  add_eval(app, command);
  add_inspect(app, command);
  add_convert(app, command);
  add_make_weights(app, command);
  add_list(app, command);
  add_doctor(app, command);
#if defined(UF_TRAIN)
  add_train(app, command);
#endif
  for (CLI::App* subcommand : app.get_subcommands(nullptr)) {
    subcommand->footer(
        "Also -v,--verbose and -q,--quiet; 'ultraflash --help' explains them and the exit "
        "statuses.");
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version print on stdout and succeed; everything else is a usage error.
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      app.exit(error);
      return 0;
    }
    return fail({StatusCode::kInvalidArgument, usage_error(app, error)});
  }
  init_logging(verbose, quiet);
  return command();
}

// What the standard library still holds must have arrived before the program may say "done".
int flush_output(int status) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  const int failed =
      fail({StatusCode::kIo, fmt::format("standard output: {}", std::strerror(errno))});
  return status == 0 ? failed : status;
}

}  // namespace
}  // namespace ultraflash::cli

int main(int argc, char** argv) {
  using namespace ultraflash;
  using namespace ultraflash::cli;
  // A reader that goes away and a limit on file sizes are errors of write(), not the program's end.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  open_standard_streams();
  int status = 0;
  try {
    status = run(argc, argv);
  } catch (const std::system_error& error) {
    // fmt reports a failed write to standard output so.
    return fail({StatusCode::kIo, fmt::format("standard output: {}", error.code().message())});
  } catch (const std::bad_alloc&) {
    return fail({StatusCode::kOutOfMemory, "out of memory"});
  } catch (const std::exception& error) {
    return fail({StatusCode::kInternal, error.what()});
  }
  return flush_output(status);
}
