// Preference optimisation: its loss, the streams it learns on, and cache management in rollouts.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ops/autograd/torch_tensor.h"
#include "tiny_training.h"
#include "train/calibration.h"
#include "train/cascade.h"
#include "train/distillation.h"
#include "train/refiner_stream.h"
#include "train/rollout.h"
#include "train/rollout_bank.h"
#include "train/train.h"
#include "training_context.h"

namespace ultraflash {
namespace {

using testing::make_context;
using testing::relative;
using testing::TrainingFolder;

// ultra-flash-training section 7.
TEST(PreferenceLoss, IsLogTwoAtTheReferenceAndPushesTowardsTheBetterResult) {
  at::manual_seed(1);
  constexpr double kBeta = 1000.0;
  const at::Tensor reference = at::randn({3, 2, 4, 6, 16});
  const at::Tensor better = reference + 0.3 * at::randn_like(reference);
  const at::Tensor x = reference.clone().set_requires_grad(true);
  const at::Tensor worse = x.detach();  // its own rollout
  const at::Tensor loss =
      preference_loss(PreferenceErrors::at_start(x, reference, better, worse), kBeta);
  EXPECT_EQ(loss.sizes(), (std::vector<int64_t>{3}));
  EXPECT_NEAR(loss.min().item<double>(), std::log(2.0), 1e-5);
  EXPECT_NEAR(loss.max().item<double>(), std::log(2.0), 1e-5);
  loss.sum().backward();
  const double count = 2.0 * 4.0 * 6.0 * 16.0;
  EXPECT_LE(relative(x.grad(), -0.5 * kBeta / count * (better - worse)), 1e-4);
}

TEST(PreferenceLoss, CollapsesToAProductAtSigmaOne) {
  at::manual_seed(2);
  constexpr double kBeta = 40.0;
  const auto options = at::TensorOptions(at::kDouble);
  const at::Tensor reference = at::randn({4, 2, 3, 3, 16}, options);
  const at::Tensor x = reference + 0.1 * at::randn_like(reference);
  const at::Tensor better = at::randn_like(reference);
  const at::Tensor worse = at::randn_like(reference);
  const PreferenceErrors errors = PreferenceErrors::at_start(x, reference, better, worse);
  const at::Tensor product = ((x - reference) * (better - worse)).mean({1, 2, 3, 4});
  EXPECT_LE(relative(preference_loss(errors, kBeta), -at::log_sigmoid(kBeta * product)), 1e-10);
  EXPECT_TRUE(at::equal(errors.bracket() < 0.0, product > 0.0));
}

TEST(RefinerStream, LooksAheadWithoutMoving) {
  const TrainingFolder folder("refiner_stream");
  TrainContext context = make_context((folder / "recipe.json").string());
  context.config.cascade.scales = {2};
  const Result<Refiner> refiner = Refiner::open(context, "", /*trainable=*/false);
  ASSERT_TRUE(refiner.ok()) << refiner.status().message();
  const at::NoGradGuard no_grad;
  const RefinerNetwork& network = refiner->at(2);
  const TextKv text = network.text(context, from_torch(at::randn({2, 32, 32})));
  const at::Tensor noise = at::randn({2, 8, 12, 16, 16});
  const at::Tensor y = at::randn({2, 8, 12, 16, 16});
  const at::Tensor whole = refine_stream(context, network, text, noise, y, 4, 2, KvSchedule::kFull);
  RefinerStream stream(context, network, text, y, 4, 2);
  const at::Tensor first = stream.next(noise.narrow(1, 0, 4), y.narrow(1, 0, 4), 2);
  const std::vector<double> ones = {1.0, 1.0};
  const at::Tensor seen =
      noise.narrow(1, 4, 4) - stream.flow(noise.narrow(1, 4, 4), y.narrow(1, 4, 4), ones);
  // Other levels in between change nothing.
  (void)stream.flow(noise.narrow(1, 4, 4), y.narrow(1, 4, 4), {0.3, 0.6});
  const at::Tensor second = stream.next(noise.narrow(1, 4, 4), y.narrow(1, 4, 4), 2);
  EXPECT_TRUE(at::equal(seen, second));
  EXPECT_TRUE(at::equal(at::cat({first, second}, 1), whole));
  // A cache of one block of the two gives another second group and the same first one.
  const at::Tensor one = refine_stream(context, network, text, noise, y, 4, 2, KvSchedule::kOne);
  EXPECT_TRUE(at::equal(one.narrow(1, 0, 4), first));
  EXPECT_GT(relative(one.narrow(1, 4, 4), second), 1e-6);

  std::vector<int64_t> lengths;
  for (int64_t group = 0; group < 6; ++group) {
    lengths.push_back(kv_len_of(KvSchedule::kDecaying, group, 3));
  }
  EXPECT_EQ(lengths, (std::vector<int64_t>{3, 3, 3, 2, 1, 1}));
  EXPECT_EQ(kv_len_of(KvSchedule::kOne, 0, 3), 1);
  EXPECT_EQ(kv_len_of(KvSchedule::kFull, 9, 3), 3);
}

TEST(Refiner, GuidanceOneIsPlainSamplingAndShortChunksAreFilled) {
  const TrainingFolder folder("guided");
  TrainContext context = make_context((folder / "recipe.json").string());
  context.config.cascade.scales = {2};
  const Result<Refiner> refiner = Refiner::open(context, "", /*trainable=*/false);
  ASSERT_TRUE(refiner.ok()) << refiner.status().message();
  const at::NoGradGuard no_grad;
  const RefinerNetwork& network = refiner->at(2);
  const Tensor embeddings = from_torch(at::randn({2, 32, 32}));
  const Tensor none = from_torch(at::randn({2, 32, 32}));
  const TextKv text = network.text(context, embeddings);
  const at::Tensor noise = at::randn({2, 3, 12, 16, 16});  // chunks have two frames
  const at::Tensor y = at::randn({2, 3, 12, 16, 16});
  const at::Tensor plain = network.sample(context, noise, y, text, 3, 3.0);
  EXPECT_LE(
      relative(network.sample_guided(context, noise, y, embeddings, none, 3, 3.0, 1.0), plain),
      1e-5);
  EXPECT_GT(
      relative(network.sample_guided(context, noise, y, embeddings, none, 3, 3.0, 3.0), plain),
      1e-4);
  const auto filled = [](const at::Tensor& x) { return at::cat({x, x.narrow(1, 2, 1)}, 1); };
  const std::vector<double> sigmas = {0.5, 0.9};
  const at::Tensor v = network.dense(context, noise, y, sigmas, text);
  EXPECT_EQ(v.size(1), 3);
  EXPECT_LE(
      relative(v, network.dense(context, filled(noise), filled(y), sigmas, text).narrow(1, 0, 3)),
      1e-6);
}

// Two streams, of which the second goes without context passes: each is what it would be in a batch
// of its kind.
TEST(Rollout, EachStreamHasItsOwnCacheManagement) {
  const TrainingFolder folder("managed");
  TrainContext context = make_context((folder / "recipe.json").string());
  context.config.bank.latent_frames = 12;
  const Result<GeneratorNetwork> generator = GeneratorNetwork::open(context, "", false);
  ASSERT_TRUE(generator.ok()) << generator.status().message();
  const Result<RolloutPlan> plan = stream_plan(context);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->window_frames, 6);
  const at::NoGradGuard no_grad;
  const at::Tensor noise = at::randn({2, 12, 6, 8, 16});
  const Tensor embeddings = from_torch(at::randn({2, 32, 32}));
  const auto rolled = [&](const CacheSettings& settings) {
    context.seed_step(7);
    return roll_out_whole(context, *generator, *plan, noise, embeddings, settings);
  };
  const at::Tensor refreshed = rolled({});
  CacheSettings never;
  never.without_context = [](int64_t, const at::Tensor&, bool& all) {
    all = true;
    return at::Tensor();
  };
  const at::Tensor skipped = rolled(never);
  CacheSettings second;
  int64_t asked = 0;
  second.without_context = [&](int64_t chunk, const at::Tensor& clean, bool&) {
    EXPECT_GT(chunk, 0);
    EXPECT_EQ(clean.size(1), 3);
    ++asked;
    return at::tensor({0, 1}).to(at::kBool);
  };
  const at::Tensor mixed = rolled(second);
  EXPECT_EQ(asked, 2);  // not after the first chunk, nor after the last
  EXPECT_LE(relative(mixed[0], refreshed[0]), 1e-5);
  EXPECT_LE(relative(mixed[1], skipped[1]), 1e-5);
  EXPECT_LE(relative(mixed.narrow(1, 0, 6), refreshed.narrow(1, 0, 6)), 1e-5);
  EXPECT_GT(relative(skipped[1].narrow(0, 6, 6), refreshed[1].narrow(0, 6, 6)), 1e-3);

