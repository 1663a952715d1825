// Recordings of steps: their life cycle against a stand-in that knows when it is called, and on a
// GPU whole runs with and without them.
#include "train/step_graph.h"

#include <ATen/ExpandUtils.h>
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/autograd/torch_tensor.h"
#include "tiny_training.h"
#include "train/train.h"
#include "training_context.h"

namespace ultraflash {
namespace {

using testing::make_context;
using testing::TrainingFolder;

// Calls in order, one letter each: Enter, Leave, Begin, enD, Abandon, Replay.
struct Calls {
  std::string letters;
  std::function<void()> again;  // what a replay of the last recording does
};

// On a CPU the body does its work while it is "recorded"; a replay does what the test says.
class StandIn final : public GraphBackend {
 public:
  explicit StandIn(Calls& calls) : calls_(calls) {}
  void enter() override { calls_.letters += 'E'; }
  void leave() override { calls_.letters += 'L'; }
  void begin() override { calls_.letters += 'B'; }
  std::unique_ptr<Recording> end() override {
    calls_.letters += 'D';
    return std::make_unique<Replayed>(calls_, calls_.again);
  }
  void abandon() override { calls_.letters += 'A'; }

 private:
  class Replayed final : public Recording {
   public:
    Replayed(Calls& calls, std::function<void()> again) : calls_(calls), again_(std::move(again)) {}
    void replay() override {
      calls_.letters += 'R';
      again_();
    }

   private:
    Calls& calls_;
    std::function<void()> again_;
  };
  Calls& calls_;
};

std::shared_ptr<ParameterSet> one_vector() {
  auto set = std::make_shared<ParameterSet>(at::kCPU, /*trainable=*/true);
  RandomSource random(3);
  set->bind_from(&random);
  (void)set->find({"vector", {4}, ParameterInit::normal(1.0F), false});
  set->bind_from(nullptr);
  return set;
}

// loss = sum((w x)^2): the gradient is 2 w x^2.
struct Square {
  const ParameterSet& set;
  Calls& calls;
  int64_t runs = 0;

  StepResult operator()(const std::vector<at::Tensor>& inputs) {
    ++runs;
    const at::Tensor& w = set.leaves()[0];
    EXPECT_FALSE(w.grad().defined());
    const at::Tensor x = inputs[0];
    const at::Tensor loss = (w * x).square().sum();
    loss.backward();
    StepResult result;
    result.add("loss", loss);
    result.tensors = {x * 2.0};
    calls.again = [w, x, gradient = w.grad(), kept = result] {
      const at::NoGradGuard no_grad;
      kept.scalars[0].second.copy_((w * x).square().sum());
      kept.tensors[0].copy_(x * 2.0);
      gradient.copy_(at::sum_to(2.0 * w * x * x, w.sizes()));
    };
    return result;
  }
};

at::Tensor numbers(int64_t step, int64_t count) {
  return at::arange(count, at::kFloat) + static_cast<double>(step);
}

// One step of plain descent, as an optimizer does it: gradients are used up and dropped.
void descend(const ParameterSet& set) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& leaf : set.leaves()) {
    leaf.add_(leaf.grad(), -0.001);
    leaf.mutable_grad().reset();
  }
}

TEST(StepGraphs, RunEagerlyThenRecordThenReplay) {
  const TrainContext context = make_context("pocket");
  const auto set = one_vector();
  const auto plain = one_vector();
  Calls calls;
  Calls unused;
  Square body{*set, calls};
  Square plain_body{*plain, unused};
  StepGraphs graphs(context, std::make_unique<StandIn>(calls), /*warm_up=*/2);
  StepGraphs none(context, nullptr);
  EXPECT_TRUE(graphs.records());
  EXPECT_FALSE(none.records());
  for (int64_t step = 0; step < 6; ++step) {
    const at::Tensor x = numbers(step, 4);
    const StepResult got = graphs.run("key", *set, {x}, std::ref(body));
    const StepResult expected = none.run("key", *plain, {x}, std::ref(plain_body));
    ASSERT_EQ(got.scalars.size(), 1U);
    EXPECT_EQ(got.scalars[0].first, "loss");
    EXPECT_TRUE(at::equal(got.scalars[0].second, expected.scalars[0].second)) << step;
    EXPECT_TRUE(at::equal(got.tensors[0], expected.tensors[0])) << step;
    ASSERT_TRUE(set->leaves()[0].grad().defined()) << step;
    EXPECT_TRUE(at::allclose(set->leaves()[0].grad(), plain->leaves()[0].grad())) << step;
    descend(*set);
    descend(*plain);
  }
  EXPECT_EQ(calls.letters, "ELELEBDLRRRR");
  EXPECT_EQ(body.runs, 3);
  EXPECT_EQ(plain_body.runs, 6);
  EXPECT_TRUE(at::allclose(set->leaves()[0], plain->leaves()[0]));
}

