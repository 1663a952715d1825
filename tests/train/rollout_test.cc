// Where the gradient of a rollout goes, and that it is the inference loop.
#include "train/rollout.h"

#include <gtest/gtest.h>

#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"
#include "tiny_training.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

struct Fixture {
  TrainingFolder folder{"rollout"};
  TrainContext context;
  GeneratorNetwork generator;
  RolloutPlan plan;
  at::Tensor noise;
  Tensor embeddings;

  explicit Fixture(bool recompute = false) {
    AutogradOptions options;
    options.recompute = recompute;
    const Result<Recipe> recipe = Recipe::find((folder / "recipe.json").string());
    if (!recipe.ok()) throw Error(recipe.status());
    context.recipe = recipe->data();
    context.compute = DType::kF32;
    context.executor = make_autograd_executor(options);
    Result<GeneratorNetwork> made = GeneratorNetwork::open(context, "", /*trainable=*/true);
    if (!made.ok()) throw Error(made.status());
    generator = *std::move(made);
    Result<RolloutPlan> planned = RolloutPlan::make(context);
    if (!planned.ok()) throw Error(planned.status());
    plan = *std::move(planned);
    context.seed_step(1);
    noise = at::randn({2, 6, 6, 8, 16});
    embeddings = from_torch(at::randn({2, 32, 32}));
  }
};

TEST(Rollout, GradientStaysInTheChunkOfTheLoss) {
  Fixture f;
  const at::Tensor noise = f.noise.clone().set_requires_grad(true);
  const at::Tensor x =
      roll_out(f.context, f.generator, f.plan, noise, f.embeddings, {0, 0}, /*gradient=*/true);
  x.narrow(1, 3, 3).square().sum().backward();
  // The second chunk reads the first one's keys and values as constants.
  EXPECT_EQ(noise.grad().narrow(1, 0, 3).abs().max().item<float>(), 0.0F);
  EXPECT_GT(noise.grad().narrow(1, 3, 3).abs().max().item<float>(), 0.0F);
}

TEST(Rollout, GradientPassesTheExitStepAlone) {
  Fixture f;
  const at::Tensor noise = f.noise.clone().set_requires_grad(true);
  const at::Tensor x =
      roll_out(f.context, f.generator, f.plan, noise, f.embeddings, {2, 1}, /*gradient=*/true);
  EXPECT_TRUE(x.requires_grad());
  // Steps before the exit record nothing, so the noise they began with is out of reach.
  x.square().sum().backward();
  EXPECT_FALSE(noise.grad().defined());
  size_t with_gradient = 0;
  for (const at::Tensor& leaf : f.generator.parameters->leaves()) {
    with_gradient += leaf.grad().defined() ? 1 : 0;
  }
  EXPECT_EQ(with_gradient, f.generator.parameters->size());
}

TEST(Rollout, GradientOrNotGivesTheSameLatents) {
  Fixture f;
  f.context.seed_step(2);
  const at::Tensor with =
      roll_out(f.context, f.generator, f.plan, f.noise, f.embeddings, {3, 2}, /*gradient=*/true);
  f.context.seed_step(2);
  const at::Tensor without =
      roll_out(f.context, f.generator, f.plan, f.noise, f.embeddings, {3, 2}, /*gradient=*/false);
  EXPECT_FALSE(without.requires_grad());
  EXPECT_TRUE(at::equal(with.detach(), without));
}

TEST(Rollout, RecomputedGradientsHaveTheSameBits) {
  std::vector<std::vector<at::Tensor>> gradients(2);
  for (const bool recompute : {false, true}) {
    Fixture f(recompute);
    f.context.seed_step(2);
    const at::Tensor x =
        roll_out(f.context, f.generator, f.plan, f.noise, f.embeddings, {1, 2}, /*gradient=*/true);
    x.square().sum().backward();
    for (const at::Tensor& leaf : f.generator.parameters->leaves()) {
      gradients[recompute ? 1 : 0].push_back(leaf.grad());
    }
  }
  for (size_t i = 0; i < gradients[0].size(); ++i) {
    EXPECT_GT(gradients[0][i].abs().max().item<float>(), 0.0F);
    EXPECT_TRUE(at::equal(gradients[0][i], gradients[1][i])) << i;
  }
}

// A stream leads up to the clip: the same latents, and no gradient from before it.
TEST(Rollout, AStreamLeadsToTheClipThatCounts) {
  Fixture f;
  f.plan.window_frames = 6;
  f.plan.sink_frames = 3;
  f.context.seed_step(3);
  const at::Tensor noise = at::randn({2, 12, 6, 8, 16}).set_requires_grad(true);
  const auto last = static_cast<int64_t>(f.plan.sigmas.size()) - 1;
  f.context.seed_step(4);
  const at::Tensor whole = roll_out(f.context, f.generator, f.plan, noise, f.embeddings,
                                    {last, last, last, 0}, /*gradient=*/false);
  f.context.seed_step(4);
  const at::Tensor clip = roll_out(f.context, f.generator, f.plan, noise, f.embeddings, {last, 0},
                                   /*gradient=*/true);
  ASSERT_EQ(clip.size(1), 6);
  EXPECT_TRUE(at::equal(clip.detach(), whole.narrow(1, 6, 6)));
  clip.square().sum().backward();
  EXPECT_EQ(noise.grad().narrow(1, 0, 9).abs().max().item<float>(), 0.0F);
  EXPECT_GT(noise.grad().narrow(1, 9, 3).abs().max().item<float>(), 0.0F);
}

TEST(Rollout, TheFirstChunkDoesNotDependOnTheSecond) {
  Fixture f;
  const std::vector<int64_t> exits = {0, 0};
  const at::Tensor a =
      roll_out(f.context, f.generator, f.plan, f.noise, f.embeddings, exits, false);
  at::Tensor other = f.noise.clone();
  other.narrow(1, 3, 3).add_(1.0);
  const at::Tensor b = roll_out(f.context, f.generator, f.plan, other, f.embeddings, exits, false);
  EXPECT_TRUE(at::equal(a.narrow(1, 0, 3), b.narrow(1, 0, 3)));
  EXPECT_FALSE(at::equal(a.narrow(1, 3, 3), b.narrow(1, 3, 3)));
}

}  // namespace
}  // namespace ultraflash
