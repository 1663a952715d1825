// Self-forcing's rollout: chunks are denoised one after the other through the KV cache, as at
// inference, and the gradient reaches the weights through one step of each chunk alone.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "train/generator.h"

namespace ultraflash {

struct RolloutPlan {
  std::vector<double> timesteps;  // warped step list, descending
  std::vector<double> sigmas;     // of those
  double context_timestep = 0.0;
  double context_sigma = 0.0;  // noise on the latents of the context pass
  int64_t chunk_frames = 3;
  int64_t window_frames = 0;  // of the KV cache, sink included; 0: every frame
  int64_t sink_frames = 0;

  /// The recipe's step list, chunks and cache policy as `config` changes it.
  static Result<RolloutPlan> make(const TrainContext& context);
};

/// noise f32 [batch, frames, h, w, c] -> latents of the last chunks, as many as `exits` has values:
/// the index of the step that each ends at; with `gradient` that step alone records a graph. Keys
/// and values of earlier chunks come from context passes and are constants (wan-self-forcing 8.3).
/// Chunks before those are the stream that leads there, through all steps and without gradient.
/// Fresh noise comes from the device's generator.
at::Tensor roll_out(const TrainContext& context, const GeneratorNetwork& generator,
                    const RolloutPlan& plan, const at::Tensor& noise, const Tensor& embeddings,
                    const std::vector<int64_t>& exits, bool gradient);

/// Dynamic cache management of a rollout (ultra-flash 5.1 (i) and (ii)), for every chunk but the
/// first.
struct CacheSettings {
  std::vector<size_t> later_steps;  // indices into the plan's steps; empty: all of them
  /// Asked after a chunk is made: bool [batch] on the device, true for streams that go without its
  /// context pass, so that their caches keep what the last denoising step wrote. An undefined
  /// tensor: none goes without. `all` may be set when all do: then no pass is run.
  std::function<at::Tensor(int64_t chunk, const at::Tensor& clean, bool& all)> without_context;
};

/// As at inference: every chunk through all steps, without gradient.
at::Tensor roll_out_whole(const TrainContext& context, const GeneratorNetwork& generator,
                          const RolloutPlan& plan, const at::Tensor& noise,
                          const Tensor& embeddings, const CacheSettings& settings = {});

}  // namespace ultraflash
