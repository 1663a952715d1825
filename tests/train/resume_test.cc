// What a compact checkpoint keeps, runs that are continued under a clock, and starting from
// published weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "tiny_training.h"
#include "train/state.h"
#include "weights/checkpoint.h"
#include "weights/parameter_source.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

// A matrix with rows of very different size, a vector, a scalar-like one; trained for some steps.
struct TrainedThing {
  TrainedSet set;

  explicit TrainedThing(const OptimizerConfig& optimizer, int steps) {
    set.name = "thing";
    set.parameters = std::make_shared<ParameterSet>(at::Device(at::kCPU), /*trainable=*/true);
    RandomSource source(7);
    set.parameters->bind_from(&source);
    for (const auto& [name, shape] :
         {std::pair<const char*, Shape>{"blocks.0.weight", {6, 35}}, {"bias", {9}}}) {
      EXPECT_TRUE(set.parameters->find({name, shape, {}}).ok());
    }
    set.parameters->bind_from(nullptr);
    const EmaConfig ema{0.9, 0, /*ramp=*/false};
    set.begin(optimizer, &ema);
    at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
    generator.set_current_seed(1);
    for (int i = 0; i < steps; ++i) {
      for (const at::Tensor& leaf : set.parameters->leaves()) {
        at::Tensor gradient = at::randn(leaf.sizes());
        if (gradient.dim() == 2) {
          gradient = gradient * at::pow(10.0, -at::arange(6, at::kFloat)).reshape({6, 1});
        }
        leaf.mutable_grad() = gradient;
      }
      set.update(1.0);
    }
  }
};

double worst_ratio(const at::Tensor& a, const at::Tensor& b) {
  return (a / b).log().abs().max().item<double>();
}

class CompactState : public ::testing::TestWithParam<OptimizerRule> {};

TEST_P(CompactState, KeepsWhatTrainingNeeds) {
  const TrainingFolder folder("compact");
  OptimizerConfig optimizer;
  optimizer.rule = GetParam();
  optimizer.lr = 1e-2;
  TrainedThing trained(optimizer, 30);
  const Result<std::filesystem::path> saved =
      save_state(folder / "out", {&trained.set}, {30, 12.5, 4}, /*compact=*/true);
  ASSERT_TRUE(saved.ok()) << saved.status().message();
  TrainedThing fresh(optimizer, 0);
  RunCounters counters;
  const Status loaded = load_state(*saved, {&fresh.set}, counters);
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  EXPECT_EQ(counters.step, 30);
  EXPECT_EQ(counters.seconds, 12.5);
  EXPECT_EQ(counters.ranks, 4);
  EXPECT_EQ(fresh.set.updates, 30);
  EXPECT_EQ(fresh.set.optimizer->updates().item<float>(), 30.0F);
  for (size_t i = 0; i < trained.set.parameters->leaves().size(); ++i) {
    const at::Tensor& weight = trained.set.parameters->leaves()[i];
    const at::Tensor& average = trained.set.average->values()[i];
    // bf16 keeps 8 bits, the 8-bit float 4.
    EXPECT_TRUE(at::allclose(fresh.set.average->values()[i], average, 1.0 / 256, 1e-12));
    const double difference = (weight - average).abs().max().item<double>();
    EXPECT_LE((fresh.set.parameters->leaves()[i] - weight).abs().max().item<double>(),
              difference / 16 + average.abs().max().item<double>() / 256);
    const at::Tensor& first = trained.set.optimizer->first_moments()[i];
    EXPECT_TRUE(at::allclose(fresh.set.optimizer->first_moments()[i], first, 1.0 / 15,
                             first.abs().max().item<double>() / 448 / 512));
    const at::Tensor& second = trained.set.optimizer->second_moments()[i];
    if (!second.any().item<bool>()) {
      EXPECT_FALSE(fresh.set.optimizer->second_moments()[i].any().item<bool>());
      continue;
    }
    // Within a quarter of an octave of the root, in every row for itself.
    EXPECT_LE(worst_ratio(fresh.set.optimizer->second_moments()[i], second),
              0.5 * std::numbers::ln2 + 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, CompactState,
                         ::testing::Values(OptimizerRule::kAdamW, OptimizerRule::kMuon));

TEST(CompactStateSize, IsBelowFiveBytesAParameter) {
  const TrainingFolder folder("small");
  TrainedSet set;
  set.name = "large";
  set.parameters = std::make_shared<ParameterSet>(at::Device(at::kCPU), /*trainable=*/true);
  RandomSource source(7);
  set.parameters->bind_from(&source);
  ASSERT_TRUE(set.parameters->find({"blocks.0.weight", {1024, 1025}, {}}).ok());
  set.begin({}, nullptr);
  set.parameters->leaves()[0].mutable_grad() = at::randn({1024, 1025});
  set.update(1.0);
  const Result<std::filesystem::path> saved =
      save_state(folder / "out", {&set}, {}, /*compact=*/true);
  ASSERT_TRUE(saved.ok()) << saved.status().message();
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*saved)) bytes += entry.file_size();
  EXPECT_LT(static_cast<double>(bytes), 4.55 * 1024 * 1025);
}

