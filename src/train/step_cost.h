// What a training step should cost, counted on paper, so that a log can say how much of a GPU a run
// uses. One multiply-add is two operations.
//
// A pass of the transformer forward, with P parameters that meet every token, T tokens of the
// latents in a batch and L text tokens a clip:
//
//   2 P T                      matrix products (P: self attention 4 d^2, queries and outputs of the
//                              cross attention 2 d^2, feed-forward 2 d f, a layer; patches in and
//                              out)
//   4 d pairs layers           self attention: pairs of query and key that the mask lets through
//   4 d T L layers             cross attention
//   2 (2 d^2 layers + d (d + text_dim)) L batch     keys and values of the text
//
// Forward and backward together are three times that, which makes 6 P T of the first line. Not
// counted: the text encoder, the autoencoder (the bank's encoding), embeddings of time, norms,
// optimizer, averages, and passes that recompute what was dropped. So the figure is what the task
// needs, not what the hardware does.
#pragma once

#include <cstdint>

#include "models/wan_dit.h"
#include "train/objective.h"

namespace ultraflash {

enum class Visibility : uint8_t { kAll, kChunkCausal, kTeacherForcing };

/// Operations of one forward pass over `clips` clips of config.bank.latent_frames frames each.
/// Chunks of the recipe; with kTeacherForcing the clean frames are passed too.
double forward_cost(const TrainContext& context, int64_t clips, Visibility visibility);
/// Times this, forward and backward.
inline constexpr double kForwardAndBackward = 3.0;
/// Forward passes over all frames that a rollout takes on average, when each of `steps` steps is
/// equally often the last: the steps, and the context pass of all chunks but the last.
double rollout_passes(const TrainContext& context, int64_t steps);

/// One forward pass of the super-resolution transformer over `frames` latent frames of each of
/// `clips` clips at `scale`: dense among chunks and to the chunks before,
double dense_refiner_cost(const TrainContext& context, int64_t scale, int64_t clips,
                          int64_t frames);
/// or sparse after `cached` temporal blocks: of each temporal block of queries as many pairs of
/// blocks as its budget keeps, whole blocks of 128 tokens with their padding.
double sparse_refiner_cost(const TrainContext& context, int64_t scale, int64_t clips,
                           int64_t frames, double cached, double ratio_factor);
/// One of the upsampler over `frames` latent frames of the base size: its convolutions. Version 1
/// alone; 0 for the other.
double upsampler_cost(const TrainContext& context, int64_t scale, int64_t clips, int64_t frames);
/// Mean of a cost over config.cascade.scales.
template <typename Cost>
double mean_over_scales(const TrainContext& context, const Cost& cost) {
  double sum = 0.0;
  for (const int64_t scale : context.config.cascade.scales) sum += cost(scale);
  return sum / static_cast<double>(context.config.cascade.scales.size());
}

}  // namespace ultraflash
