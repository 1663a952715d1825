#include "cli/program.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "media/frame_sink.h"
#include "media/image.h"
#include "media/video_reader.h"
#include "stream/tiny_recipe.h"

namespace ultraflash::cli_test {
namespace {

using Clock = std::chrono::steady_clock;

std::string program() {
  const char* path = std::getenv("UF_PROGRAM");
  if (path == nullptr) throw std::runtime_error("UF_PROGRAM does not name the program");
  return path;
}

std::string current_folder;

[[noreturn]] void become_program(const std::string& path, const ProgramRun& what, int out,
                                 int err) noexcept {
  if (what.close_stdout) {
    ::close(STDOUT_FILENO);
  } else if (!what.stdout_file.empty()) {
    const int fd = ::open(what.stdout_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ::dup2(fd, STDOUT_FILENO) < 0) ::_exit(120);
    ::close(fd);
  } else {
    ::dup2(out, STDOUT_FILENO);
  }
  ::dup2(err, STDERR_FILENO);
  ::close(out);
  ::close(err);
  const std::string& folder = what.folder.empty() ? current_folder : what.folder;
  if (!folder.empty() && ::chdir(folder.c_str()) != 0) ::_exit(121);
  if (what.largest_file >= 0) {
    const rlimit limit{static_cast<rlim_t>(what.largest_file),
                       static_cast<rlim_t>(what.largest_file)};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(122);
  }
  for (const char* name : {"UF_RECIPE", "UF_WEIGHTS", "UF_DEVICE", "UF_DTYPE", "UF_THREADS"}) {
    ::unsetenv(name);
  }
  for (const auto& [name, value] : what.environment) {
    ::setenv(name.c_str(), value.c_str(), /*overwrite=*/1);
  }
  std::vector<std::string> words = what.arguments;
  words.insert(words.begin(), path);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execv(path.c_str(), argv.data());
  ::_exit(123);
}

// False when the other end has closed.
bool read_some(int fd, std::string& into) {
  std::array<char, 65536> piece;
  const ssize_t got = ::read(fd, piece.data(), piece.size());
  if (got > 0) into.append(piece.data(), static_cast<size_t>(got));
  return got > 0;
}

}  // namespace

Outcome run(const ProgramRun& what) {
  // Here, not in the child: thrown there, it would start the rest of the tests once more.
  const std::string path = program();
  std::array<int, 2> out{};
  std::array<int, 2> err{};
  if (::pipe2(out.data(), O_CLOEXEC) != 0 || ::pipe2(err.data(), O_CLOEXEC) != 0) std::abort();
  const pid_t child = ::fork();
  if (child == 0) become_program(path, what, out[1], err[1]);
  ::close(out[1]);
  ::close(err[1]);
  if (what.break_stdout) ::close(out[0]);
  bool out_open = !what.break_stdout && !what.leave_stdout;
  bool err_open = true;
  Outcome outcome;
  const Clock::time_point begin = Clock::now();
  while (out_open || err_open) {
    std::array<pollfd, 2> watched = {
        {{out_open ? out[0] : -1, POLLIN, 0}, {err_open ? err[0] : -1, POLLIN, 0}}};
    ::poll(watched.data(), watched.size(), 20);
    if (watched[0].revents != 0) out_open = read_some(out[0], outcome.out);
    if (watched[1].revents != 0) err_open = read_some(err[0], outcome.err);
    if (what.meanwhile) {
      int waiting = 0;
      if (!what.break_stdout) ::ioctl(out[0], FIONREAD, &waiting);
      what.meanwhile(child, outcome.err, waiting);
    }
    if (std::chrono::duration<double>(Clock::now() - begin).count() > what.limit_s) {
      outcome.timed_out = true;
      ::kill(child, SIGKILL);
      break;
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (!what.break_stdout) ::close(out[0]);
  ::close(err[0]);
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
  return outcome;
}

Outcome run(const std::vector<std::string>& arguments) {
  ProgramRun what;
  what.arguments = arguments;
  return run(what);
}

CliTest::CliTest() {
  std::string pattern = (std::filesystem::temp_directory_path() / "uf_cli_XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) std::abort();
  folder_ = pattern;
  current_folder = pattern;
  recipe_file("tiny.json", "{}");
}

CliTest::~CliTest() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::vector<std::string> CliTest::generate(const std::vector<std::string>& more) const {
  std::vector<std::string> all = {"-q",      "generate", "--recipe",  file("tiny.json"),
                                  "--scale", "1",        "--threads", "1"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string CliTest::recipe_file(const std::string& name, const std::string& patch) const {
  write_file(file(name), testing::tiny_recipe(patch).to_json());
  return file(name);
}

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream stream(path, std::ios::binary);
  stream << bytes;
  ASSERT_TRUE(stream.flush()) << path;
}

nlohmann::json json_of(const Outcome& outcome) {
  nlohmann::json json = nlohmann::json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << outcome.out << outcome.err;
  return json.is_discarded() ? nlohmann::json() : json;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

Video read_video(const std::string& path) {
  Video video;
  Result<VideoReader> reader = VideoReader::open(path);
  EXPECT_TRUE(reader.ok()) << reader.status().message();
  if (!reader.ok()) return video;
  video.width = reader->info().format.width;
  video.height = reader->info().format.height;
  for (const auto& [key, value] : reader->info().metadata) video.metadata[key] = value;
  for (;;) {
    const Result<std::optional<VideoFrame>> frame = reader->next();
    EXPECT_TRUE(frame.ok()) << frame.status().message();
    if (!frame.ok() || !frame->has_value()) return video;
    ++video.frames;
    uint64_t hash = 14695981039346656037ULL;  // FNV-1a
    for (int64_t y = 0; y < video.height; ++y) {
      const uint8_t* row = (*frame)->rgb.row(y);
      for (int64_t i = 0; i < 3 * video.width; ++i) hash = (hash ^ row[i]) * 1099511628211ULL;
    }
    video.hashes.push_back(hash);
  }
}

bool has_ffmpeg() { return !available_video_encoders().empty(); }

bool has_png() {
  constexpr std::array<uint8_t, 3> kPixel{};
  return encode_png(RgbFrame::contiguous(kPixel.data(), 1, 1)).ok();
}

::testing::AssertionResult is_sentence(const Outcome& outcome, int status,
                                       const std::string& part) {
  const auto wrong = [&](const std::string& why) {
    return ::testing::AssertionFailure()
           << why << "; exit status " << outcome.status << ", stdout '"
           << outcome.out.substr(0, 400) << "', stderr '" << outcome.err.substr(0, 4000) << "'";
  };
  if (outcome.timed_out) return wrong("it did not end");
  if (outcome.status != status) return wrong("the exit status is not " + std::to_string(status));
  if (!outcome.out.empty()) return wrong("something stands on stdout");
  if (!outcome.err.starts_with("ultraflash: ")) return wrong("no sentence of the program's own");
  if (std::count(outcome.err.begin(), outcome.err.end(), '\n') != 1 || outcome.err.back() != '\n') {
    return wrong("not exactly one line");
  }
  if (outcome.err.size() > 1200) return wrong("too long to be read");
  if (outcome.err.find(part) == std::string::npos) return wrong("it does not say '" + part + "'");
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult is_success(const Outcome& outcome) {
  if (!outcome.timed_out && outcome.status == 0 &&
      outcome.err.find("ultraflash: ") == std::string::npos) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure()
         << (outcome.timed_out ? "it did not end; " : "") << "exit status " << outcome.status
         << ", stdout '" << outcome.out.substr(0, 400) << "', stderr '"
         << outcome.err.substr(0, 4000) << "'";
}

}  // namespace ultraflash::cli_test
