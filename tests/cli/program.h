// Runs the built program as a user's shell would, and says what came of it.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ultraflash::cli_test {

struct Outcome {
  int status = -1;  // exit status; 256 + signal when a signal ended it
  bool timed_out = false;
  std::string out;
  std::string err;
};

struct ProgramRun {
  std::vector<std::string> arguments;
  std::map<std::string, std::string> environment;
  std::string folder;         // to run in; empty: the test's own
  std::string stdout_file;    // instead of a pipe that is read
  bool close_stdout = false;  // started without standard output
  bool leave_stdout = false;  // a pipe that nobody reads
  bool break_stdout = false;  // a pipe whose reader is gone
  int64_t largest_file = -1;  // RLIMIT_FSIZE in bytes
  double limit_s = 120.0;     // the sanitizers are slow; a hang is not
  /// Called again and again with what has come on stderr so far, and how many bytes wait on
  /// stdout.
  std::function<void(pid_t, const std::string& err, int waiting)> meanwhile;
};

Outcome run(const ProgramRun& what);
Outcome run(const std::vector<std::string>& arguments);

/// A folder of one test, with the small recipe as tiny.json in it.
class CliTest : public ::testing::Test {
 protected:
  CliTest();
  ~CliTest() override;
  [[nodiscard]] std::string file(const std::string& name) const {
    return (folder_ / name).string();
  }

  /// Arguments of a stream of the small recipe: 64x48, one CPU thread.
  [[nodiscard]] std::vector<std::string> generate(const std::vector<std::string>& more) const;
  /// Writes a recipe that differs from the small one by a JSON merge patch; its path.
  std::string recipe_file(const std::string& name, const std::string& patch) const;

  std::filesystem::path folder_;
};

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);
/// JSON that the program printed; null and a failed test when it is none.
nlohmann::json json_of(const Outcome& outcome);
/// Names of what lies in a folder, sorted.
std::vector<std::string> names_in(const std::string& folder);
/// Frames that a reader finds in a video file, and its metadata.
struct Video {
  int64_t frames = 0;
  int64_t width = 0;
  int64_t height = 0;
  std::map<std::string, std::string> metadata;
  std::vector<uint64_t> hashes;  // of the pixels of each frame
};
Video read_video(const std::string& path);

bool has_ffmpeg();
bool has_png();

/// The program ended with `status`, printed nothing on stdout, and one line on stderr that says
/// `part`.
::testing::AssertionResult is_sentence(const Outcome& outcome, int status, const std::string& part);
/// Exit status 0, nothing on stderr that is a warning or an error.
::testing::AssertionResult is_success(const Outcome& outcome);

}  // namespace ultraflash::cli_test

#define UF_NEEDS_FFMPEG() \
  if (!cli_test::has_ffmpeg()) GTEST_SKIP() << "NOT COVERED: this build has no FFmpeg"
#define UF_NEEDS_PNG() \
  if (!cli_test::has_png()) GTEST_SKIP() << "NOT COVERED: this build has no libpng"
