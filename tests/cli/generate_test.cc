// ultraflash generate: what it writes.
#include <cmath>
#include <filesystem>

#include "cli/program.h"

namespace ultraflash::cli_test {
namespace {

class GenerateTest : public CliTest {};

TEST_F(GenerateTest, WritesMp4WithHowItWasMade) {
  UF_NEEDS_FFMPEG();
  const Outcome made = run(generate(
      {"-p", "a red circle, \"quoted\"", "--seed", "7", "--frames", "5", "-o", "a.mp4", "--json"}));
  ASSERT_TRUE(is_success(made));
  const nlohmann::json result = json_of(made)[0];
  EXPECT_EQ(result["file"], "a.mp4");
  EXPECT_EQ(result["frames"], 5);
  EXPECT_EQ(result["width"], 64);
  EXPECT_EQ(result["height"], 48);
  EXPECT_EQ(result["frames_per_second"], 16);
  EXPECT_EQ(result["outcome"], "end");
  EXPECT_GT(result["frames_per_second_made"], 0.0);
  EXPECT_EQ(names_in(folder_), (std::vector<std::string>{"a.mp4", "tiny.json"}));
  EXPECT_EQ(result["bytes"].get<int64_t>() > 0, true);

  const Video video = read_video(file("a.mp4"));
  EXPECT_EQ(video.frames, 5);
  EXPECT_EQ(video.width, 64);
  EXPECT_EQ(video.height, 48);
  EXPECT_EQ(video.metadata.at("ultraflash_recipe"), "tiny");
  EXPECT_EQ(video.metadata.at("ultraflash_prompt"), "a red circle, \"quoted\"");
  EXPECT_EQ(video.metadata.at("ultraflash_seed"), "7");
  const Outcome version = run({"--version"});
  EXPECT_EQ(version.out, "ultraflash " + video.metadata.at("ultraflash_version") + "\n");
  const auto stored = nlohmann::json::parse(video.metadata.at("ultraflash_settings"));
  EXPECT_EQ(stored["settings"]["seed"], 7);
  EXPECT_EQ(stored["settings"]["frames"], 5);
  EXPECT_EQ(stored["settings"]["scale"], 1);
  EXPECT_EQ(stored["settings"]["trim"], "intended");
  EXPECT_EQ(stored["sources"]["generator"], "random, seed 0");

  const Outcome inspected = run({"inspect", "--json", "--count", "a.mp4"});
  ASSERT_TRUE(is_success(inspected));
  const nlohmann::json shown = json_of(inspected);
  EXPECT_EQ(shown["frames"], 5);
  EXPECT_EQ(shown["codec"].get<std::string>().empty(), false);
  EXPECT_EQ(shown["metadata"]["ultraflash_settings"]["settings"], stored["settings"]);
}

// The stored settings are a settings file, and it makes the same bytes again.
TEST_F(GenerateTest, StoredSettingsMakeTheSameFileAgain) {
  UF_NEEDS_FFMPEG();
  ASSERT_TRUE(is_success(run(generate(
      {"-p", "a red circle", "--seed", "18446744073709551615", "--chunks", "2", "--prompt-at",
       "1=a blue star", "--dcm-steps", "2", "--trim", "released", "--crf", "30", "-o", "a.mp4"}))));
  const nlohmann::json shown = json_of(run({"inspect", "--json", "a.mp4"}));
  write_file(file("again.json"), shown["metadata"]["ultraflash_settings"]["settings"].dump());
  ASSERT_TRUE(is_success(run({"generate", "-q", "--settings", "again.json", "-o", "b.mp4"})));
  EXPECT_EQ(read_file(file("a.mp4")), read_file(file("b.mp4")));
  EXPECT_GT(read_file(file("b.mp4")).size(), 1000U);
}

TEST_F(GenerateTest, SecondsGiveSixteenFramesEach) {
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "--seconds", "2", "-o", "two.y4m"}))));
  EXPECT_EQ(read_video(file("two.y4m")).frames, 32);
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "-s", "0.0625", "-o", "one.y4m"}))));
  EXPECT_EQ(read_video(file("one.y4m")).frames, 1);
  if (has_ffmpeg()) {
    ASSERT_TRUE(is_success(run(generate({"-p", "a", "--seconds", "1", "-o", "one.mp4"}))));
    EXPECT_EQ(read_video(file("one.mp4")).frames, 16);
  }
}

// The first chunk of 3 latent frames gives 4 * 2 + 1 = 9 frames by either rule once trimmed as it
// says, later ones 12.
TEST_F(GenerateTest, ChunksGiveTheirFramesByTheTrimmingRule) {
  const auto frames = [&](const char* chunks, const char* trim) {
    const Outcome made =
        run(generate({"-p", "a", "--chunks", chunks, "--trim", trim, "-o", "c.y4m"}));
    EXPECT_TRUE(is_success(made));
    return read_video(file("c.y4m")).frames;
  };
  EXPECT_EQ(frames("1", "intended"), 9);
  EXPECT_EQ(frames("2", "intended"), 21);
  EXPECT_EQ(frames("2", "released"), 18);
}

