// ultraflash generate: what it refuses, and what is left behind when writing fails.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "cli/program.h"

namespace ultraflash::cli_test {
namespace {

class GenerateErrorsTest : public CliTest {
 protected:
  ::testing::AssertionResult refuses(const std::vector<std::string>& arguments, int status,
                                     const std::string& part) {
    const ::testing::AssertionResult result = is_sentence(run(generate(arguments)), status, part);
    if (!result) return result;
    // Nothing was begun.
    for (const std::string& name : names_in(folder_)) {
      if (name.ends_with(".part")) return ::testing::AssertionFailure() << name << " stays behind";
    }
    return ::testing::AssertionSuccess();
  }
};

TEST_F(GenerateErrorsTest, Prompts) {
  EXPECT_TRUE(refuses({"-o", "a.y4m"}, 2, "no prompt"));
  EXPECT_TRUE(refuses({"-p", ""}, 2, "the prompt is empty"));
  EXPECT_TRUE(refuses({"-p", " \t\n "}, 2, "the prompt is empty"));
  EXPECT_TRUE(refuses({"-p", "a\xFF"}, 2, "not UTF-8"));
  EXPECT_TRUE(refuses({"-p", "a", "--prompt-file", "x"}, 2, "not several"));
  EXPECT_TRUE(refuses({"--prompt-file", "none.txt"}, 3, "none.txt"));
  EXPECT_TRUE(refuses({"--prompt-file", "."}, 3, "no such file of prompts"));
  write_file(file("empty.txt"), "\n \n");
  EXPECT_TRUE(refuses({"--prompt-file", "empty.txt"}, 2, "no prompt in it"));
  write_file(file("bad.txt"), "good\n\nbad \xC3\n");
  EXPECT_TRUE(refuses({"--prompt-file", "bad.txt", "-o", "a.y4m"}, 2, "bad.txt, line 3"));
  write_file(file("long.txt"), std::string(1'000'001, 'a') + "\n");
  EXPECT_TRUE(refuses({"--prompt-file", "long.txt"}, 2, "1000001 bytes"));
  EXPECT_TRUE(refuses({"-p", "a", "--prompt-at", "x"}, 2, "CHUNK=TEXT"));
  EXPECT_TRUE(refuses({"-p", "a", "--prompt-at", "0=b"}, 2, "from 1 on"));
  EXPECT_TRUE(refuses({"-p", "a", "--prompt-at", "=b"}, 2, "CHUNK=TEXT"));
  EXPECT_TRUE(refuses({"-p", "a", "--prompt-at", "2="}, 2, "the prompt is empty"));
  EXPECT_TRUE(refuses({"-p", "a", "--prompt-at", "2=\xFF"}, 2, "not UTF-8"));
  EXPECT_TRUE(refuses({"--text-embedding", "none.safetensors", "--random-weights"}, 3, "none"));
  EXPECT_TRUE(refuses({"-p", "a", "--text-embedding", "b"}, 2, "not several"));
}

TEST_F(GenerateErrorsTest, Numbers) {
  const char* huge = "99999999999999999999999999";
  for (const char* option : {"--frames", "--chunks", "--seed", "--seconds", "--threads", "--scale",
                             "--window", "--crf", "--bitrate", "--weights-seed", "--dcm-steps"}) {
    EXPECT_TRUE(refuses({"-p", "a", option, "-2"}, 2, std::string(option) + ": '-2' is not a"));
    EXPECT_TRUE(refuses({"-p", "a", option, huge}, 2, option));
    EXPECT_TRUE(refuses({"-p", "a", option, "0x10"}, 2, option));
    EXPECT_TRUE(refuses({"-p", "a", option, "nan"}, 2, option));
    EXPECT_TRUE(refuses({"-p", "a", option, "5 "}, 2, option));
    EXPECT_TRUE(refuses({"-p", "a", option, ""}, 2, option));
    EXPECT_TRUE(refuses({"-p", "a", option}, 2, option));
  }
  EXPECT_TRUE(refuses({"-p", "a", "--frames", "0"}, 2, "--frames: '0'"));
  EXPECT_TRUE(refuses({"-p", "a", "--chunks", "0"}, 2, "--chunks: '0'"));
  EXPECT_TRUE(refuses({"-p", "a", "--seconds", "0"}, 2, "less than one frame"));
  EXPECT_TRUE(refuses({"-p", "a", "--seconds", "0.01"}, 2, "less than one frame"));
  EXPECT_TRUE(refuses({"-p", "a", "--seconds", "inf"}, 2, "--seconds"));
  EXPECT_TRUE(refuses({"-p", "a", "--seconds", "5", "--frames", "5"}, 2, "not several"));
  EXPECT_TRUE(refuses({"-p", "a", "--chunks", "5", "--endless"}, 2, "not several"));
  EXPECT_TRUE(
      refuses({"-p", "a", "--seed", "1", "--seed", "2"}, 2, "--seed: given more than once"));
  EXPECT_TRUE(refuses({"-p", "a", "--memory-limit", "8X"}, 2, "--memory-limit: '8X'"));
  EXPECT_TRUE(refuses({"-p", "a", "--memory-limit", "-1"}, 2, "--memory-limit"));
  EXPECT_TRUE(
      refuses({"-p", "a", "--memory-limit", "1k", "-o", "a.y4m"}, 6, "--memory-limit allows"));
}

TEST_F(GenerateErrorsTest, RecipesAndDevices) {
  const auto with_recipe = [&](const std::string& recipe) {
    return run({"-q", "generate", "-p", "a", "-o", "a.y4m", "-r", recipe});
  };
  EXPECT_TRUE(is_sentence(with_recipe("nothing"), 3, "no recipe 'nothing'"));
  EXPECT_TRUE(is_sentence(with_recipe("./nothing.json"), 3, "nothing.json"));
  // 8 pixels a latent pixel, and the networks read 2x2 of those at once.
  for (const char* height : {"5", "0", "-6", "1000000000"}) {
    write_file(
        file("odd.json"),
        std::string(R"({"base": "pocket", "generator": {"latent_height": )") + height + "}}");
    const Outcome outcome = with_recipe("./odd.json");
    EXPECT_TRUE(
        is_sentence(outcome, 2, height == std::string("5") ? "multiples of 16" : "latent_height"))
        << height;
  }
  write_file(file("odd.json"), R"({"base": "pocket", "generater": {}})");
  EXPECT_TRUE(is_sentence(with_recipe("./odd.json"), 4, "generater"));
  write_file(file("odd.json"), R"({"base": )");
  EXPECT_TRUE(is_sentence(with_recipe("./odd.json"), 4, "odd.json"));
  EXPECT_TRUE(refuses({"-p", "a", "--device", "quantum"}, 2, "quantum"));
  EXPECT_TRUE(refuses({"-p", "a", "--dtype", "f8"}, 2, "--dtype: 'f8' is none of"));
  EXPECT_TRUE(refuses({"-p", "a", "--trim", "no"}, 2, "--trim: 'no' is none of"));
  EXPECT_TRUE(refuses({"-p", "a", "-r", "pocket", "-o", "b.y4m"}, 2, "--recipe: given more"));
  const Outcome cuda = run(generate({"-p", "a", "--device", "cuda:99", "-o", "a.y4m"}));
  EXPECT_TRUE(is_sentence(cuda, cuda.status, "CUDA"));
  EXPECT_TRUE(cuda.status == 3 || cuda.status == 5) << cuda.status;
}

TEST_F(GenerateErrorsTest, Outputs) {
  EXPECT_TRUE(refuses({"-p", "a", "-o", "none/a.y4m"}, 3, "no folder 'none'"));
  EXPECT_TRUE(refuses({"-p", "a", "-o", "a.y4m", "--save-lr", "none/b.y4m"}, 3, "no folder"));
  EXPECT_TRUE(refuses({"-p", "a", "-o", "a.xyz", "--frames", "1"}, 2, "the ending"));
  EXPECT_TRUE(refuses({"-p", "a", "-o", "a.y4m", "--crf", "3", "--frames", "1"}, 2, "crf"));
  EXPECT_TRUE(refuses({"-p", "a", "-o", "-", "--json"}, 2, "--json"));
  EXPECT_TRUE(refuses({"-p", "a", "-o", "a.y4m", "--save-lr", "./a.y4m"}, 2, "both name"));
  EXPECT_TRUE(refuses({"-p", "a", "-o", "a.y4m", "--save-lr", "-"}, 2, "--save-lr"));
  write_file(file("prompts.txt"), "a\nb\n");
  EXPECT_TRUE(refuses({"--prompt-file", "prompts.txt", "-o", "-"}, 2, "several videos"));
  std::filesystem::create_directory(file("folder.y4m"));
  EXPECT_TRUE(refuses({"-p", "a", "-o", "folder.y4m", "--frames", "1"}, 2, "is a folder"));
  if (::geteuid() != 0) {
    std::filesystem::create_directory(file("locked"));
    ASSERT_EQ(::chmod(file("locked").c_str(), 0555), 0);
    EXPECT_TRUE(refuses({"-p", "a", "-o", "locked/a.y4m", "--frames", "1"}, 11, "Permission"));
  }
  EXPECT_TRUE(refuses({"-p", "a", "-o", "/proc/a.y4m", "--frames", "1"}, 11, "/proc/a.y4m") ||
              refuses({"-p", "a", "-o", "/proc/a.y4m", "--frames", "1"}, 3, "/proc/a.y4m"));
  if (!has_ffmpeg()) {
    EXPECT_TRUE(refuses({"-p", "a", "-o", "a.mp4", "--frames", "1"}, 5, "FFmpeg"));
  }
  if (!has_png()) {
    EXPECT_TRUE(refuses({"-p", "a", "-o", "p/", "--frames", "1"}, 5, "png"));
  }
}

// A disk that fills up after 20 kB: two frames of 9 kB and a bit.
TEST_F(GenerateErrorsTest, AFullDiskLeavesWhatWasCompleteBefore) {
  write_file(file("a.y4m"), "an earlier video");
  ProgramRun full;
  full.arguments = generate({"-p", "a", "--frames", "9", "-o", "a.y4m"});
  full.largest_file = 20'000;
  EXPECT_TRUE(is_sentence(run(full), 11, "a.y4m"));
  EXPECT_EQ(read_file(file("a.y4m")), "an earlier video");
  EXPECT_EQ(read_video(file("a.y4m.part")).frames, 2) << "whole frames only";
  if (!has_ffmpeg()) return;
  write_file(file("a.mp4"), "an earlier video");
  full.arguments = generate({"-p", "a", "--seconds", "4", "--crf", "1", "-o", "a.mp4"});
  full.largest_file = 30'000;
  EXPECT_TRUE(is_sentence(run(full), 11, "a.mp4"));
  EXPECT_EQ(read_file(file("a.mp4")), "an earlier video");
}

// The second video does not fit; the first, which is smaller, stays whole.
TEST_F(GenerateErrorsTest, VideosCompleteBeforeAFailureStay) {
  write_file(file("prompts.txt"), "a\nb\n");
  std::filesystem::create_directory(file("v-0001.y4m"));
  const Outcome made =
      run(generate({"--prompt-file", "prompts.txt", "--frames", "2", "-o", "v.y4m", "--json"}));
  EXPECT_EQ(made.status, 2);
  EXPECT_NE(made.err.find("v-0001.y4m"), std::string::npos) << made.err;
  EXPECT_EQ(json_of(made).size(), 1U);
  EXPECT_EQ(read_video(file("v-0000.y4m")).frames, 2);
}

TEST_F(GenerateErrorsTest, StandardOutputThatCannotBeWritten) {
  ProgramRun what;
  what.arguments = generate({"-p", "a", "--frames", "9", "-o", "-"});
  what.break_stdout = true;
  EXPECT_TRUE(is_sentence(run(what), 11, "standard output"));
  what.break_stdout = false;
  what.stdout_file = "/dev/full";
  EXPECT_TRUE(is_sentence(run(what), 11, "standard output"));
  what.stdout_file.clear();
  what.close_stdout = true;
  EXPECT_TRUE(is_sentence(run(what), 11, "standard output"));
}

// Without standard output the file must not take its place and get the program's text.
TEST_F(GenerateErrorsTest, AClosedStandardOutputDoesNotSpoilTheFile) {
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "--frames", "2", "-o", "good.y4m"}))));
  ProgramRun what;
  what.arguments = generate({"-p", "a", "--frames", "2", "-o", "a.y4m"});
  what.close_stdout = true;
  EXPECT_TRUE(is_sentence(run(what), 11, "standard output"));
  EXPECT_EQ(read_file(file("a.y4m")), read_file(file("good.y4m")));
}

}  // namespace
}  // namespace ultraflash::cli_test
