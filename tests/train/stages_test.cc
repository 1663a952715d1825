// Every stage at toy size, one after the other as a user would run them: losses fall, a run that
// stops and resumes ends with the bits of one that did not, and the files that come out load into
// the inference engine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tiny_training.h"
#include "train/train.h"
#include "ultraflash/engine.h"
#include "ultraflash/recipe.h"
#include "weights/checkpoint.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

// Values of one measure of the log, in order. The text is "loss 0.01  l1 0.02 ...".
struct Losses {
  std::vector<double> values;
  std::string name;

  void attach(TrainOptions& options) {
    options.progress = [this](const TrainProgress& p) {
      const std::string key = name + " ";
      size_t place = p.text.find(key);
      while (place != std::string::npos && place > 0 && p.text[place - 1] != ' ') {
        place = p.text.find(key, place + 1);
      }
      if (place != std::string::npos)
        values.push_back(std::stod(p.text.substr(place + key.size())));
      return true;
    };
  }
  [[nodiscard]] double mean(size_t begin, size_t end) const {
    double sum = 0.0;
    for (size_t i = begin; i < end; ++i) sum += values[i];
    return sum / static_cast<double>(end - begin);
  }
  [[nodiscard]] double first_third() const { return mean(0, values.size() / 3); }
  [[nodiscard]] double last_third() const {
    return mean(values.size() - values.size() / 3, values.size());
  }
};

TrainSummary run(const TrainOptions& options) {
  const Result<TrainSummary> summary = run_training(options);
  EXPECT_TRUE(summary.ok()) << summary.status().message();
  return summary.ok() ? *summary : TrainSummary{};
}

void expect_same_weights(const std::filesystem::path& a, const std::filesystem::path& b) {
  const Result<Checkpoint> first = Checkpoint::open(a);
  const Result<Checkpoint> second = Checkpoint::open(b);
  ASSERT_TRUE(first.ok()) << first.status().message();
  ASSERT_TRUE(second.ok()) << second.status().message();
  ASSERT_FALSE(first->entries().empty());
  for (const TensorEntry& entry : first->entries()) {
    if (entry.name == "counters") continue;  // has the seconds
    const TensorEntry* other = second->find(entry.name);
    ASSERT_NE(other, nullptr) << entry.name;
    ASSERT_EQ(entry.bytes.size(), other->bytes.size()) << entry.name;
    EXPECT_TRUE(std::equal(entry.bytes.begin(), entry.bytes.end(), other->bytes.begin()))
        << entry.name;
  }
}

// A whole run against one that stops after `half` steps and resumes.
void expect_exact_resume(TrainOptions options, const TrainingFolder& folder, int64_t steps,
                         int64_t half) {
  options.progress = nullptr;
  options.steps = steps;
  options.out = folder / "whole";
  const TrainSummary whole = run(options);
  EXPECT_TRUE(whole.finished);
  options.out = folder / "halves";
  options.stop_after = half;
  EXPECT_FALSE(run(options).finished);
  options.stop_after = -1;
  options.resume = true;
  const TrainSummary resumed = run(options);
  EXPECT_EQ(resumed.step, steps);
  expect_same_weights(whole.checkpoint, resumed.checkpoint);
}

TEST(Config, UnknownFieldsAndValuesOutOfRangeAreNamed) {
  const TrainingFolder folder("config");
  TrainOptions options = folder.stage("autoencoder", "out", R"("optimiser": {"lr": 1})");
  Result<std::string> text = describe_training(options);
  EXPECT_EQ(text.status().code(), StatusCode::kMalformed);
  EXPECT_NE(text.status().message().find("optimiser"), std::string::npos);
  options = folder.stage("autoencoder", "out", R"("batch": 3)");
  options.set = {"autoencoder.crops_per_clip=2"};
  EXPECT_EQ(describe_training(options).status().code(), StatusCode::kInvalidArgument);
  options.set = {"optimizer.lr=0.5", "recipe=pocket"};
  text = describe_training(options);
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_NE(text->find("\"lr\": 0.5"), std::string::npos);
}

TEST(Config, ShippedConfigsAreValid) {
  const char* source = std::getenv("UF_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  // Models, and how many configs they have at least.
  for (const auto& [models, least] :
       std::map<std::string, int>{{"pocket", 5}, {"wan-1.3b", 4}, {"ultra-flash", 8}}) {
    const auto folder = std::filesystem::path(source) / "models" / models / "train";
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().filename() == "recipe.json") continue;
      SCOPED_TRACE(entry.path().string());
      TrainOptions options;
      options.config = entry.path();
      const Result<std::string> text = describe_training(options);
      EXPECT_TRUE(text.ok()) << text.status().message();
      ++count;
    }
    EXPECT_GE(count, least) << models;
  }
}

