#include "train/step_cost.h"

#include <algorithm>

namespace ultraflash {
namespace {

constexpr double kPatch = 4.0;  // positions of a 1 x 2 x 2 patch

// One clip: `tokens` that meet every matrix, `pairs` of query and key.
double transformer_cost(const WanDitConfig& network, double tokens, double pairs) {
  const auto d = static_cast<double>(network.dim);
  const auto layers = static_cast<double>(network.num_layers);
  const auto text = static_cast<double>(network.text_len);
  const double per_token = layers * (6.0 * d * d + 2.0 * d * static_cast<double>(network.ffn_dim)) +
                           kPatch * d * static_cast<double>(network.in_dim + network.out_dim);
  const double per_text_token =
      layers * 2.0 * d * d + d * (d + static_cast<double>(network.text_dim));
  return 2.0 * per_token * tokens + 4.0 * d * layers * (pairs + tokens * text) +
         2.0 * per_text_token * text;
}

double chunk_causal_pairs(double chunk_tokens, double chunks) {
  return chunk_tokens * chunk_tokens * chunks * (chunks + 1.0) / 2.0;
}

}  // namespace

double forward_cost(const TrainContext& context, int64_t clips, Visibility visibility) {
  const GeneratorSpec& spec = context.recipe.generator;
  const double tokens_per_frame =
      static_cast<double>(spec.latent_height * spec.latent_width) / kPatch;
  const auto frames = static_cast<double>(context.config.bank.latent_frames);
  double tokens = frames * tokens_per_frame;
  double pairs = tokens * tokens;
  if (visibility != Visibility::kAll) {
    pairs = chunk_causal_pairs(static_cast<double>(spec.frames_per_chunk) * tokens_per_frame,
                               frames / static_cast<double>(spec.frames_per_chunk));
  }
  if (visibility == Visibility::kTeacherForcing) {
    // A noisy chunk sees the clean ones before it and itself: as many as its clean twin.
    tokens *= 2.0;
    pairs *= 2.0;
  }
  return static_cast<double>(clips) * transformer_cost(spec.network, tokens, pairs);
}

double rollout_passes(const TrainContext& context, int64_t steps) {
  const double chunks = static_cast<double>(context.config.bank.latent_frames) /
                        static_cast<double>(context.recipe.generator.frames_per_chunk);
  return 0.5 * static_cast<double>(steps + 1) + (chunks - 1.0) / chunks;
}

double dense_refiner_cost(const TrainContext& context, int64_t scale, int64_t clips,
                          int64_t frames) {
  const GeneratorSpec& spec = context.recipe.generator;
  const SparseSrDitConfig& network = context.recipe.cascade(scale)->refiner->network;
  const double tokens_per_frame =
      static_cast<double>(spec.latent_height * spec.latent_width * scale * scale) / kPatch;
  const auto chunk = static_cast<double>(network.stream_chunk_size);
  return static_cast<double>(clips) *
         transformer_cost(
             network.transformer, static_cast<double>(frames) * tokens_per_frame,
             chunk_causal_pairs(chunk * tokens_per_frame, static_cast<double>(frames) / chunk));
}

double sparse_refiner_cost(const TrainContext& context, int64_t scale, int64_t clips,
                           int64_t frames, double cached, double ratio_factor) {
  const GeneratorSpec& spec = context.recipe.generator;
  const SparseSrDitConfig& network = context.recipe.cascade(scale)->refiner->network;
  const WindowGrid grid{{frames, spec.latent_height * scale / 2, spec.latent_width * scale / 2},
                        network.window};
  const auto all = static_cast<double>(grid.spatial_blocks() * grid.spatial_blocks());
  const auto kept = static_cast<double>(network.top_k(grid, ratio_factor) + 1);
  double blocks = 0.0;
  for (int64_t i = 0; i < grid.temporal_blocks(); ++i) {
    blocks += std::min(kept, all * (cached + static_cast<double>(i + 1)));
  }
  const auto window = static_cast<double>(network.window.tokens());
  return static_cast<double>(clips) * transformer_cost(network.transformer,
                                                       static_cast<double>(grid.grid.tokens()),
                                                       blocks * window * window);
}

double upsampler_cost(const TrainContext& context, int64_t scale, int64_t clips, int64_t frames) {
  const GeneratorSpec& spec = context.recipe.generator;
  const LatentUpsamplerConfig& c = context.recipe.cascade(scale)->upsampler->network;
  if (c.version != 1) return 0.0;
  const auto width = static_cast<double>(c.mid_channels);
  double places = static_cast<double>(clips * frames * spec.latent_height * spec.latent_width);
  double in = static_cast<double>(c.in_channels);
  double products = 0.0;  // of 3 x 3 kernels
  int64_t left = c.scale;
  while (left > 1) {  // factors of 2 first, each a convolution and a shuffle
    const double factor = left % 2 == 0 ? 2.0 : static_cast<double>(left);
    left = left % 2 == 0 ? left / 2 : 1;
    products += places * in * width * factor * factor;
    places *= factor * factor;
    in = width;
  }
  if (c.scale == 1) products += places * in * width;
  // A memory block reads a frame and the one before, then has two more convolutions.
  products += places * (static_cast<double>(c.num_blocks) * 4.0 * width * width +
                        width * static_cast<double>(c.out_channels));
  return 2.0 * 9.0 * products;
}

}  // namespace ultraflash
