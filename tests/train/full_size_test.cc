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

// The test's recipe with the Wan VAE at scale 1 and its cascades.
std::string cascade_recipe(const TrainingFolder& folder) {
  std::ifstream stream(folder / "recipe.json");
  std::string text(std::istreambuf_iterator<char>(stream), {});
  const size_t begin = text.find("\"decoder\"");
  const size_t end = text.find("{\"scale\": 2");
  text.replace(begin, end - begin, R"("decoder": {"kind": "wan_vae",
      "vae": {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1,
              "temporal_downsample": [0, 1, 1]},
      "checkpoint": {"files": ["vae.safetensors"]}}}, )");
  return folder.write("cascade.json", text).string();
}

TrainOptions cascade_trial(const std::string& stage, const std::string& recipe,
                           const TrainingFolder& folder) {
  TrainOptions options;
  options.config = std::filesystem::path(std::getenv("UF_SOURCE_DIR")) /
                   "models/ultra-flash/train" / (stage + ".json");
  const Result<std::string> as_shipped = describe_training(options);
  EXPECT_TRUE(as_shipped.ok()) << as_shipped.status().message();
  options.out = folder / stage;
  options.random_weights = true;
  options.trial = true;
  options.set = {"recipe=" + recipe,
                 "steps=4",
                 "log_every=1",
                 "batch=2",
                 "checkpoint_every=0",
                 "bank.clips=2",
                 "bank.encode_batch=1",
                 "bank.refresh=1",
                 "data.workers=1",
                 "data.part=1",
                 "crop.height=8",
                 "crop.width=10",
                 "upsampler.degraded_after=0",
                 "upsampler.degraded_share=0",
                 "upsampler.generated_share=0.5",
                 "sr.guided_share=0.5",
                 "sr_sparse.adaptation=0.5",
                 "sr_sparse.critic_per_student=1"};
  return options;
}

int finished_reports(TrainOptions options) {
  int reports = 0;
  options.progress = [&](const TrainProgress& p) {
    EXPECT_EQ(p.text.find("nan"), std::string::npos) << p.text;
    ++reports;
    return true;
  };
  const Result<TrainSummary> summary = run_training(options);
  EXPECT_TRUE(summary.ok()) << summary.status().message();
  EXPECT_TRUE(summary.ok() && summary->finished);
  return reports;
}

TEST(FullSize, CascadeConfigsRunWithRandomWeightsAtTinySizes) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("full-size-cascade");
  const std::string recipe = cascade_recipe(folder);
  for (const std::string stage :
       {"upsampler_2x", "upsampler_3x", "sr_1k", "sr_2k", "sr_sparse_1k", "sr_sparse_2k"}) {
    SCOPED_TRACE(stage);
    EXPECT_EQ(finished_reports(cascade_trial(stage, recipe, folder)), 4);
  }
}

// Stage d: streams of the generator, pairs, the score that learns. Without pictures there is
// neither judge nor reward.
TEST(FullSize, PreferencesRunWithRandomWeightsAtTinySizes) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("full-size-preference");
  TrainOptions options = cascade_trial("preference_1k", cascade_recipe(folder), folder);
  options.set.insert(options.set.end(),
                     {"bank.latent_frames=6", "preference.rollouts=2", "preference.groups=1",
                      "preference.refresh_every=2", "preference.teacher_steps=2",
                      "preference.critic_per_student=2"});
  EXPECT_EQ(finished_reports(options), 4);
}

// Latents of the Wan VAE where there are pictures: the decoder with its discriminator and latents
// of an upsampler, and the upsampler with decoded pictures and latents that went through the VAE.
TEST(FullSize, DecoderAndUpsamplerOnLatentsOfTheVae) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("full-size-vae");
  const std::string recipe = cascade_recipe(folder);
  TrainOptions options = cascade_trial("decoder", recipe, folder);
  options.set.insert(options.set.end(),
                     {"data.source=pocket_world", "autoencoder.frames=8", "autoencoder.gan_width=8",
                      "autoencoder.upsampled_share=0.5", "autoencoder.gan_after=0.5"});
  EXPECT_EQ(finished_reports(options), 4);
  options = cascade_trial("upsampler_2x", recipe, folder);
  options.set.insert(options.set.end(),
                     {"data.source=pocket_world", "bank.latent_frames=4", "cascade.frames=3",
                      "upsampler.picture_after=0", "upsampler.degraded_share=0.3"});
  EXPECT_EQ(run_training(options).status().code(), StatusCode::kInvalidArgument)
      << "the VAE decodes no large clips";
  options.set.emplace_back("upsampler.picture=0");
  EXPECT_EQ(finished_reports(options), 4);
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
