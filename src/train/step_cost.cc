#include "train/step_cost.h"

namespace ultraflash {

double forward_cost(const TrainContext& context, int64_t clips, Visibility visibility) {
  const GeneratorSpec& spec = context.recipe.generator;
  const WanDitConfig& network = spec.network;
  const auto d = static_cast<double>(network.dim);
  const auto layers = static_cast<double>(network.num_layers);
  const auto batch = static_cast<double>(clips);
  const auto text = static_cast<double>(network.text_len);
  constexpr double kPatch = 4.0;  // positions of a 1 x 2 x 2 patch
  const double tokens_per_frame =
      static_cast<double>(spec.latent_height * spec.latent_width) / kPatch;
  const auto frames = static_cast<double>(context.config.bank.latent_frames);
  const double chunk = static_cast<double>(spec.frames_per_chunk) * tokens_per_frame;
  const double chunks = frames / static_cast<double>(spec.frames_per_chunk);
  double tokens = frames * tokens_per_frame;
  double pairs = tokens * tokens;
  if (visibility != Visibility::kAll) pairs = chunk * chunk * chunks * (chunks + 1.0) / 2.0;
  if (visibility == Visibility::kTeacherForcing) {
    // A noisy chunk sees the clean ones before it and itself: as many as its clean twin.
    tokens *= 2.0;
    pairs *= 2.0;
  }
  const double per_token = layers * (6.0 * d * d + 2.0 * d * static_cast<double>(network.ffn_dim)) +
                           kPatch * d * static_cast<double>(network.in_dim + network.out_dim);
  const double per_text_token =
      layers * 2.0 * d * d + d * (d + static_cast<double>(network.text_dim));
  return batch * (2.0 * per_token * tokens + 4.0 * d * layers * (pairs + tokens * text) +
                  2.0 * per_text_token * text);
}

double rollout_passes(const TrainContext& context, int64_t steps) {
  const double chunks = static_cast<double>(context.config.bank.latent_frames) /
                        static_cast<double>(context.recipe.generator.frames_per_chunk);
  return 0.5 * static_cast<double>(steps + 1) + (chunks - 1.0) / chunks;
}

}  // namespace ultraflash
