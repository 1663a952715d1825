// The picture discriminator: spectral norm against exact singular values, gradients against finite
// differences, the hinge losses on numbers worked out by hand, and a decoder that trains with it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

#include "ops/autograd/autograd_executor.h"
#include "tiny_training.h"
#include "train/patch_discriminator.h"
#include "train/train.h"
#include "weights/checkpoint.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

double largest_singular_value(const at::Tensor& kernel) {
  return std::get<1>(at::linalg_svd(kernel.flatten(1), /*full_matrices=*/false))
      .max()
      .item<double>();
}

PatchDiscriminator make(int64_t width) {
  TrainContext context;
  context.config.seed = 5;
  Result<PatchDiscriminator> made = PatchDiscriminator::make(context, width);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return *std::move(made);
}

TEST(PatchGan, KernelsHaveSpectralNormOne) {
  at::manual_seed(1);
  for (const std::vector<int64_t>& sizes :
       {std::vector<int64_t>{16, 3, 4, 4}, {32, 16, 4, 4}, {1, 64, 3, 3}}) {
    const at::Tensor kernel = 3.0 * at::randn(sizes);
    const double norm = largest_singular_value(spectral_normalised(kernel));
    EXPECT_GE(norm, 1.0 - 1e-5) << "the iteration comes from below";
    EXPECT_LE(norm, 1.1) << sizes[0];
  }
  // With a clear largest value it is exact, and so is the gradient: none along the kernel itself.
  at::Tensor kernel = 0.05 * at::randn({8, 12}, at::kDouble);
  kernel = kernel + at::outer(at::linspace(0.2, 1.0, 8, at::kDouble),
                              at::linspace(1.0, 0.3, 12, at::kDouble));
  kernel.requires_grad_(true);
  EXPECT_NEAR(largest_singular_value(spectral_normalised(kernel.detach())), 1.0, 1e-9);
  const at::Tensor weight = at::randn({8, 12}, at::kDouble);
  const auto value = [&](const at::Tensor& k) { return (spectral_normalised(k) * weight).sum(); };
  const at::Tensor gradient = torch::autograd::grad({value(kernel)}, {kernel})[0];
  const at::NoGradGuard no_grad;
  EXPECT_NEAR((gradient * kernel).sum().item<double>(), 0.0, 1e-9);
  constexpr double kStep = 1e-5;
  for (const int64_t place : {0, 17, 50, 95}) {
    at::Tensor bump = at::zeros({96}, at::kDouble);
    bump[place] = kStep;
    const at::Tensor moved = bump.view({8, 12});
    const double slope =
        ((value(kernel + moved) - value(kernel - moved)) / (2.0 * kStep)).item<double>();
    EXPECT_NEAR(gradient.flatten()[place].item<double>(), slope, 1e-5) << place;
  }
}

TEST(PatchGan, GradientsReachPicturesAndWeights) {
  at::manual_seed(2);
  const PatchDiscriminator discriminator = make(8);
  const at::Tensor x = at::rand({1, 2, 64, 72, 3});
  const PatchDiscriminator::Output real = discriminator.run(x);
  ASSERT_EQ(real.logits.size(), 3U);
  ASSERT_EQ(real.features.size(), 9U);
  EXPECT_EQ(real.logits[0].sizes(), (std::vector<int64_t>{2, 1, 16, 18}));
  EXPECT_EQ(real.logits[2].sizes(), (std::vector<int64_t>{2, 1, 4, 4}));
  const at::Tensor y = at::rand({1, 2, 64, 72, 3}).requires_grad_(true);
  const auto losses = [&](const at::Tensor& pictures) {
    const PatchDiscriminator::Output fake = discriminator.run(pictures);
    return passing_loss(fake) + feature_distance(real, fake);
  };
  const at::Tensor gradient = torch::autograd::grad({losses(y)}, {y})[0];
  {
    const at::NoGradGuard no_grad;
    // Along the gradient, where the slope is largest beside the rounding of f32.
    constexpr double kStep = 5e-3;
    const at::Tensor way = gradient / gradient.abs().max();
    const double slope =
        ((losses(y + kStep * way) - losses(y - kStep * way)) / (2.0 * kStep)).item<double>();
    const double expected = (gradient * way).sum().item<double>();
    EXPECT_NEAR(slope, expected, 0.03 * expected);
  }
  hinge_loss(discriminator.run(x), discriminator.run(y.detach())).backward();
  for (const std::string& name : discriminator.parameters()->names()) {
    const at::Tensor& g = discriminator.parameters()->leaf(name).grad();
    ASSERT_TRUE(g.defined()) << name;
    // Inside of the margins what pushes the last bias up and down is equal.
    if (name.ends_with(".3.bias")) continue;
    EXPECT_GT(g.norm().item<double>(), 0.0) << name;
  }
}