TEST_F(GenerateTest, SeedDecidesThePixels) {
  for (const auto& [name, seed] : {std::pair{"a", "3"}, {"b", "3"}, {"c", "4"}}) {
    ASSERT_TRUE(is_success(run(generate({"-p", "a red circle", "--seed", seed, "--frames", "3",
                                         "-o", name + std::string(".rgb")}))));
  }
  EXPECT_EQ(read_file(file("a.rgb")).size(), 3U * 64 * 48 * 3);
  EXPECT_EQ(read_file(file("a.rgb")), read_file(file("b.rgb")));
  EXPECT_NE(read_file(file("a.rgb")), read_file(file("c.rgb")));
}

TEST_F(GenerateTest, StandardOutputGetsTheVideoAndNothingElse) {
  const Outcome raw = run(generate({"-p", "a", "--frames", "2", "--format", "raw", "-o", "-"}));
  ASSERT_TRUE(is_success(raw));
  EXPECT_EQ(raw.out.size(), 2U * 64 * 48 * 3);
  const Outcome y4m = run(generate({"-p", "a", "--frames", "2", "-o", "-"}));
  ASSERT_TRUE(is_success(y4m));
  EXPECT_TRUE(y4m.out.starts_with("YUV4MPEG2 W64 H48 F16:1"));
  write_file(file("piped.y4m"), y4m.out);
  EXPECT_EQ(read_video(file("piped.y4m")).frames, 2);
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "--frames", "2", "-o", "file.rgb"}))));
  EXPECT_EQ(read_file(file("file.rgb")), raw.out);
}

TEST_F(GenerateTest, PicturesGoToAPatternOrAFolder) {
  UF_NEEDS_PNG();
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "--frames", "2", "-o", "p_%03d.png"}))));
  EXPECT_TRUE(std::filesystem::exists(file("p_000.png")));
  EXPECT_TRUE(std::filesystem::exists(file("p_001.png")));
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "--frames", "2", "-o", "pictures/"}))));
  EXPECT_EQ(names_in(file("pictures")),
            (std::vector<std::string>{"frame_00000.png", "frame_00001.png"}));
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "--frames", "2", "-o", "v.y4m"}))));
  const Outcome inspected = run({"inspect", "--json", "--count", "pictures"});
  ASSERT_TRUE(is_success(inspected));
  EXPECT_EQ(json_of(inspected)["frames"], 2);
}

TEST_F(GenerateTest, ScaleEnlarges) {
  for (const auto& [scale, width, height] :
       {std::tuple{"1", 64, 48}, {"2", 128, 96}, {"3", 192, 144}}) {
    ASSERT_TRUE(is_success(run({"generate", "-q", "-r", "./tiny.json", "-p", "a", "--frames", "1",
                                "--scale", scale, "-o", "s.y4m"})));
    const Video video = read_video(file("s.y4m"));
    EXPECT_EQ(video.width, width);
    EXPECT_EQ(video.height, height);
  }
  EXPECT_TRUE(is_sentence(run({"generate", "-q", "-r", "./tiny.json", "-p", "a", "--scale", "4"}),
                          2, "scale"));
}

TEST_F(GenerateTest, SavesTheGeneratorsOwnPicturesToo) {
  const Outcome made =
      run({"generate", "-q", "-r", "./tiny.json", "--scale", "2", "-p", "a", "--seconds", "0.5",
           "-o", "big.y4m", "--save-lr", "small.y4m", "--json"});
  ASSERT_TRUE(is_success(made));
  EXPECT_EQ(json_of(made)[0]["low_resolution_file"], "small.y4m");
  const Video big = read_video(file("big.y4m"));
  const Video small = read_video(file("small.y4m"));
  EXPECT_EQ(big.width, 128);
  EXPECT_EQ(small.width, 64);
  EXPECT_EQ(big.frames, 8);
  EXPECT_EQ(small.frames, 8);
}

TEST_F(GenerateTest, EnlargesForViewing) {
  ASSERT_TRUE(is_success(run(generate({"-p", "a", "--frames", "2", "-o", "plain.y4m"}))));
  ASSERT_TRUE(
      is_success(run(generate({"-p", "a", "--frames", "2", "--enlarge", "3", "-o", "large.y4m"}))));
  const Video plain = read_video(file("plain.y4m"));
  const Video large = read_video(file("large.y4m"));
  EXPECT_EQ(large.width, 3 * plain.width);
  EXPECT_EQ(large.height, 3 * plain.height);
  EXPECT_EQ(large.frames, plain.frames);
  EXPECT_TRUE(
      is_sentence(run(generate({"-p", "a", "--enlarge", "9", "-o", "x.y4m"})), 2, "enlarge"));
}