TEST(Autoencoder, LossFallsAndResumeIsExact) {
  const TrainingFolder folder("autoencoder");
  TrainOptions options =
      folder.stage("autoencoder", "out",
                   R"("batch": 4, "steps": 60, "optimizer": {"lr": 3e-3, "warmup_steps": 5})");
  Losses losses{{}, "loss"};
  losses.attach(options);
  run(options);
  ASSERT_EQ(losses.values.size(), 60U);
  EXPECT_LT(losses.last_third(), 0.7 * losses.first_third());
  expect_exact_resume(options, folder, 7, 3);
}

TEST(Autoencoder, DecoderLearnsAloneWhenTheEncoderIsFrozen) {
  const TrainingFolder folder("frozen_encoder");
  run(folder.stage("autoencoder", "first", R"("batch": 4, "steps": 2)"));
  TrainOptions options = folder.stage("autoencoder", "second", R"("batch": 4, "steps": 3)");
  options.set = {"autoencoder.freeze_encoder=true",
                 "init.autoencoder=" + (folder / "first").string(), "optimizer.lr=0.01"};
  run(options);
  const Result<Checkpoint> first = Checkpoint::open(folder / "first/tiny_autoencoder.safetensors");
  const Result<Checkpoint> second =
      Checkpoint::open(folder / "second/tiny_autoencoder.safetensors");
  ASSERT_TRUE(first.ok()) << first.status().message();
  ASSERT_TRUE(second.ok()) << second.status().message();
  int kept = 0;
  int learnt = 0;
  for (const TensorEntry& entry : first->entries()) {
    const TensorEntry* other = second->find(entry.name);
    ASSERT_NE(other, nullptr) << entry.name;
    const bool same = std::equal(entry.bytes.begin(), entry.bytes.end(), other->bytes.begin());
    if (entry.name.starts_with("encoder.")) {
      EXPECT_TRUE(same) << entry.name;
      ++kept;
    } else {
      learnt += same ? 0 : 1;
    }
  }
  EXPECT_GT(kept, 10);
  EXPECT_GT(learnt, 10);
}

TEST(Stages, FollowEachOtherAndLoadIntoTheEngine) {
  const char* source = std::getenv("UF_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("stages");
  const std::string models = (folder / "models").string();
  const std::string init = R"("init": {"autoencoder": ")" + models + R"(", "text_encoder": ")" +
                           models + R"(", "generator": ")" + models + R"(", "real_score": ")" +
                           models + R"("})";
  run(folder.stage("autoencoder", "models", R"("batch": 4, "steps": 10)"));

  TrainOptions flow =
      folder.stage("flow_matching", "models",
                   R"("batch": 8, "steps": 60, "optimizer": {"lr": 3e-3, "warmup_steps": 5},
         "init": {"autoencoder": ")" +
                       models + R"("})");
  Losses losses{{}, "loss"};
  losses.attach(flow);
  run(flow);
  ASSERT_EQ(losses.values.size(), 60U);
  EXPECT_LT(losses.last_third(), 0.95 * losses.first_third());
  {
    SCOPED_TRACE("flow matching");
    expect_exact_resume(flow, folder, 6, 3);
  }

  for (const std::string mode : {"diffusion_forcing", "teacher_forcing"}) {
    SCOPED_TRACE(mode);
    TrainOptions causal =
        folder.stage("causal", "causal",
                     init + R"(, "batch": 4, "steps": 4, "causal": {"mode": ")" + mode + R"("})");
    expect_exact_resume(causal, folder, 4, 1);
  }
  {
    SCOPED_TRACE("ode");
    TrainOptions ode = folder.stage(
        "ode", "ode", init + R"(, "batch": 4, "steps": 30, "optimizer": {"lr": 1e-3})");
    Losses regression{{}, "loss"};
    regression.attach(ode);
    run(ode);
    EXPECT_LT(regression.last_third(), regression.first_third());
    expect_exact_resume(ode, folder, 5, 2);
  }
  for (const std::string loss : {"dmd", "sid", "gan"}) {
    SCOPED_TRACE(loss);
    TrainOptions forcing =
        folder.stage("self_forcing", "self_forcing",
                     init + R"(, "batch": 2, "steps": 6, "optimizer": {"lr": 1e-4},
                    "self_forcing": {"critic_per_generator": 2, "loss": ")" +
                         loss + R"("})");
    expect_exact_resume(forcing, folder, 6, 3);
  }
  {
    SCOPED_TRACE("clips at the end of streams");
    TrainOptions forcing =
        folder.stage("self_forcing", "self_forcing",
                     init + R"(, "batch": 2, "steps": 4, "optimizer": {"lr": 1e-4},
                    "self_forcing": {"critic_per_generator": 2, "window_frames": 6,
                                     "sink_frames": 3, "stream_frames": 12})");
    expect_exact_resume(forcing, folder, 4, 2);
    forcing.set = {"self_forcing.stream_frames=3"};
    EXPECT_EQ(describe_training(forcing).status().code(), StatusCode::kInvalidArgument);
  }

  // What came out is what the engine reads.
  const Result<Recipe> recipe = Recipe::find((folder / "recipe.json").string());
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  EngineOptions options;
  options.weights_dir = models;
  options.scale = 1;
  std::filesystem::copy_file(std::filesystem::path(source) / "models/pocket/spiece.model",
                             folder / "models/spiece.model");
  const Result<Engine> engine = Engine::load(*recipe, options);
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  EXPECT_FALSE(engine->info().random_weights);
}