// A field of the progress text: "loss 0.01  lr 0.001 ...".
double field(const std::string& text, const std::string& name) {
  size_t place = text.find(name + " ");
  while (place != std::string::npos && place > 0 && text[place - 1] != ' ') {
    place = text.find(name + " ", place + 1);
  }
  return place == std::string::npos ? std::nan("") : std::stod(text.substr(place + name.size()));
}

// The learning rate falls with the clock of the whole run, which stands still between its parts.
TEST(Clock, RunsInPartsFollowOneSchedule) {
  const TrainingFolder folder("clock");
  TrainOptions options =
      folder.stage("autoencoder", "out",
                   R"("batch": 1, "steps": 1000000, "minutes": 0.15, "compact_checkpoint": true,
         "optimizer": {"lr": 1.0, "warmup_steps": 0, "schedule": "cosine", "final_lr_ratio": 0.0,
                       "schedule_by_time": true, "clip_norm": 1e-9})");
  const double usable = 0.15 * 60.0 - 1.0;       // what the trainer keeps for the end
  std::vector<std::pair<double, double>> rates;  // seconds, rate
  options.progress = [&](const TrainProgress& p) {
    rates.emplace_back(p.seconds, field(p.text, "lr"));
    return true;
  };
  options.minutes = 4.0 / 60.0;
  Result<TrainSummary> part = run_training(options);
  ASSERT_TRUE(part.ok()) << part.status().message();
  EXPECT_FALSE(part->finished);
  const size_t first_part = rates.size();
  ASSERT_GT(first_part, 2U);
  EXPECT_NEAR(rates.back().first, 3.0, 1.5);
  options.resume = true;
  int parts = 1;
  while (!part->finished && parts < 6) {
    part = run_training(options);
    ASSERT_TRUE(part.ok()) << part.status().message();
    ++parts;
  }
  EXPECT_TRUE(part->finished);
  EXPECT_GE(parts, 3);
  ASSERT_GT(rates.size(), first_part + 2);
  EXPECT_GE(rates[first_part].first, rates[first_part - 1].first);
  for (const auto& [seconds, rate] : rates) {
    const double expected =
        0.5 * (1.0 + std::cos(std::numbers::pi * std::min(seconds / usable, 1.0)));
    EXPECT_NEAR(rate, expected, 0.2) << "at " << seconds << " s";  // a step may take a while
  }
  EXPECT_LT(rates.back().second, 0.2);
}

TEST(WarmStart, TextEncoderAndGeneratorComeFromPublishedWeights) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("warm");
  TrainOptions options = folder.stage("flow_matching", "first", R"("batch": 2, "steps": 3)");
  const Result<TrainSummary> first = run_training(options);
  ASSERT_TRUE(first.ok()) << first.status().message();
  ASSERT_EQ(first->weights.size(), 2U);
  options.out = folder / "second";
  const std::string from = (folder / "first").string();
  // Another seed, so that what is not read would be other random numbers.
  options.set = {"init.text_encoder=" + from, "init.generator=" + from, "seed=99", "optimizer.lr=0",
                 "steps=1"};
  const Result<TrainSummary> second = run_training(options);
  ASSERT_TRUE(second.ok()) << second.status().message();
  for (size_t i = 0; i < 2; ++i) {
    const Result<Checkpoint> a = Checkpoint::open(first->weights[i]);
    const Result<Checkpoint> b = Checkpoint::open(second->weights[i]);
    ASSERT_TRUE(a.ok() && b.ok());
    ASSERT_EQ(a->entries().size(), b->entries().size());
    for (const TensorEntry& entry : a->entries()) {
      const TensorEntry* const other = b->find(entry.name);
      ASSERT_NE(other, nullptr) << entry.name;
      EXPECT_TRUE(std::equal(entry.bytes.begin(), entry.bytes.end(), other->bytes.begin(),
                             other->bytes.end()))
          << entry.name;
    }
  }
}

}  // namespace
}  // namespace ultraflash