// Without a word about recipes, sizes or weights: the shipped cascade, in every size.
TEST_F(GenerateTest, TheDefaultIsTheTrainedCascade) {
  const auto make = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = {"generate",  "-q", "-p",    "a red circle",
                                    "--frames",  "1",  "-o",    "out.y4m",
                                    "--threads", "1",  "--json"};
    all.insert(all.end(), more.begin(), more.end());
    const Outcome made = run(all);
    EXPECT_TRUE(is_success(made));
    EXPECT_EQ(json_of(made)[0]["random_weights"], false);
    return read_video(file("out.y4m")).width;
  };
  EXPECT_EQ(make({}), 320);
  EXPECT_EQ(make({"--scale", "3"}), 480);
  EXPECT_EQ(make({"--scale", "1"}), 160);
  EXPECT_EQ(make({"--recipe", "pocket-lr"}), 160);
}

TEST_F(GenerateTest, OneVideoForEachLineOfAPromptFile) {
  write_file(file("prompts.txt"),
             "\xEF\xBB\xBF"
             "a red circle\r\n\n  \na blue star  \n");
  const Outcome made = run(generate({"--prompt-file", "prompts.txt", "--frames", "2", "-o", "v.y4m",
                                     "--save-lr", "lr.y4m", "--json"}));
  ASSERT_TRUE(is_success(made));
  EXPECT_EQ(json_of(made).size(), 2U);
  EXPECT_EQ(names_in(folder_),
            (std::vector<std::string>{"lr-0000.y4m", "lr-0001.y4m", "prompts.txt", "tiny.json",
                                      "v-0000.y4m", "v-0001.y4m"}));
  ASSERT_TRUE(is_success(run(generate({"-p", "a blue star", "--frames", "2", "-o", "one.y4m"}))));
  EXPECT_EQ(read_file(file("v-0001.y4m")), read_file(file("one.y4m")));
  EXPECT_NE(read_file(file("v-0000.y4m")), read_file(file("one.y4m")));
}

// The first chunk's 9 frames come before the switch, so they must be the same.
TEST_F(GenerateTest, PromptChangesFromTheNamedChunkOn) {
  const std::vector<std::string> length = {"-p", "a red circle", "--chunks", "2"};
  const auto make = [&](std::vector<std::string> more, const std::string& name) {
    more.insert(more.end(), length.begin(), length.end());
    more.insert(more.end(), {"-o", name});
    EXPECT_TRUE(is_success(run(generate(more))));
    return read_video(file(name)).hashes;
  };
  const auto plain = make({}, "plain.y4m");
  const auto switched = make({"--prompt-at", "1=a blue star"}, "switched.y4m");
  const auto recached = make({"--prompt-at", "1=a blue star", "--switch", "recache"}, "re.y4m");
  ASSERT_EQ(plain.size(), 21U);
  ASSERT_EQ(switched.size(), 21U);
  EXPECT_TRUE(std::equal(plain.begin(), plain.begin() + 9, switched.begin()));
  EXPECT_TRUE(std::equal(plain.begin(), plain.begin() + 9, recached.begin()));
  EXPECT_NE(plain.back(), switched.back());
  EXPECT_NE(recached.back(), switched.back());
}

TEST_F(GenerateTest, TextEmbeddingsStandInForPrompts) {
  ASSERT_TRUE(is_success(run({"make-weights", "-q", "./tiny.json", "w", "--dtype", "f32"})));
  ASSERT_TRUE(is_success(run(generate({"-w", "w", "-p", "a red circle", "--frames", "2", "-o",
                                       "a.y4m", "--save-text-embedding", "text.safetensors"}))));
  std::filesystem::remove(file("w/text_encoder.safetensors"));
  ASSERT_TRUE(is_success(run(generate(
      {"-w", "w", "--text-embedding", "text.safetensors", "--frames", "2", "-o", "b.y4m"}))));
  EXPECT_EQ(read_file(file("a.y4m")), read_file(file("b.y4m")));
}

TEST_F(GenerateTest, SaysWhatItDoesOnStandardErrorUnlessQuiet) {
  std::vector<std::string> loud = generate({"-p", "a", "--frames", "2", "-o", "a.y4m"});
  const Outcome quiet = run(loud);
  EXPECT_TRUE(is_success(quiet));
  EXPECT_EQ(quiet.err, "");
  EXPECT_NE(quiet.out.find("a.y4m: 2 frames, 64x48"), std::string::npos) << quiet.out;
  loud.erase(loud.begin());
  const Outcome outcome = run(loud);
  EXPECT_TRUE(is_success(outcome));
  EXPECT_NE(outcome.err.find("2 of 2 frames"), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find('\r'), std::string::npos) << "a bar, and no terminal to draw it on";
}

TEST_F(GenerateTest, AnOverlongPromptIsCutWithAWarning) {
  std::string prompt;
  for (int i = 0; i < 200; ++i) prompt += "a red circle ";
  std::vector<std::string> arguments = generate({"-p", prompt, "--frames", "1", "-o", "a.y4m"});
  arguments.insert(arguments.end(), {"-w", "w"});
  arguments.erase(arguments.begin());  // warnings are wanted
  ASSERT_TRUE(is_success(run({"make-weights", "-q", "./tiny.json", "w"})));
  const Outcome made = run(arguments);
  EXPECT_EQ(made.status, 0);
  EXPECT_NE(made.err.find("its end was dropped"), std::string::npos) << made.err;
}

}  // namespace
}  // namespace ultraflash::cli_test