// Upsamplers, then the super-resolution transformer that uses them, then its distillation.
TEST(Stages, AboveTheGeneratorFollowEachOther) {
  const TrainingFolder folder("cascade");
  const std::string models = (folder / "models").string();
  // Few clips, seldom replaced: making them small and encoding them takes longer than the steps.
  const std::vector<std::string> few = {"bank.clips=4", "bank.encode_batch=2", "bank.refresh=1"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), few.begin(), few.end());
    return more;
  };
  const std::string small = R"("batch": 2, "steps": 18,
      "optimizer": {"lr": 3e-3, "warmup_steps": 3}, "critic_optimizer": {"lr": 1e-3})";
  for (const std::string scale : {"2", "3"}) {
    SCOPED_TRACE("upsampler " + scale);
    TrainOptions upsampler = folder.stage("upsampler", "models", small);
    upsampler.set = with({"cascade.scales=[" + scale + "]", "degrade.share=0.5",
                          "upsampler.picture_clips=1", "upsampler.picture_frames=1"});
    Losses distance{{}, "distance"};
    distance.attach(upsampler);
    run(upsampler);
    ASSERT_EQ(distance.values.size(), 18U);
    EXPECT_LT(distance.last_third(), 0.95 * distance.first_third());
    if (scale == "2") expect_exact_resume(upsampler, folder, 4, 2);
  }
  {
    SCOPED_TRACE("large decoder");
    TrainOptions decoder = folder.stage("autoencoder", "models", R"("batch": 2, "steps": 8)");
    decoder.set = {"autoencoder.scale=2",     "autoencoder.data_scales=[2,3]",
                   "autoencoder.detail=2",    "autoencoder.object_crops=0.5",
                   "autoencoder.teacher=0.5", "autoencoder.upsampled_share=0.5",
                   "init.upsampler=" + models};
    expect_exact_resume(decoder, folder, 4, 2);
    decoder.out = models;
    run(decoder);
    EXPECT_TRUE(std::filesystem::exists(folder / "models/ultra_decoder.safetensors"));
  }
  {
    SCOPED_TRACE("sr");
    TrainOptions sr = folder.stage("sr", "models", small);
    sr.set = with({"init.upsampler=" + models, "init.decoder=" + models, "sr.guided_share=0.5"});
    Losses loss{{}, "loss"};
    loss.attach(sr);
    run(sr);
    ASSERT_EQ(loss.values.size(), 18U);
    EXPECT_LT(loss.last_third(), 0.97 * loss.first_third());
    expect_exact_resume(sr, folder, 4, 2);
  }
  for (const std::string weight : {"0", "1"}) {
    SCOPED_TRACE("sr_sparse, dmd " + weight);
    TrainOptions sparse = folder.stage("sr_sparse", "sparse", small);
    sparse.set = with({"init.upsampler=" + models, "init.refiner=" + models,
                       "sr_sparse.group_frames=[2]", "sr_sparse.critic_per_student=2",
                       "sr_sparse.dmd=" + weight, "sr_sparse.stream_share=0.5",
                       "sr_sparse.picture_clips=1", "sr_sparse.picture_frames=1"});
    Losses latent{{}, "latent"};
    latent.attach(sparse);
    std::set<std::string> learnt;  // scales
    sparse.progress = [&, inner = sparse.progress](const TrainProgress& p) {
      for (const std::string name : {"latent_2x", "latent_3x"}) {
        if (p.text.find(name) != std::string::npos) learnt.insert(name);
      }
      return inner(p);
    };
    run(sparse);
    ASSERT_GE(latent.values.size(), 5U);
    EXPECT_EQ(learnt.size(), 2U) << "both scales have their turns";
    EXPECT_LT(latent.last_third(), 1.05 * latent.first_third());
    expect_exact_resume(sparse, folder, 4, 2);
  }
}

