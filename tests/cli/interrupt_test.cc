// Ctrl-C and SIGTERM: once ends with a whole file, twice at once.
#include <csignal>

#include "cli/program.h"

namespace ultraflash::cli_test {
namespace {

class InterruptTest : public CliTest {
 protected:
  // Sends `signal` when `said` has come on stderr.
  static std::function<void(pid_t, const std::string&, int)> after(const std::string& said,
                                                                   int signal) {
    return [=, sent = 0](pid_t child, const std::string& err, int) mutable {
      if (sent == 0 && err.find(said) != std::string::npos) {
        ::kill(child, signal);
        sent = 1;
      }
    };
  }
  // Not quiet: its progress says when frames were made.
  [[nodiscard]] std::vector<std::string> endless(const std::string& out) const {
    std::vector<std::string> arguments = generate({"-p", "a", "--endless", "-o", out});
    arguments.erase(arguments.begin());
    return arguments;
  }
};

TEST_F(InterruptTest, OnceEndsWithAPlayableFile) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string name = has_ffmpeg() ? "a.mp4" : "a.y4m";
    write_file(file(name), "an earlier video");
    ProgramRun what;
    what.arguments = endless(name);
    what.meanwhile = after(" s of video)", signal);
    const Outcome outcome = run(what);
    EXPECT_FALSE(outcome.timed_out);
    EXPECT_EQ(outcome.status, 8) << outcome.err;
    EXPECT_NE(outcome.err.find("finishing the current chunk"), std::string::npos) << outcome.err;
    const Video video = read_video(file(name));
    EXPECT_GE(video.frames, 9);
    EXPECT_EQ((video.frames - 9) % 12, 0) << "whole chunks: " << video.frames;
    EXPECT_NE(outcome.out.find(": " + std::to_string(video.frames) + " frames"), std::string::npos)
        << outcome.out;
    EXPECT_EQ(names_in(folder_), (std::vector<std::string>{name, "tiny.json"}));
  }
}

// Nobody reads the pipe, so the chunk in hand never ends and only the second signal can help.
TEST_F(InterruptTest, TwiceStopsAtOnce) {
  ProgramRun what;
  what.arguments = endless("-");
  what.leave_stdout = true;
  what.meanwhile = [sent = 0](pid_t child, const std::string& err, int waiting) mutable {
    // The first 9 frames of 9 kB do not fit into a pipe, so what began to come has to get stuck.
    if (sent == 0 && waiting > 0) {
      ::kill(child, SIGINT);
      sent = 1;
    } else if (sent == 1 && err.find("again to stop at once") != std::string::npos) {
      ::kill(child, SIGINT);
      sent = 2;
    }
  };
  what.limit_s = 60.0;
  const Outcome outcome = run(what);
  EXPECT_FALSE(outcome.timed_out);
  EXPECT_EQ(outcome.status, 130) << outcome.err;
}

// Of several videos the one being made is finished, and no other is begun.
TEST_F(InterruptTest, OtherVideosAreNotBegun) {
  write_file(file("prompts.txt"), "a\nb\n");
  std::vector<std::string> arguments =
      generate({"--prompt-file", "prompts.txt", "--endless", "-o", "v.y4m"});
  arguments.erase(arguments.begin());
  ProgramRun what;
  what.arguments = arguments;
  what.meanwhile = after(" s of video)", SIGINT);
  EXPECT_EQ(run(what).status, 8);
  EXPECT_EQ(names_in(folder_),
            (std::vector<std::string>{"prompts.txt", "tiny.json", "v-0000.y4m"}));
  EXPECT_GE(read_video(file("v-0000.y4m")).frames, 9);
}

}  // namespace
}  // namespace ultraflash::cli_test
