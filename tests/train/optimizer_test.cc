// The parts of a training step on numbers that can be worked out by hand.
#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tiny_training.h"
#include "train/distillation.h"
#include "train/state.h"
#include "weights/parameter_source.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

std::shared_ptr<ParameterSet> two_parameters() {
  auto set = std::make_shared<ParameterSet>(at::kCPU, /*trainable=*/true);
  RandomSource random(7);
  set->bind_from(&random);
  (void)set->find({"matrix", {3, 5}, ParameterInit::normal(1.0F), false});
  (void)set->find({"vector", {5}, ParameterInit::normal(1.0F), false});
  set->bind_from(nullptr);
  return set;
}

OptimizerConfig plain_config() {
  OptimizerConfig config;
  config.lr = 0.1;
  config.beta1 = 0.9;
  config.beta2 = 0.99;
  config.weight_decay = 0.5;
  config.clip_norm = 0.0;
  return config;
}

TEST(AdamW, TwoStepsFollowTheFormula) {
  const auto set = two_parameters();
  Optimizer adam(*set, plain_config());
  const std::vector<at::Tensor> start = {set->leaves()[0].detach().clone(),
                                         set->leaves()[1].detach().clone()};
  const std::vector<double> gradients = {0.25, -2.0};
  for (const double g : gradients) {
    for (const at::Tensor& leaf : set->leaves()) leaf.mutable_grad() = at::full_like(leaf, g);
    adam.step(0.1);
  }
  for (size_t p = 0; p < 2; ++p) {
    const double decay = p == 0 ? 0.5 : 0.0;  // vectors are not decayed
    for (int64_t i = 0; i < start[p].numel(); ++i) {
      double x = start[p].reshape({-1})[i].item<double>();
      double m = 0.0;
      double v = 0.0;
      for (int step = 1; step <= 2; ++step) {
        const double g = gradients[static_cast<size_t>(step) - 1];
        x *= 1.0 - 0.1 * decay;
        m = 0.9 * m + 0.1 * g;
        v = 0.99 * v + 0.01 * g * g;
        x -= 0.1 * (m / (1.0 - std::pow(0.9, step))) /
             (std::sqrt(v / (1.0 - std::pow(0.99, step))) + 1e-8);
      }
      EXPECT_NEAR(set->leaves()[p].reshape({-1})[i].item<double>(), x, 1e-5);
    }
  }
  EXPECT_FALSE(set->leaves()[0].grad().defined());
}

TEST(AdamW, ANonFiniteGradientChangesNothing) {
  const auto set = two_parameters();
  Optimizer adam(*set, plain_config());
  const at::Tensor before = set->leaves()[0].detach().clone();
  set->leaves()[0].mutable_grad() =
      at::full_like(set->leaves()[0], std::numeric_limits<double>::infinity());
  set->leaves()[1].mutable_grad() = at::ones_like(set->leaves()[1]);
  adam.step(0.1);
  EXPECT_TRUE(at::equal(set->leaves()[0].detach(), before));
  EXPECT_EQ(adam.updates().item<float>(), 0.0F);
  EXPECT_TRUE(at::equal(adam.second_moments()[1], at::zeros({5})));
}

std::shared_ptr<ParameterSet> block_parameters() {
  auto set = std::make_shared<ParameterSet>(at::kCPU, /*trainable=*/true);
  RandomSource random(7);
  set->bind_from(&random);
  (void)set->find({"blocks.0.q.weight", {6, 6}, ParameterInit::normal(1.0F), false});
  (void)set->find({"blocks.0.ffn.weight", {10, 6}, ParameterInit::normal(1.0F), false});
  (void)set->find({"blocks.1.q.weight", {6, 6}, ParameterInit::normal(1.0F), false});
  (void)set->find({"head.weight", {4, 6}, ParameterInit::normal(1.0F), false});
  (void)set->find({"blocks.0.q.bias", {6}, ParameterInit::normal(1.0F), false});
  set->bind_from(nullptr);
  return set;
}

TEST(Muon, OrthogonalizedHasEqualSingularValuesAndTheSameVectors) {
  at::manual_seed(3);
  for (const auto& [rows, columns] : {std::pair{8, 8}, {5, 12}, {12, 5}}) {
    const at::Tensor x = at::randn({3, rows, columns}, at::kDouble);
    const at::Tensor y = orthogonalized(x);
    const at::Tensor s = at::linalg_svdvals(y);
    EXPECT_GT(s.min().item<double>(), 0.4);
    EXPECT_LT(s.max().item<double>(), 1.3);
    // U V^T of x shares its singular vectors, so U^T y V is diagonal.
    const auto [u, sigma, vt] = at::linalg_svd(x, /*full_matrices=*/false);
    const at::Tensor inner = at::matmul(at::matmul(u.transpose(1, 2), y), vt.transpose(1, 2));
    const at::Tensor off = inner - at::diag_embed(at::diagonal(inner, 0, 1, 2));
    EXPECT_LT(off.abs().max().item<double>(), 1e-6);
  }
}