TEST(Stages, PreferenceOnStreamsOfTheWholeCascade) {
  const TrainingFolder folder("preference");
  const std::string models = (folder / "models").string();
  // The networks that it begins with, hardly trained.
  const std::string brief = R"("batch": 2, "steps": 2)";
  const std::vector<std::string> few = {"bank.clips=2", "bank.encode_batch=2",
                                        "cascade.scales=[2]"};
  for (const std::string stage : {"upsampler", "sr"}) {
    TrainOptions options = folder.stage(stage, "models", brief);
    options.set = few;
    if (stage == "sr") options.set.push_back("init.upsampler=" + models);
    run(options);
  }
  {
    SCOPED_TRACE("reward");
    TrainOptions reward =
        folder.stage("reward", "models", R"("batch": 16, "steps": 60, "degrade": {"share": 1},
                     "optimizer": {"lr": 3e-3, "warmup_steps": 3})");
    reward.set = few;
    reward.set.insert(reward.set.end(),
                      {"init.upsampler=" + models, "bank.latent_frames=3", "bank.refresh=0",
                       "reward.widths=[8,12]", "reward.crop=32", "cascade.eval_frames=1"});
    Losses loss{{}, "loss"};
    loss.attach(reward);
    run(reward);
    ASSERT_EQ(loss.values.size(), 60U);
    EXPECT_LT(loss.last_third(), 0.97 * loss.first_third());
    expect_exact_resume(reward, folder, 4, 2);
  }
  const std::vector<std::string> rewarded = {
      "init.reward=" + models,   "init.judge=" + models, "reward.widths=[8,12]", "reward.crop=32",
      "reward_term.weight=0.05", "cascade.eval_clips=1", "cascade.eval_frames=4"};
  {
    SCOPED_TRACE("sr_sparse with a reward");
    TrainOptions sparse = folder.stage("sr_sparse", "sparse", R"("batch": 2, "steps": 6)");
    sparse.set = few;
    sparse.set.insert(sparse.set.end(), rewarded.begin(), rewarded.end());
    sparse.set.insert(sparse.set.end(),
                      {"init.upsampler=" + models, "init.refiner=" + models, "reward_term.from=0.4",
                       "sr_sparse.group_frames=[2]", "sr_sparse.picture_clips=1",
                       "sr_sparse.picture_frames=1", "sr_sparse.adaptation=0"});
    Losses score{{}, "reward"};
    score.attach(sparse);
    run(sparse);
    EXPECT_EQ(score.values.size(), 6U);
    sparse.set.push_back("cascade.eval_clips=0");
    expect_exact_resume(sparse, folder, 6, 3);
  }
  TrainOptions options =
      folder.stage("preference", "out",
                   R"("batch": 2, "steps": 12, "optimizer": {"lr": 1e-3, "warmup_steps": 1},
         "critic_optimizer": {"lr": 1e-3})");
  options.set = {
      "bank.latent_frames=12",         "cascade.scales=[2]",         "preference.groups=2",
      "preference.group_frames=[3,6]", "preference.rollouts=4",      "preference.make_batch=2",
      "preference.refresh_every=3",    "preference.teacher_steps=2", "preference.start_share=0.6",
      "preference.judge_margin=-100",  "preference.consistency=100", "preference.eval_rollouts=2",
      "init.upsampler=" + models,      "init.refiner=" + models,     "init.real_score=" + models};
  options.set.insert(options.set.end(), rewarded.begin(), rewarded.end());
  Losses kept{{}, "kept"};
  kept.attach(options);
  run(options);
  ASSERT_GE(kept.values.size(), 5U);
  EXPECT_EQ(kept.mean(0, kept.values.size()), 100.0);  // with these limits every pair counts
  EXPECT_TRUE(std::filesystem::exists(folder / "out/sr_dit.safetensors"));
  options.set.push_back("cascade.eval_clips=0");
  expect_exact_resume(options, folder, 5, 2);
  // A judge that is never satisfied leaves no pair.
  options.set.push_back("preference.judge_margin=100");
  options.steps = 2;
  Losses none{{}, "kept"};
  none.attach(options);
  run(options);
  ASSERT_GE(none.values.size(), 1U);
  EXPECT_EQ(none.mean(0, none.values.size()), 0.0);
  options.set.push_back("init.real_score=");
  EXPECT_EQ(run_training(options).status().code(), StatusCode::kInvalidArgument);
  options.set.push_back("bank.latent_frames=6");
  EXPECT_EQ(describe_training(options).status().code(), StatusCode::kInvalidArgument);
}

TEST(Training, SaysWhatIsMissing) {
  const TrainingFolder folder("missing");
  TrainOptions options =
      folder.stage("flow_matching", "out", R"("init": {"autoencoder": "/nonexistent/folder"})");
  const Result<TrainSummary> summary = run_training(options);
  EXPECT_EQ(summary.status().code(), StatusCode::kNotFound) << summary.status().message();
  options.device = "tpu";
  EXPECT_EQ(run_training(options).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultraflash
