// make-weights, inspect, convert, and generate with the files they write.
#include <algorithm>
#include <filesystem>

#include "cli/program.h"

namespace ultraflash::cli_test {
namespace {

class WeightsTest : public CliTest {
 protected:
  void make(const std::string& folder, const std::string& recipe = "./tiny.json") {
    ASSERT_TRUE(is_success(run({"make-weights", "-q", recipe, folder, "--dtype", "f32"})));
  }
  Outcome load(const std::string& folder) {
    return run(generate({"-p", "a", "--frames", "2", "-w", folder, "-o", "out.y4m"}));
  }
  std::string text_of(const std::string& path) { return read_file(file(path)); }
};

TEST_F(WeightsTest, MadeWeightsAreThoseThatRandomWeightsDraw) {
  make("w");
  ASSERT_TRUE(is_success(load("w")));
  ASSERT_TRUE(is_success(
      run(generate({"-p", "a", "--frames", "2", "--random-weights", "-o", "random.y4m"}))));
  EXPECT_EQ(text_of("out.y4m"), text_of("random.y4m"));
  ASSERT_TRUE(is_success(
      run({"make-weights", "-q", "./tiny.json", "other", "--dtype", "f32", "--seed", "1"})));
  ASSERT_TRUE(is_success(load("other")));
  EXPECT_NE(text_of("out.y4m"), text_of("random.y4m"));
  const std::string before = text_of("w/generator.safetensors");
  EXPECT_TRUE(is_sentence(run({"make-weights", "-q", "./tiny.json", "w"}), 2, "not overwritten"));
  EXPECT_EQ(text_of("w/generator.safetensors"), before);
  ASSERT_TRUE(is_success(
      run({"make-weights", "-q", "./tiny.json", "one", "--scale", "2", "--no-text-encoder"})));
  EXPECT_EQ(names_in(file("one")),
            (std::vector<std::string>{"generator.safetensors", "latent_upsampler_2x.safetensors",
                                      "sr_dit.safetensors", "ultra_decoder.safetensors"}));
  EXPECT_TRUE(is_sentence(run({"make-weights", "-q", "nothing", "w"}), 3, "no recipe 'nothing'"));
  EXPECT_TRUE(is_sentence(run({"make-weights", "-q", "./tiny.json", "v", "--scale", "9"}), 2,
                          "no scale 9"));
  EXPECT_TRUE(
      is_sentence(run({"make-weights", "-q", "./tiny.json", "v", "--seed", "-1"}), 2, "--seed"));
  EXPECT_TRUE(
      is_sentence(run({"make-weights", "-q", "./tiny.json", "tiny.json/w"}), 11, "tiny.json/w"));
}

TEST_F(WeightsTest, DamagedWeightsAreNamed) {
  make("w");
  const std::string name = "w/generator.safetensors";
  const std::string whole = text_of(name);
  const auto with = [&](const std::string& bytes) {
    write_file(file(name), bytes);
    return load("w");
  };
  EXPECT_TRUE(is_sentence(with(whole.substr(0, whole.size() - 1)), 4, "generator.safetensors"));
  EXPECT_TRUE(is_sentence(with(whole.substr(0, whole.size() / 2)), 4, "generator.safetensors"));
  EXPECT_TRUE(is_sentence(with(whole.substr(0, 5)), 4, "generator.safetensors"));
  EXPECT_TRUE(is_sentence(with(""), 4, "generator.safetensors"));
  EXPECT_TRUE(is_sentence(with(std::string(8, '\xFF') + whole.substr(8)), 4, "generator"));
  EXPECT_TRUE(is_sentence(with(std::string(4000, 'x')), 4, "generator.safetensors"));
  std::string damaged = whole;
  damaged[20] = '\x01';  // in the header
  EXPECT_TRUE(is_sentence(with(damaged), 4, "generator.safetensors"));
  std::filesystem::remove(file(name));
  EXPECT_TRUE(is_sentence(load("w"), 3, "generator.safetensors"));
  EXPECT_TRUE(is_sentence(load("none"), 3, "none"));
  EXPECT_FALSE(std::filesystem::exists(file("out.y4m")));
}

TEST_F(WeightsTest, WeightsOfAnotherRecipeAreRefused) {
  recipe_file("wide.json", R"({"generator": {"network": {"dim": 64}}})");
  make("wide", "./wide.json");
  EXPECT_TRUE(is_sentence(load("wide"), 4, "generator.safetensors"));
  const Outcome outcome = load("wide");
  EXPECT_NE(outcome.err.find("[64, 16, 1, 2, 2], expected [48, 16, 1, 2, 2]"), std::string::npos)
      << outcome.err;
}

TEST_F(WeightsTest, ConvertKeepsTheTensors) {
  make("w");
  const std::string in = "w/generator.safetensors";
  ASSERT_TRUE(is_success(run({"convert", "-q", in, "a.pt", "--output-key", "generator"})));
  ASSERT_TRUE(is_success(run({"convert", "-q", "a.pt", "b.safetensors"})));
  // The same tensors again, whatever the order of the file and its metadata.
  const auto tensors = [&](const std::string& path) {
    const nlohmann::json shown = json_of(run({"inspect", "--json", path}));
    std::map<std::string, nlohmann::json> all;
    for (const nlohmann::json& tensor : shown["tensors"]) {
      all[tensor["name"]] = {tensor["dtype"], tensor["shape"]};
    }
    return all;
  };
  EXPECT_EQ(tensors(in).size(), 69U);
  EXPECT_EQ(tensors(in), tensors("b.safetensors"));
  std::filesystem::copy_file(file("b.safetensors"), file(in),
                             std::filesystem::copy_options::overwrite_existing);
  ASSERT_TRUE(is_success(load("w")));
  const std::string converted = text_of("out.y4m");
  ASSERT_TRUE(is_success(
      run(generate({"-p", "a", "--frames", "2", "--random-weights", "-o", "random.y4m"}))));
  EXPECT_EQ(converted, text_of("random.y4m"));

  ASSERT_TRUE(is_success(run({"convert", "-q", in, "half.safetensors", "--dtype", "bf16"})));
  EXPECT_EQ(json_of(run({"inspect", "--json", "half.safetensors"}))["by_type"]["bf16"]["tensors"],
            69);
  EXPECT_LT(std::filesystem::file_size(file("half.safetensors")),
            std::filesystem::file_size(file(in)) * 6 / 10);

  std::filesystem::create_directory(file("shards"));
  ASSERT_TRUE(
      is_success(run({"convert", "-q", in, "shards/model.safetensors", "--shard", "100k"})));
  EXPECT_GE(names_in(file("shards")).size(), 4U);
  const nlohmann::json sharded = json_of(run({"inspect", "--json", "shards"}));
  EXPECT_EQ(sharded["totals"]["tensors"], 69);
  ASSERT_TRUE(is_success(run({"convert", "-q", "shards", "joined.safetensors"})));
  EXPECT_EQ(tensors("joined.safetensors"), tensors(in));
}

// Large decoders are shipped without the encoder that they were trained with.
TEST_F(WeightsTest, StreamsNeedNoEncoder) {
  make("w");
  ASSERT_TRUE(is_success(load("w")));
  const std::string before = text_of("out.y4m");
  const std::string name = "w/tiny_autoencoder.safetensors";
  const auto whole = std::filesystem::file_size(file(name));
  ASSERT_TRUE(
      is_success(run({"convert", "-q", name, "decoder.safetensors", "--drop", "encoder."})));
  std::filesystem::rename(file("decoder.safetensors"), file(name));
  EXPECT_LT(std::filesystem::file_size(file(name)), whole * 9 / 10);
  ASSERT_TRUE(is_success(load("w")));
  EXPECT_EQ(text_of("out.y4m"), before);
  EXPECT_TRUE(is_sentence(run({"convert", "-q", name, "again.safetensors", "--drop", "encoder."}),
                          3, "\"encoder.\""));
}

TEST_F(WeightsTest, ConvertMergesAdapters) {
  recipe_file("lora.json",
              R"({"generator": {"checkpoint": {"files": ["generator.pt"],
                                               "lora_files": ["lora.pt"]}}})");
  make("w", "./lora.json");
  const auto merged = [&](const char* scale, const std::string& out) {
    EXPECT_TRUE(is_success(run(
        {"convert", "-q", "w/generator.pt", out, "--lora", "w/lora.pt", "--lora-scale", scale})));
    return text_of(out);
  };
  ASSERT_TRUE(is_success(run({"convert", "-q", "w/generator.pt", "plain.safetensors"})));
  EXPECT_EQ(merged("0", "zero.safetensors"), text_of("plain.safetensors"));
  EXPECT_NE(merged("1", "one.safetensors"), text_of("plain.safetensors"));
  EXPECT_TRUE(
      is_sentence(run({"convert", "-q", "w/generator.pt", "x.safetensors", "--lora", "none.pt"}), 3,
                  "none.pt"));
  EXPECT_FALSE(std::filesystem::exists(file("x.safetensors")));
}