TEST(Muon, MovesMatricesOfBlocksByTheRuleAndTheRestAsAdamW) {
  at::manual_seed(4);
  const auto set = block_parameters();
  const auto plain = block_parameters();
  OptimizerConfig config = plain_config();
  Optimizer adam(*plain, config);
  config.rule = OptimizerRule::kMuon;
  config.matrix_lr = 0.5;
  Optimizer muon(*set, config);
  std::vector<at::Tensor> expected, momentum;
  for (const at::Tensor& leaf : set->leaves()) {
    expected.push_back(leaf.detach().clone());
    momentum.push_back(at::zeros_like(expected.back()));
  }
  for (int step = 0; step < 3; ++step) {
    for (size_t i = 0; i < expected.size(); ++i) {
      const at::Tensor g = at::randn(expected[i].sizes());
      set->leaves()[i].mutable_grad() = g.clone();
      plain->leaves()[i].mutable_grad() = g.clone();
      if (i > 2) continue;
      momentum[i] = 0.95 * momentum[i] + 0.05 * g;
      const at::Tensor u = orthogonalized((0.05 * g + 0.95 * momentum[i]).unsqueeze(0)).squeeze(0);
      const double scale = 0.2 * std::sqrt(i == 1 ? 10.0 : 6.0);
      expected[i] = expected[i] * (1.0 - 0.05 * 0.5) - 0.05 * scale * u;
    }
    muon.step(0.1);
    adam.step(0.1);
  }
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(at::allclose(set->leaves()[i], expected[i], 1e-4, 1e-5)) << i;
    EXPECT_TRUE(at::allclose(muon.first_moments()[i], momentum[i], 1e-5, 1e-6)) << i;
  }
  for (size_t i = 3; i < 5; ++i) EXPECT_TRUE(at::equal(set->leaves()[i], plain->leaves()[i])) << i;
}

TEST(Muon, ANonFiniteGradientChangesNothing) {
  const auto set = block_parameters();
  OptimizerConfig config = plain_config();
  config.rule = OptimizerRule::kMuon;
  Optimizer muon(*set, config);
  std::vector<at::Tensor> before;
  for (const at::Tensor& leaf : set->leaves()) {
    before.push_back(leaf.detach().clone());
    leaf.mutable_grad() = at::full_like(leaf, std::numeric_limits<float>::infinity());
  }
  muon.step(0.1);
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(at::equal(set->leaves()[i], before[i])) << i;
    EXPECT_EQ(muon.first_moments()[i].abs().max().item<float>(), 0.0F) << i;
  }
}

TEST(AdamW, ClipsByTheNormOverAllParameters) {
  const auto set = two_parameters();
  OptimizerConfig config = plain_config();
  config.clip_norm = 1.0;
  Optimizer adam(*set, config);
  for (const at::Tensor& leaf : set->leaves()) leaf.mutable_grad() = at::ones_like(leaf);
  EXPECT_NEAR(adam.step(0.1).item<float>(), std::sqrt(20.0F), 1e-5F);
  // The first moment is 0.1 of the clipped gradient, 1 / sqrt(20) everywhere.
  EXPECT_NEAR(adam.first_moments()[0][0][0].item<float>(), 0.1F / std::sqrt(20.0F), 1e-6F);
}

TEST(WeightAverage, FollowsTheWeights) {
  const auto set = two_parameters();
  EmaConfig config;
  config.decay = 0.75;
  config.start_step = 1;
  config.ramp = false;
  WeightAverage average(*set, config);
  {
    const at::NoGradGuard no_grad;
    set->leaves()[1].fill_(1.0);
    average.update(*set, 0);  // before the start: a copy
    EXPECT_TRUE(at::equal(average.values()[1], at::ones({5})));
    set->leaves()[1].fill_(5.0);
  }
  average.update(*set, 1);
  EXPECT_TRUE(at::allclose(average.values()[1], at::full({5}, 2.0)));
}

TEST(LearningRate, WarmsUpAndEndsWhereTheCosineEnds) {
  OptimizerConfig config;
  config.warmup_steps = 10;
  config.final_lr_ratio = 0.25;
  EXPECT_DOUBLE_EQ(learning_rate_factor(config, 0, 0.0), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate_factor(config, 10, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_factor(config, 99, 0.5), 0.625);
  EXPECT_DOUBLE_EQ(learning_rate_factor(config, 99, 1.0), 0.25);
}

TrainedSet a_trained_set() {
  TrainedSet set;
  set.name = "network";
  set.parameters = two_parameters();
  OptimizerConfig config = plain_config();
  const EmaConfig ema;
  set.begin(config, &ema);
  for (int i = 0; i < 3; ++i) {
    for (const at::Tensor& leaf : set.parameters->leaves()) {
      leaf.mutable_grad() = at::sin(leaf.detach() * (i + 1));
    }
    set.update(1.0);
  }
  return set;
}

TEST(State, ExactCheckpointsGiveBackEveryBit) {
  const TrainingFolder folder("state");
  TrainedSet saved = a_trained_set();
  const auto path = save_state(folder / "", {&saved}, {3, 1.5}, /*compact=*/false);
  ASSERT_TRUE(path.ok()) << path.status().message();
  EXPECT_EQ(newest_state(folder / ""), *path);
  TrainedSet loaded;
  loaded.name = "network";
  loaded.parameters = two_parameters();
  const EmaConfig ema;
  loaded.begin(plain_config(), &ema);
  RunCounters counters;
  const Status status = load_state(*path, {&loaded}, counters);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(counters.step, 3);
  EXPECT_EQ(counters.seconds, 1.5);
  EXPECT_EQ(loaded.updates, 3);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(at::equal(loaded.parameters->leaves()[i], saved.parameters->leaves()[i]));
    EXPECT_TRUE(at::equal(loaded.average->values()[i], saved.average->values()[i]));
    EXPECT_TRUE(
        at::equal(loaded.optimizer->first_moments()[i], saved.optimizer->first_moments()[i]));
    EXPECT_TRUE(
        at::equal(loaded.optimizer->second_moments()[i], saved.optimizer->second_moments()[i]));
  }
}

TEST(State, CompactCheckpointsAreCloseAndRefuseAnotherNetwork) {
  const TrainingFolder folder("compact");
  TrainedSet saved = a_trained_set();
  const auto path = save_state(folder / "", {&saved}, {3, 1.5}, /*compact=*/true);
  ASSERT_TRUE(path.ok()) << path.status().message();
  TrainedSet loaded;
  loaded.name = "network";
  loaded.parameters = two_parameters();
  const EmaConfig ema;
  loaded.begin(plain_config(), &ema);
  RunCounters counters;
  ASSERT_TRUE(load_state(*path, {&loaded}, counters).ok());
  for (size_t i = 0; i < 2; ++i) {
    // bf16 average plus an 8-bit difference: half a unit of bf16 at most, far less where it is
    // near.
    EXPECT_TRUE(at::allclose(loaded.parameters->leaves()[i], saved.parameters->leaves()[i],
                             /*rtol=*/0.01, /*atol=*/0.01));
    // The root in 4 bits, steps of half an octave: resume_test.cc has the limits.
    EXPECT_TRUE(at::allclose(loaded.optimizer->second_moments()[i],
                             saved.optimizer->second_moments()[i], /*rtol=*/0.42, /*atol=*/1e-4));
  }
  loaded.name = "another";
  EXPECT_EQ(load_state(*path, {&loaded}, counters).code(), StatusCode::kNotFound);
}

TEST(Distillation, DmdGradientIsTheScoreDifferenceOverTheDistance) {
  at::Generator(at::globalContext().defaultGenerator(at::kCPU)).set_current_seed(1);
  const at::Tensor x = at::randn({2, 3, 4, 5, 6}).set_requires_grad(true);
  const Scores scores{at::randn({2, 3, 4, 5, 6}), at::randn({2, 3, 4, 5, 6})};
  dmd_loss(x, scores).backward();
  const at::Tensor distance = (x.detach() - scores.real).abs().mean({1, 2, 3, 4}, /*keepdim=*/true);
  const at::Tensor expected = (scores.fake - scores.real) / distance / x.numel();
  EXPECT_TRUE(at::allclose(x.grad(), expected, 1e-4, 1e-9));
}

TEST(Distillation, DmdGradientVanishesWhenTheScoresAgree) {
  const at::Tensor x = at::randn({2, 3, 4, 5, 6}).set_requires_grad(true);
  const at::Tensor score = at::randn({2, 3, 4, 5, 6});
  dmd_loss(x, {score, score}).backward();
  EXPECT_EQ(x.grad().abs().max().item<float>(), 0.0F);
  // Where the rollout is the real score itself, the distance is zero.
  const at::Tensor y = score.clone().set_requires_grad(true);
  dmd_loss(y, {score, score}).backward();
  EXPECT_EQ(y.grad().abs().max().item<float>(), 0.0F);
}

TEST(Distillation, SidReachesXThroughTheScores) {
  const at::Tensor x = at::randn({1, 2, 2, 2, 2}).set_requires_grad(true);
  const at::Tensor real = 0.5 * x;
  const at::Tensor fake = 0.25 * x + 0.1;
  const at::Tensor loss = sid_loss(x, {fake, real}, 1.0);
  const at::Tensor r = real.detach();
  const at::Tensor f = fake.detach();
  const at::Tensor expected =
      ((r - f) * ((r - x.detach()) - (r - f)) / (x.detach() - r).abs().mean()).mean();
  EXPECT_NEAR(loss.item<float>(), expected.item<float>(), 1e-6F);
  loss.backward();
  EXPECT_GT(x.grad().abs().max().item<float>(), 0.0F);
}

}  // namespace
}  // namespace ultraflash