TEST(PatchGan, HingeFollowsTheFormula) {
  PatchDiscriminator::Output real, fake;
  real.logits = {at::tensor({2.0, 0.5}), at::tensor({-1.0})};
  fake.logits = {at::tensor({-3.0, 0.0}), at::tensor({0.5})};
  // (0 + 0.5) / 2 + (0 + 1) / 2 and 2 + 1.5
  EXPECT_NEAR(hinge_loss(real, fake).item<double>(), 0.5 * (0.75 + 3.5), 1e-6);
  EXPECT_NEAR(passing_loss(fake).item<double>(), 0.5 * (1.5 - 0.5), 1e-6);
}

// It learns to tell sharp pictures from blurred ones.
TEST(PatchGan, DiscriminatorLearns) {
  at::manual_seed(3);
  PatchDiscriminator discriminator = make(8);
  TrainedSet set;
  set.parameters = discriminator.parameters();
  OptimizerConfig optimizer;
  optimizer.lr = 2e-3;
  optimizer.warmup_steps = 0;
  set.begin(optimizer, nullptr);
  double first = 0.0;
  double last = 0.0;
  for (int i = 0; i < 40; ++i) {
    const at::Tensor sharp = at::rand({2, 64, 64, 3});
    const at::Tensor planes = sharp.permute({0, 3, 1, 2});
    const at::Tensor blurred =
        at::avg_pool2d(planes, {3, 3}, {1, 1}, {1, 1}).permute({0, 2, 3, 1}).contiguous();
    const at::Tensor loss = hinge_loss(discriminator.run(sharp), discriminator.run(blurred));
    loss.backward();
    (void)set.update(1.0);
    (i < 5 ? first : last) = loss.item<double>();
  }
  EXPECT_GT(first, 1.8);
  EXPECT_LT(last, 1.0);
}

// A large decoder trains with it, and a run that stops goes on with the same bits.
TEST(PatchGan, DecoderTrainsAndResumes) {
  const TrainingFolder folder("patch-gan");
  const auto options = [&](const std::string& out) {
    TrainOptions o = folder.stage("autoencoder", out, R"("batch": 2, "steps": 6)");
    o.set = {"autoencoder.scale=2",
             "autoencoder.data_scales=[2]",
             "autoencoder.frames=8",
             "autoencoder.gan=0.05",
             "autoencoder.gan_features=0.5",
             "autoencoder.gan_after=0.5",
             "autoencoder.gan_critic_after=0.3",
             "autoencoder.gan_width=8",
             "crop.height=8",
             "crop.width=10"};
    return o;
  };
  int listened = 0;
  int learnt = 0;
  TrainOptions whole = options("whole");
  whole.progress = [&](const TrainProgress& p) {
    listened += p.text.find("gan ") != std::string::npos ? 1 : 0;
    learnt += p.text.find("discriminator ") != std::string::npos ? 1 : 0;
    EXPECT_EQ(p.text.find("nan"), std::string::npos) << p.text;
    return true;
  };
  const Result<TrainSummary> a = run_training(whole);
  ASSERT_TRUE(a.ok()) << a.status().message();
  EXPECT_EQ(listened, 3);
  EXPECT_EQ(learnt, 4);
  TrainOptions halves = options("halves");
  halves.stop_after = 4;
  ASSERT_TRUE(run_training(halves).ok());
  halves.stop_after = -1;
  halves.resume = true;
  const Result<TrainSummary> b = run_training(halves);
  ASSERT_TRUE(b.ok()) << b.status().message();
  ASSERT_EQ(a->weights.size(), 1U);
  const Result<Checkpoint> first = Checkpoint::open(a->weights[0]);
  const Result<Checkpoint> second = Checkpoint::open(b->weights[0]);
  ASSERT_TRUE(first.ok() && second.ok());
  for (const TensorEntry& entry : first->entries()) {
    const TensorEntry* other = second->find(entry.name);
    ASSERT_NE(other, nullptr) << entry.name;
    EXPECT_TRUE(std::equal(entry.bytes.begin(), entry.bytes.end(), other->bytes.begin(),
                           other->bytes.end()))
        << entry.name;
  }
}

}  // namespace
}  // namespace ultraflash
