// Every stage on clips from files: a folder of small videos with captions, some of them broken.
#include "train/clips.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "media/frame_sink.h"
#include "tiny_training.h"
#include "train/degrade/degrade.h"
#include "train/objective.h"
#include "train/train.h"
#include "ultraflash/recipe.h"
#include "weights/checkpoint.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

// A bright bar that moves over a ground of one colour.
void write_video(const std::filesystem::path& path, int number, int64_t frames) {
  constexpr int64_t kWidth = 72;
  constexpr int64_t kHeight = 48;
  SinkOptions options;
  options.path = path.string();
  const auto sink = open_sink(options, {kWidth, kHeight, 24, 1});
  ASSERT_TRUE(sink.ok()) << sink.status().message();
  for (int64_t f = 0; f < frames; ++f) {
    std::vector<uint8_t> pixels;
    for (int64_t y = 0; y < kHeight; ++y) {
      for (int64_t x = 0; x < kWidth; ++x) {
        const bool bar = std::abs(x - (f * (number + 1) + 7 * number) % kWidth) < 6;
        pixels.push_back(bar ? 230 : static_cast<uint8_t>(20 * number));
        pixels.push_back(bar ? 220 : static_cast<uint8_t>(y));
        pixels.push_back(bar ? 200 : 90);
      }
    }
    ASSERT_TRUE((*sink)->write(RgbFrame::contiguous(pixels.data(), kWidth, kHeight)).ok());
  }
  ASSERT_TRUE((*sink)->finish().ok());
}

// A build without FFmpeg has y4m alone.
bool writes_mp4() {
  SinkOptions options;
  options.path = (std::filesystem::temp_directory_path() / "ultraflash-mp4-probe.mp4").string();
  const bool writes = open_sink(options, {64, 48, 24, 1}).ok();
  std::filesystem::remove(options.path);
  return writes;
}

std::filesystem::path fill(const TrainingFolder& folder) {
  const std::filesystem::path videos = folder / "videos";
  std::filesystem::create_directories(videos);
  for (int i = 0; i < 6; ++i) {
    const std::string name = "videos/clip" + std::to_string(i);
    write_video(folder / (name + (i % 2 == 1 && writes_mp4() ? ".mp4" : ".y4m")), i, 60);
    folder.write(name + ".txt", "a bar number " + std::to_string(i));
  }
  write_video(folder / "videos/short.y4m", 1, 5);
  folder.write("videos/short.txt", "too short");
  folder.write("videos/broken.y4m", "YUV4MPEG2");
  folder.write("videos/broken.txt", "broken");
  return videos;
}

TrainSummary run(const TrainOptions& options) {
  const Result<TrainSummary> summary = run_training(options);
  EXPECT_TRUE(summary.ok()) << summary.status().message();
  return summary.ok() ? *summary : TrainSummary{};
}

// The weights of a run that stops in the middle and of one that does not.
void expect_resumes(TrainOptions options, const TrainingFolder& folder) {
  options.steps = 4;
  options.out = folder / "whole";
  const TrainSummary whole = run(options);
  options.out = folder / "halves";
  options.stop_after = 2;
  run(options);
  options.stop_after = -1;
  options.resume = true;
  const TrainSummary resumed = run(options);
  ASSERT_FALSE(whole.weights.empty());
  ASSERT_EQ(whole.weights.size(), resumed.weights.size());
  for (size_t i = 0; i < whole.weights.size(); ++i) {
    const Result<Checkpoint> a = Checkpoint::open(whole.weights[i]);
    const Result<Checkpoint> b = Checkpoint::open(resumed.weights[i]);
    ASSERT_TRUE(a.ok() && b.ok());
    for (const TensorEntry& entry : a->entries()) {
      const TensorEntry* other = b->find(entry.name);
      ASSERT_NE(other, nullptr) << entry.name;
      EXPECT_TRUE(std::equal(entry.bytes.begin(), entry.bytes.end(), other->bytes.begin(),
                             other->bytes.end()))
          << entry.name;
    }
  }
  std::filesystem::remove_all(folder / "halves");
}

TEST(FileClips, EveryStageRunsOnThem) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("clips");
  const std::string source = fill(folder).string();
  const std::string models = (folder / "models").string();
  const std::string init = R"("init": {"autoencoder": ")" + models + R"(", "text_encoder": ")" +
                           models + R"(", "generator": ")" + models + R"(", "real_score": ")" +
                           models + R"("})";
  const auto stage = [&](const std::string& name, const std::string& more) {
    TrainOptions options = folder.stage(name, "models", more);
    options.set = {"data.source=" + source, "data.hold_out=0.2", "flow.sample_clips=1",
                   "autoencoder.eval_clips=1", "autoencoder.eval_frames=8"};
    return options;
  };
  std::vector<std::string> warnings;
  TrainOptions autoencoder = stage("autoencoder", R"("batch": 4, "steps": 3)");
  autoencoder.log = Logger([&](LogLevel level, std::string_view line) {
    if (level == LogLevel::kWarning) warnings.emplace_back(line);
  });
  run(autoencoder);
  int named = 0;
  for (const std::string& line : warnings) {
    named += line.find("short") != std::string::npos || line.find("broken") != std::string::npos;
  }
  EXPECT_GE(named, 1) << "broken files are named";
  expect_resumes(stage("autoencoder", R"("batch": 4)"), folder);
  run(stage("flow_matching",
            R"("batch": 2, "steps": 2, "init": {"autoencoder": ")" + models + R"("})"));
  for (const std::string name : {"flow_matching", "causal", "ode"}) {
    SCOPED_TRACE(name);
    expect_resumes(stage(name, init + R"(, "batch": 2)"), folder);
  }
  for (const std::string loss : {"dmd", "gan"}) {
    SCOPED_TRACE(loss);
    expect_resumes(stage("self_forcing", init + R"(, "batch": 2, "self_forcing": {"loss": ")" +
                                             loss + R"(", "critic_per_generator": 2})"),
                   folder);
  }
}

