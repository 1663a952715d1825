// The GAN objective: losses on numbers worked out by hand, the slope penalty against exact
// gradients, a discriminator that learns to tell two kinds of clips apart.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"
#include "tiny_training.h"
#include "train/discriminator.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

void seed(uint64_t value) {
  at::Generator(at::globalContext().defaultGenerator(at::kCPU)).set_current_seed(value);
}

double softplus(double x) { return std::log1p(std::exp(x)); }

TEST(Gan, LossesFollowTheFormulas) {
  const at::Tensor real = at::tensor({1.0, -2.0});
  const at::Tensor fake = at::tensor({0.5, 3.0});
  EXPECT_NEAR(discriminator_loss(real, fake, false).item<double>(),
              (softplus(-1.0) + softplus(2.0) + softplus(0.5) + softplus(3.0)) / 2, 1e-5);
  EXPECT_NEAR(discriminator_loss(real, fake, true).item<double>(),
              (softplus(-0.5) + softplus(5.0)) / 2, 1e-5);
  EXPECT_NEAR(adversarial_loss(real, fake, false).item<double>(),
              (softplus(-0.5) + softplus(-3.0)) / 2, 1e-5);
  EXPECT_NEAR(adversarial_loss(real, fake, true).item<double>(),
              (softplus(0.5) + softplus(-5.0)) / 2, 1e-5);
}

// E[((D(x + s n) - D(x)) / s)^2] tends to |dD/dx|^2 as s does to 0.
TEST(Gan, SlopePenaltyIsTheSquareOfTheGradient) {
  seed(1);
  const at::Tensor weight = at::randn({6, 20}, at::kDouble);
  const auto logit = [&](const at::Tensor& x) { return at::matmul(x, weight.t()).tanh().sum(1); };
  const at::Tensor x = at::randn({1, 20}, at::kDouble).requires_grad_(true);
  logit(x).sum().backward();
  const double exact = x.grad().square().sum().item<double>();
  const at::NoGradGuard no_graph;
  constexpr int64_t kDraws = 200'000;
  const at::Tensor many = x.expand({kDraws, 20});
  const double sigma = 0.001;
  const double penalty =
      slope_penalty(logit(many), logit(many + sigma * at::randn({kDraws, 20}, at::kDouble)), sigma)
          .item<double>();
  // (n . g)^2 / |g|^2 has mean 1 and deviation sqrt(2): four deviations of the mean of all draws.
  EXPECT_NEAR(penalty / exact, 1.0, 4.0 * std::sqrt(2.0 / kDraws));
}

struct Players {
  TrainingFolder folder{"gan"};
  TrainContext context;
  GeneratorNetwork trunk;
  Discriminator heads;
  Tensor text;

  Players() {
    const Result<Recipe> recipe = Recipe::find((folder / "recipe.json").string());
    if (!recipe.ok()) throw Error(recipe.status());
    context.recipe = recipe->data();
    context.compute = DType::kF32;
    context.executor = make_autograd_executor({});
    Result<GeneratorNetwork> network = GeneratorNetwork::open(context, "", /*trainable=*/true);
    if (!network.ok()) throw Error(network.status());
    trunk = *std::move(network);
    Result<Discriminator> made = Discriminator::make(context);
    if (!made.ok()) throw Error(made.status());
    heads = *std::move(made);
    seed(2);
    text = from_torch(at::randn({4, 32, 32}));
  }
  at::Tensor logits(const at::Tensor& x) const {
    const std::vector<double> sigmas(static_cast<size_t>(x.size(0)), 0.3);
    return heads.logits(context, trunk, x, sigmas, text);
  }
};

TEST(Gan, DiscriminatorLearnsToTellClipsApart) {
  Players p;
  OptimizerConfig config;
  config.lr = 1e-3;
  Optimizer of_trunk(*p.trunk.parameters, config);
  Optimizer of_heads(*p.heads.parameters(), config);
  // Real clips have a bright first row, generated ones a bright last row.
  const auto clips = [](int64_t row) {
    at::Tensor x = 0.5 * at::randn({4, 3, 6, 8, 16});
    x.select(2, row).add_(1.0);
    return x;
  };
  double first = 0.0;
  double last = 0.0;
  double last_slope = 0.0;
  constexpr int kSteps = 40;
  for (int step = 0; step < kSteps; ++step) {
    seed(static_cast<uint64_t>(100 + step));
    const at::Tensor real = clips(0);
    const at::Tensor fake = clips(5);
    const at::Tensor real_logits = p.logits(real);
    const at::Tensor adversarial = discriminator_loss(real_logits, p.logits(fake), true);
    const at::Tensor slope =
        slope_penalty(real_logits, p.logits(real + 0.01 * at::randn_like(real)), 0.01);
    (adversarial + 0.5 * 1e-3 * slope).backward();
    of_trunk.step(config.lr);
    of_heads.step(config.lr);
    const double value = adversarial.item<double>();
    if (step == 0) first = value;
    if (step >= kSteps - 5) last += value / 5;
    last_slope = slope.item<double>();
  }
  EXPECT_GT(first, 0.4) << "at first it knows nothing: log 2 and the chance of random heads";
  EXPECT_LT(last, 0.1);
  EXPECT_TRUE(std::isfinite(last_slope));
}

TEST(Gan, StageRunsWithPairsAndPenalties) {
  if (std::getenv("UF_SOURCE_DIR") == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const TrainingFolder folder("gan-stage");
  TrainOptions options = folder.stage("self_forcing", "out", R"("batch": 2, "steps": 4)");
  options.set = {"self_forcing.loss=gan",
                 "self_forcing.gan_relativistic=true",
                 "self_forcing.gan_r1_weight=0.01",
                 "self_forcing.gan_r2_weight=0.01",
                 "self_forcing.critic_per_generator=2",
                 "self_forcing.critic_first_steps=1",
                 "self_forcing.gan_denoising_weight=0.5"};
  std::vector<std::string> lines;
  options.progress = [&](const TrainProgress& p) {
    lines.push_back(p.text);
    return true;
  };
  const Result<TrainSummary> summary = run_training(options);
  ASSERT_TRUE(summary.ok()) << summary.status().message();
  ASSERT_EQ(lines.size(), 4U);
  // The generator waits for one step and then takes every second.
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].find("generator_loss") != std::string::npos, i == 1 || i == 3) << lines[i];
    for (const char* name : {"discriminator_loss", "r1 ", "r2 "}) {
      EXPECT_NE(lines[i].find(name), std::string::npos) << lines[i];
    }
    EXPECT_EQ(lines[i].find("nan"), std::string::npos) << lines[i];
  }
}

}  // namespace
}  // namespace ultraflash