TEST_F(WeightsTest, ConvertRefuses) {
  make("w");
  const std::string in = "w/generator.safetensors";
  const std::string before = text_of(in);
  EXPECT_TRUE(is_sentence(run({"convert", "-q", in, in}), 2, "is an input of this"));
  EXPECT_EQ(text_of(in), before);
  EXPECT_TRUE(is_sentence(run({"convert", "-q", "none.pt", "a.pt"}), 3, "none.pt"));
  EXPECT_TRUE(is_sentence(run({"convert", "-q", in, "a.bin"}), 2, "a.bin"));
  EXPECT_TRUE(is_sentence(run({"convert", "-q", in, "none/a.pt"}), 3, "none/a.pt") ||
              is_sentence(run({"convert", "-q", in, "none/a.pt"}), 11, "none/a.pt"));
  EXPECT_TRUE(is_sentence(run({"convert", "-q", in, "a.pt", "--dtype", "f31"}), 2, "--dtype"));
  EXPECT_TRUE(is_sentence(run({"convert", "-q", in, "a.pt", "--shard", "x"}), 2, "--shard"));
  EXPECT_TRUE(is_sentence(run({"convert", "-q", in}), 2, "output"));
  EXPECT_TRUE(
      is_sentence(run({"convert", "-q", in, "a.pt", "--lora-scale", "nan"}), 2, "--lora-scale"));
  write_file(file("a.safetensors"), "an earlier file");
  ProgramRun full;
  full.arguments = {"convert", "-q", in, "a.safetensors"};
  full.largest_file = 50'000;
  EXPECT_TRUE(is_sentence(run(full), 11, "a.safetensors"));
  EXPECT_EQ(text_of("a.safetensors"), "an earlier file");
}

TEST_F(WeightsTest, InspectShowsOrRefuses) {
  make("w");
  const Outcome shown = run({"inspect", "w/generator.safetensors"});
  ASSERT_TRUE(is_success(shown));
  EXPECT_NE(shown.out.find("69 tensors"), std::string::npos);
  EXPECT_NE(shown.out.find("49 more (--tensors lists all)"), std::string::npos);
  const Outcome all = run({"inspect", "--tensors", "w/generator.safetensors"});
  EXPECT_NE(all.out.find("head.head.weight"), std::string::npos) << all.out;
  EXPECT_TRUE(is_sentence(run({"inspect", "none"}), 3, "none"));
  EXPECT_TRUE(is_sentence(run({"inspect", "/dev/null"}), 2, "/dev/null"));
  write_file(file("a.pt"), "this is no archive");
  EXPECT_TRUE(is_sentence(run({"inspect", "a.pt"}), 4, "a.pt"));
  write_file(file("a.y4m"), "this is no video");
  // What does not begin as y4m is FFmpeg's to judge, whatever its name.
  EXPECT_TRUE(is_sentence(run({"inspect", "a.y4m"}), has_ffmpeg() ? 4 : 5, "a.y4m"));
  write_file(file("a.mp4"), "this is no video");
  EXPECT_TRUE(is_sentence(run({"inspect", "a.mp4"}), has_ffmpeg() ? 4 : 5, "a.mp4"));
  EXPECT_TRUE(is_sentence(run({"inspect"}), 2, "file"));
}

}  // namespace
}  // namespace ultraflash::cli_test