  // Fewer steps change later chunks alone.
  CacheSettings fewer;
  fewer.later_steps = {0, 2, 3};
  const at::Tensor quick = rolled(fewer);
  EXPECT_TRUE(at::equal(quick.narrow(1, 0, 3), refreshed.narrow(1, 0, 3)));
  EXPECT_GT(relative(quick.narrow(1, 3, 3), refreshed.narrow(1, 3, 3)), 1e-3);
}

TEST(Calibration, SlopeIsThatOfTheLine) {
  EXPECT_DOUBLE_EQ(slope_of({1.0, 3.0, 5.0, 7.0}), 2.0);
  EXPECT_NEAR(slope_of({1.0, 0.0, 1.0, 0.0, 1.0}), 0.0, 1e-12);
  EXPECT_NEAR(slope_of({0.0, 1.0, 0.0, 1.0}), 0.2, 1e-12);
}

TEST(Calibration, WritesWhatEachThresholdChangesAndSaves) {
  const TrainingFolder folder("calibration");
  TrainOptions options = folder.stage("preference", "calibration", "");
  options.calibrate = true;
  options.set = {"bank.latent_frames=12",     "preference.groups=2", "preference.eval_rollouts=3",
                 "preference.drift_groups=3", "cascade.scales=[2]",  "reward.crop=32"};
  const Result<TrainSummary> summary = run_training(options);
  ASSERT_TRUE(summary.ok()) << summary.status().message();
  std::ifstream file(folder / "calibration/cache_management.json");
  const nlohmann::json json = nlohmann::json::parse(file);
  const nlohmann::json& rows = json.at("thresholds");
  ASSERT_EQ(rows.size(), 5U);
  double last_share = -1.0;
  for (const nlohmann::json& row : rows) {
    const double share = row.at("skipped").get<double>();
    EXPECT_GE(share, last_share);  // lower thresholds skip more
    last_share = share;
    EXPECT_GE(row.at("drift_change").get<double>(), 0.0);
    EXPECT_EQ(row.at("within_limit").get<bool>() &&
                  row.at("threshold").get<double>() < json.at("refresh_threshold").get<double>(),
              false);
  }
  EXPECT_GT(last_share, 0.9);
  ASSERT_EQ(json.at("shrinking_cache").size(), 1U);
  EXPECT_GE(json.at("shrinking_cache")[0].at("dissimilarity").get<double>(), 0.0);
}

}  // namespace
}  // namespace ultraflash
