// The paper count of a step against the parameters that the network really has.
#include "train/step_cost.h"

#include <gtest/gtest.h>

#include <string>

#include "ops/autograd/autograd_executor.h"
#include "tiny_training.h"
#include "train/generator.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

TEST(StepCost, CountsEveryMatrixOncePerToken) {
  const testing::TrainingFolder folder("cost");
  const Result<Recipe> recipe = Recipe::find((folder / "recipe.json").string());
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  TrainContext context;
  context.recipe = recipe->data();
  context.compute = DType::kF32;
  context.executor = make_autograd_executor({});
  context.config.bank.latent_frames = 6;  // two chunks
  const Result<GeneratorNetwork> network = GeneratorNetwork::open(context, "", /*trainable=*/false);
  ASSERT_TRUE(network.ok()) << network.status().message();
  double of_tokens = 0.0;
  double of_text = 0.0;
  const std::vector<std::string> names = network->parameters->names();
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i];
    const at::Tensor& leaf = network->parameters->leaves()[i];
    const auto count = static_cast<double>(leaf.numel());
    if (leaf.dim() < 2 || name.find("modulation") != std::string::npos ||
        name.starts_with("time_")) {
      continue;  // once a clip, or no product
    }
    const bool text = name.starts_with("text_embedding") ||
                      name.find("cross_attn.k") != std::string::npos ||
                      name.find("cross_attn.v") != std::string::npos;
    (text ? of_text : of_tokens) += count;
  }
  const WanDitConfig& c = context.recipe.generator.network;
  const auto d = static_cast<double>(c.dim);
  const auto layers = static_cast<double>(c.num_layers);
  const auto text = static_cast<double>(c.text_len);
  const double frame = 6.0 * 8.0 / 4.0;
  const double tokens = 6.0 * frame;
  const double linear =
      2.0 * (of_tokens * tokens + of_text * text) + 4.0 * d * layers * tokens * text;
  const double pair = 4.0 * d * layers;
  const double chunk = 3.0 * frame;
  EXPECT_DOUBLE_EQ(forward_cost(context, 1, Visibility::kAll), linear + pair * tokens * tokens);
  EXPECT_DOUBLE_EQ(forward_cost(context, 5, Visibility::kAll),
                   5.0 * forward_cost(context, 1, Visibility::kAll));
  // Chunk 0 sees itself, chunk 1 both.
  EXPECT_DOUBLE_EQ(forward_cost(context, 1, Visibility::kChunkCausal),
                   linear + pair * 3.0 * chunk * chunk);
  // Steps 1 to 4 are equally often the last; one context pass in two chunks.
  EXPECT_DOUBLE_EQ(rollout_passes(context, 4), 2.5 + 0.5);
}

}  // namespace
}  // namespace ultraflash