TEST(StepGraphs, KeysAndShapesHaveTheirOwn) {
  const TrainContext context = make_context("pocket");
  const auto set = one_vector();
  Calls calls;
  Square body{*set, calls};
  StepGraphs graphs(context, std::make_unique<StandIn>(calls), /*warm_up=*/0);
  const auto loss_of = [&](const std::string& key, const at::Tensor& x) {
    const StepResult result = graphs.run(key, *set, {x}, std::ref(body));
    return result.scalars[0].second.item<float>();
  };
  const at::Tensor row = numbers(1, 4);
  const at::Tensor rows = at::stack({row, row});
  const float loss = loss_of("a", row);
  EXPECT_EQ(calls.letters, "EBDLR");
  EXPECT_FLOAT_EQ(loss_of("b", row), loss);
  EXPECT_EQ(calls.letters, "EBDLREBDLR");
  EXPECT_FLOAT_EQ(loss_of("a", rows), 2.0F * loss);
  EXPECT_EQ(calls.letters, "EBDLREBDLREBDLR");
  // What is there is replayed, each with the inputs of now.
  EXPECT_FLOAT_EQ(loss_of("a", 2.0 * row), 4.0F * loss);
  EXPECT_FLOAT_EQ(loss_of("a", 2.0 * rows), 8.0F * loss);
  EXPECT_FLOAT_EQ(loss_of("b", row), loss);
  EXPECT_EQ(calls.letters, "EBDLREBDLREBDLRRRR");
  EXPECT_EQ(body.runs, 3);
}

TEST(StepGraphs, WhatCannotBeRecordedGoesOnWithout) {
  TrainContext context = make_context("pocket");
  std::vector<std::string> warnings;
  context.log = Logger([&](LogLevel level, std::string_view line) {
    if (level == LogLevel::kWarning) warnings.emplace_back(line);
  });
  const auto set = one_vector();
  Calls calls;
  Square body{*set, calls};
  StepGraphs graphs(context, std::make_unique<StandIn>(calls), /*warm_up=*/1);
  const at::Tensor x = numbers(0, 4);
  (void)graphs.run("good", *set, {x}, std::ref(body));
  (void)graphs.run("good", *set, {x}, std::ref(body));
  EXPECT_EQ(calls.letters, "ELEBDLR");
  const StepGraphs::Body waits = [&](const std::vector<at::Tensor>& inputs) {
    StepResult result = body(inputs);
    if (calls.letters.ends_with('B')) throw std::runtime_error("waited for the device\nat ...");
    return result;
  };
  for (int64_t step = 0; step < 3; ++step) {
    const StepResult result = graphs.run("bad", *set, {numbers(step, 4)}, waits);
    const at::Tensor expected = (set->leaves()[0].detach() * numbers(step, 4)).square().sum();
    EXPECT_TRUE(at::allclose(result.scalars[0].second, expected)) << step;
    EXPECT_TRUE(set->leaves()[0].grad().defined()) << step;
  }
  EXPECT_EQ(calls.letters, "ELEBDLRELEBAL");
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("bad"), std::string::npos) << warnings[0];
  EXPECT_NE(warnings[0].find("(waited for the device)"), std::string::npos) << warnings[0];
  // Recordings of before are made again.
  (void)graphs.run("good", *set, {x}, std::ref(body));
  EXPECT_EQ(calls.letters, "ELEBDLRELEBALEBDLR");
}

TEST(StepGraphs, ConversionsOfWeightsAreMadeAnewWhenAsked) {
  const TrainContext context = make_context("pocket");
  for (const bool trainable : {true, false}) {
    ParameterSet set(at::kCPU, trainable);
    RandomSource random(5);
    set.bind_from(&random);
    const Result<Tensor> weight = set.find({"weight", {3, 4}, ParameterInit::normal(1.0F), false});
    ASSERT_TRUE(weight.ok());
    Linear linear;
    linear.weights = {*weight};
    linear.in_features = 4;
    linear.out_features = 3;
    PrepareOptions options;
    options.compute = DType::kBF16;
    context.ops().prepare(linear, options);
    const Tensor x = from_torch(at::ones({1, 1, 4}, at::kBFloat16));
    const auto output = [&] { return to_torch(context.ops().linear(x, linear)).detach(); };
    const at::Tensor first = output();
    // Behind the version counter's back, as a replay changes what a conversion holds.
    set.leaves()[0].data().mul_(2.0);
    EXPECT_TRUE(at::equal(output(), first));
    drop_conversions(context.ops(), /*frozen=*/false);
    EXPECT_EQ(at::equal(output(), first), !trainable);
    drop_conversions(context.ops(), /*frozen=*/true);
    EXPECT_TRUE(at::equal(output(), 2.0 * first));
  }
}

TEST(ParameterSets, ACopyIsNoPartOfAGraph) {
  const auto trained = one_vector();
  for (const bool trainable : {false, true}) {
    ParameterSet copy(at::kCPU, trainable);
    copy.bind_from(trained.get());
    ASSERT_TRUE(copy.find({"vector", {4}, ParameterInit::normal(1.0F), false}).ok());
    EXPECT_TRUE(copy.leaves()[0].is_leaf());
    EXPECT_EQ(copy.leaves()[0].requires_grad(), trainable);
    EXPECT_TRUE(at::equal(copy.leaves()[0], trained->leaves()[0]));
  }
}

bool has_gpu() {
  try {
    open_torch_device({DeviceType::kCuda, 0});
    return true;
  } catch (const Error& error) {
    return false;
  }
}

// Every loss of the log, in order, and what was said about recordings.
struct Curve {
  std::vector<double> losses;
  std::vector<std::string> lines;
};

Curve curve(TrainOptions options, bool graphs) {
  Curve result;
  options.device = "cuda";
  options.trial = true;
  options.set.push_back(graphs ? "cuda_graphs=true" : "cuda_graphs=false");
  options.log = Logger([&](LogLevel /*level*/, std::string_view line) {
    if (line.find("CUDA graph") != std::string_view::npos) result.lines.emplace_back(line);
  });
  options.progress = [&](const TrainProgress& p) {
    for (const char* name : {"loss ", "fake_loss "}) {
      const size_t place = (" " + p.text).find(std::string(" ") + name);
      if (place == std::string::npos) continue;
      result.losses.push_back(std::stod(p.text.substr(place + std::string(name).size())));
    }
    return true;
  };
  const Result<TrainSummary> summary = run_training(options);
  EXPECT_TRUE(summary.ok()) << summary.status().message();
  return result;
}

// Kernels add in another order from run to run, and a run of optimizer steps makes that grow: the
// first steps agree closely, the last ones roughly.
void expect_same_curve(const TrainOptions& options) {
  const Curve eager = curve(options, /*graphs=*/false);
  const Curve recorded = curve(options, /*graphs=*/true);
  ASSERT_EQ(recorded.lines, std::vector<std::string>{"steps are recorded as CUDA graphs"});
  ASSERT_EQ(eager.losses.size(), recorded.losses.size());
  ASSERT_GE(eager.losses.size(), 16U);
  for (size_t i = 0; i < eager.losses.size(); ++i) {
    const double tolerance = i < 12 ? 0.002 : 0.02;
    EXPECT_NEAR(recorded.losses[i], eager.losses[i], tolerance * eager.losses[i])
        << "step " << i + 1;
  }
}

TEST(StepGraphsOnAGpu, AutoencoderHasTheSameCurve) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: recordings of real steps were not tested";
  const TrainingFolder folder("graphs-autoencoder");
  TrainOptions options = folder.stage("autoencoder", "out", R"("batch": 2, "steps": 24)");
  expect_same_curve(options);
  options.set = {"autoencoder.gan=0.1", "autoencoder.gan_features=0.1", "autoencoder.gan_after=0.3",
                 "autoencoder.gan_critic_after=0.2"};
  expect_same_curve(options);
}

TEST(StepGraphsOnAGpu, UpsamplerHasTheSameCurve) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: recordings of real steps were not tested";
  const TrainingFolder folder("graphs-upsampler");
  TrainOptions options = folder.stage("upsampler", "out", R"("batch": 2, "steps": 24)");
  options.set = {"cascade.scales=[2]", "upsampler.picture_clips=1", "upsampler.picture_frames=1",
                 "upsampler.picture_after=0.5"};
  expect_same_curve(options);
}

TEST(StepGraphsOnAGpu, SuperResolutionHasTheSameCurve) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: recordings of real steps were not tested";
  const TrainingFolder folder("graphs-sr");
  TrainOptions options = folder.stage("sr", "out", R"("batch": 2, "steps": 32)");
  expect_same_curve(options);
}

TEST(StepGraphsOnAGpu, ScoresHaveTheSameCurve) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: recordings of real steps were not tested";
  const TrainingFolder folder("graphs-sparse");
  TrainOptions options = folder.stage("sr_sparse", "out", R"("batch": 2, "steps": 24)");
  options.set = {"sr_sparse.group_frames=[2]", "sr_sparse.critic_per_student=1",
                 "sr_sparse.adaptation=0",     "sr_sparse.dmd=1",
                 "sr_sparse.picture_clips=1",  "sr_sparse.picture_frames=1"};
  expect_same_curve(options);
}

}  // namespace
}  // namespace ultraflash
