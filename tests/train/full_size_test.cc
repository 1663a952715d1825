// The configs of the published sizes, on the same path with networks of a few thousand parameters.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "media/frame_sink.h"
#include "tiny_training.h"
#include "train/train.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

// The test's recipe with the Wan VAE in place of the tiny autoencoder.
std::string vae_recipe(const TrainingFolder& folder) {
  std::ifstream stream(folder / "recipe.json");
  std::string text(std::istreambuf_iterator<char>(stream), {});
  const size_t decoder = text.find("\"decoder\"");
  text = text.substr(0, decoder) + R"("decoder": {"kind": "wan_vae",
      "vae": {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1,
              "temporal_downsample": [0, 1, 1]},
      "checkpoint": {"files": ["vae.safetensors"]}}}]})";
  const size_t cache = text.find("\"cache_kind\": \"window\"");
  text.replace(cache, 22, "\"cache_kind\": \"grow\"");
  return folder.write("wan.json", text).string();
}

const std::vector<std::string>& small_sizes() {
  static const std::vector<std::string> sizes = {
      "steps=6",          "log_every=1",         "checkpoint_every=0",  "bank.latent_frames=6",
      "bank.clips=4",     "bank.encode_batch=2", "bank.refresh=1",      "ode.pairs=2",
      "ode.make_batch=1", "ode.teacher_steps=4", "ode.refresh_every=2", "data.workers=1",
  };
  return sizes;
}

TEST(FullSize, ConfigsRunWithRandomWeightsAtTinySizes) {
  const char* source = std::getenv("UF_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("full-size");
  const std::string recipe = vae_recipe(folder);
  for (const std::string stage : {"base", "causal", "ode", "self_forcing"}) {
    SCOPED_TRACE(stage);
    TrainOptions options;
    options.config = std::filesystem::path(source) / "models/wan-1.3b/train" / (stage + ".json");
    const Result<std::string> as_shipped = describe_training(options);
    EXPECT_TRUE(as_shipped.ok()) << as_shipped.status().message();
    options.out = folder / stage;
    options.random_weights = true;
    options.trial = true;
    options.set = small_sizes();
    options.set.push_back("recipe=" + recipe);
    int reports = 0;
    options.progress = [&](const TrainProgress& p) {
      EXPECT_EQ(p.text.find("nan"), std::string::npos) << p.text;
      ++reports;
      return true;
    };
    const Result<TrainSummary> summary = run_training(options);
    ASSERT_TRUE(summary.ok()) << summary.status().message();
    EXPECT_TRUE(summary->finished);
    EXPECT_EQ(reports, 6);
    EXPECT_TRUE(summary->checkpoint.empty() && summary->weights.empty()) << "a trial leaves a log";
  }
}

// Clips through the Wan VAE, text embeddings from a file, sheets and weights written.
TEST(FullSize, VideosAndPreparedEmbeddings) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("prepared");
  const std::string recipe = vae_recipe(folder);
  std::filesystem::create_directories(folder / "videos");
  for (int i = 0; i < 3; ++i) {
    const std::string name = "videos/" + std::to_string(i);
    SinkOptions sink_options;
    sink_options.path = (folder / (name + ".y4m")).string();
    const auto sink = open_sink(sink_options, {64, 48, 16, 1});
    ASSERT_TRUE(sink.ok()) << sink.status().message();
    for (int f = 0; f < 21; ++f) {  // six latent frames
      const std::vector<uint8_t> pixels(64 * 48 * 3, static_cast<uint8_t>(60 * i + f));
      ASSERT_TRUE((*sink)->write(RgbFrame::contiguous(pixels.data(), 64, 48)).ok());
    }
    ASSERT_TRUE((*sink)->finish().ok());
    folder.write(name + ".txt", "a circle number " + std::string(static_cast<size_t>(i) + 1, 'i'));
  }
  const std::string embeddings = (folder / "text.safetensors").string();
  TrainOptions options = folder.stage("causal", "out", R"("batch": 2)");
  options.set = small_sizes();
  options.set.insert(options.set.end(),
                     {"recipe=" + recipe, "data.source=" + (folder / "videos").string(),
                      "flow.sample_clips=1", "flow.sample_steps=2", "steps=2", "recompute=blocks"});
  options.write_embeddings = embeddings;
  Result<TrainSummary> summary = run_training(options);
  ASSERT_TRUE(summary.ok()) << summary.status().message();
  ASSERT_EQ(summary->weights.size(), 1U);
  options.write_embeddings.clear();
  options.set.push_back("init.text_embeddings=" + embeddings);
  summary = run_training(options);
  ASSERT_TRUE(summary.ok()) << summary.status().message();
  EXPECT_EQ(summary->step, 2);
  EXPECT_FALSE(summary->weights.empty());
  // A caption that was not prepared is named.
  folder.write("videos/0.txt", "another");
  folder.write("videos/1.txt", "another");
  folder.write("videos/2.txt", "another");
  summary = run_training(options);
  EXPECT_EQ(summary.status().code(), StatusCode::kNotFound) << summary.status().message();
}

}  // namespace
}  // namespace ultraflash
