// The paper count of a step against the parameters that the network really has.
#include "train/step_cost.h"

#include <gtest/gtest.h>

#include <string>

#include "tiny_training.h"
#include "train/cascade.h"
#include "train/generator.h"
#include "training_context.h"

namespace ultraflash {
namespace {

TEST(StepCost, CountsEveryMatrixOncePerToken) {
  const testing::TrainingFolder folder("cost");
  TrainContext context = testing::make_context((folder / "recipe.json").string());
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

// The networks above the generator, by the parameters that they have.
TEST(StepCost, CountsTheRefinerAndTheUpsampler) {
  const testing::TrainingFolder folder("cost_above");
  TrainContext context = testing::make_context((folder / "recipe.json").string());
  context.config.cascade.scales = {2};
  const Result<UpsamplerNetwork> upsampler = UpsamplerNetwork::open(context, "", 2, false);
  ASSERT_TRUE(upsampler.ok()) << upsampler.status().message();
  double products = 0.0;
  for (const std::string& name : upsampler->parameters->names()) {
    const at::Tensor& leaf = upsampler->parameters->leaf(name);
    if (leaf.dim() != 4) continue;
    const double places = (name.starts_with("pre_shuffle") ? 1.0 : 4.0) * 6.0 * 8.0;
    products += places * static_cast<double>(leaf.numel());
  }
  EXPECT_DOUBLE_EQ(upsampler_cost(context, 2, 3, 5), 2.0 * 15.0 * products);

  const Result<Refiner> refiner = Refiner::open(context, "", /*trainable=*/false);
  ASSERT_TRUE(refiner.ok()) << refiner.status().message();
  const double one = dense_refiner_cost(context, 2, 1, 2);  // one chunk: all pairs
  const double two = dense_refiner_cost(context, 2, 1, 4);
  const WanDitConfig& c = context.recipe.cascade(2)->refiner->network.transformer;
  const double pair = 4.0 * static_cast<double>(c.dim * c.num_layers);
  const double chunk = 2.0 * 12.0 * 16.0 / 4.0;
  double of_tokens = 0.0;
  for (const std::string& name : refiner->parameters->names()) {
    const at::Tensor& leaf = refiner->parameters->leaf(name);
    if (leaf.dim() < 2 || name.find("modulation") != std::string::npos ||
        name.starts_with("time_") || name.starts_with("text_embedding") ||
        name.find("cross_attn.k") != std::string::npos ||
        name.find("cross_attn.v") != std::string::npos) {
      continue;
    }
    of_tokens += static_cast<double>(leaf.numel());
  }
  // The second chunk: its products, its text, and it sees both.
  EXPECT_DOUBLE_EQ(two - one, 2.0 * of_tokens * chunk +
                                  pair * chunk * static_cast<double>(c.text_len) +
                                  pair * 2.0 * chunk * chunk);
  // 12 x 16 latents are 6 x 8 patches: 2 x 2 windows of 4 x 4, and 24 / 48 of the pairs (8) and one
  // more are kept. Windows of two frames have 32 tokens; after cached blocks no more is read.
  const double sparse = sparse_refiner_cost(context, 2, 1, 4, 0.0, 1.0);
  EXPECT_DOUBLE_EQ(sparse - two, pair * (2.0 * 9.0 * 32.0 * 32.0 - 3.0 * chunk * chunk));
  EXPECT_DOUBLE_EQ(sparse_refiner_cost(context, 2, 1, 4, 2.0, 1.0), sparse);
}

}  // namespace
}  // namespace ultraflash