// What was prepared is what a run would have made, and a stage trains on it.
TEST(Prepare, ClipsAreThoseOfTheRun) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("prepare");
  const std::string source = fill(folder).string();
  const std::string prepared = (folder / "prepared").string();
  TrainOptions options = folder.stage("upsampler", "prepared", R"("batch": 2)");
  options.set = {"data.source=" + source, "data.hold_out=0.2",    "degrade.share=1",
                 "cascade.scales=[2]",    "cascade.eval_clips=2", "bank.captions=2"};
  options.prepare = 5;
  run(options);
  ASSERT_TRUE(std::filesystem::exists(folder / "prepared/training/00004.2x.y4m"));
  ASSERT_TRUE(std::filesystem::exists(folder / "prepared/held-out/00001.y4m"));
  ASSERT_FALSE(std::filesystem::exists(folder / "prepared/training/00005.y4m"));

  const Result<Recipe> recipe = Recipe::find((folder / "recipe.json").string());
  ASSERT_TRUE(recipe.ok());
  TrainContext context;
  const Result<TrainConfig> config = load_train_config(options.config, options.set);
  ASSERT_TRUE(config.ok()) << config.status().message();
  context.config = *config;
  context.recipe = recipe->data();
  ClipWindow window;
  window.scale = 2;
  window.frames = pictures_of(context.recipe, 6);
  window.width = 128;
  window.height = 96;
  const auto clips_of = [&](const std::string& path) {
    context.config.data.source = path;
    Result<std::unique_ptr<TrainingClips>> clips = TrainingClips::open(context, false);
    EXPECT_TRUE(clips.ok()) << clips.status().message();
    return std::move(*clips);
  };
  const std::unique_ptr<TrainingClips> original = clips_of(source);
  const at::Tensor raw = at::empty({window.frames, 96, 128, 3}, at::kByte);
  const at::Tensor stored = at::empty({window.frames, 48, 64, 3}, at::kByte);
  EXPECT_FALSE(original->damaged(0, window, stored.mutable_data_ptr<uint8_t>()));
  std::vector<at::Tensor> expected;  // in the order of the files
  for (int64_t index = 0; index < 5; ++index) {
    original->render(index, window, raw.mutable_data_ptr<uint8_t>());
    expected.push_back(
        degrade::damaged_clip(context, raw.to(at::kFloat).div(255.0), 48, 64, index));
  }
  const std::unique_ptr<TrainingClips> read = clips_of(prepared);
  ASSERT_EQ(read->size(), 5);
  std::set<size_t> found;
  for (int64_t index = 0; index < 5; ++index) {
    ASSERT_TRUE(read->damaged(index, window, stored.mutable_data_ptr<uint8_t>()));
    for (size_t i = 0; i < expected.size(); ++i) {
      const double most =
          (stored.to(at::kFloat).div(255.0) - expected[i]).abs().max().item<double>();
      if (most < 4.0 / 255.0) found.insert(i);
    }
  }
  EXPECT_EQ(found.size(), 5U) << "each clip is that of its number, within the rounding of a file";

  options = folder.stage("upsampler", "out", R"("batch": 2, "steps": 3)");
  options.set = {"data.source=" + prepared,    "degrade.share=1",
                 "cascade.scales=[2]",         "cascade.eval_clips=1",
                 "cascade.eval_frames=4",      "upsampler.degraded_after=0",
                 "upsampler.degraded_share=1", "upsampler.picture_after=2"};
  EXPECT_TRUE(run(options).finished);
}

TEST(FileClips, SayWhenNothingCanBeUsed) {
  const TrainingFolder folder("bad-clips");
  std::filesystem::create_directories(folder / "videos");
  folder.write("videos/a.y4m", "YUV4MPEG2");
  folder.write("videos/a.txt", "a");
  TrainOptions options = folder.stage("autoencoder", "out", R"("batch": 2, "steps": 1)");
  options.set = {"data.source=" + (folder / "videos").string()};
  const Result<TrainSummary> summary = run_training(options);
  EXPECT_EQ(summary.status().code(), StatusCode::kMalformed) << summary.status().message();
  EXPECT_NE(summary.status().message().find("none of 1 videos"), std::string::npos);
  options.set = {"data.source=/nonexistent/folder"};
  EXPECT_EQ(run_training(options).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraflash
