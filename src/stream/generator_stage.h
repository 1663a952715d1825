// GeneratorStage: chunks of latents from noise, with the KV cache of one stream.
// Follows Self-Forcing pipeline/causal_inference.py.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "diffusion/flow_match.h"
#include "models/wan_dit.h"
#include "ops/executor.h"
#include "stream/cache_policy.h"
#include "stream/recipe_data.h"

namespace ultraflash {

class GeneratorStage {
 public:
  /// The network must outlive the stage. Throws Error when memory does not suffice.
  GeneratorStage(Executor& ops, const WanDit& network, const GeneratorSpec& spec,
                 const CachePolicy& policy);

  /// A new stream; the memory stays.
  void reset(uint64_t seed);
  /// Text of the chunks to come.
  void set_text(TextKv text) { text_ = std::move(text); }
  /// Rebuilds the cache with the current text from the latents whose frames are still in it: run
  /// again chunk by chunk, oldest first, at the context timestep and their old positions.
  void recache();

  /// Denoises the next chunk of `frames` latent frames with the listed steps (indices into the
  /// recipe's list): [1, frames, h, w, channels] in the network's type. Its context pass is still
  /// to be run. `check` is called before every pass and may throw to stop.
  Tensor next_chunk(int64_t frames, std::span<const int64_t> steps,
                    const std::function<void()>& check);
  /// The context pass of the chunk made last: clean keys and values for the chunks to come.
  void refresh(const Tensor& chunk);

  [[nodiscard]] int64_t chunks() const { return chunk_index_; }
  [[nodiscard]] int64_t steps() const { return static_cast<int64_t>(timesteps_.size()); }
  [[nodiscard]] int64_t passes() const { return passes_; }
  [[nodiscard]] const CacheRing& ring() const { return ring_; }
  [[nodiscard]] const KvState& cache() const { return cache_; }

 private:
  struct KeptChunk {
    int64_t first_frame;
    Tensor latent;
  };
  void run(const Tensor& latent, size_t modulation, const ChunkPlace& place, bool cache_only,
           Tensor* flow);

  Executor& ops_;
  const WanDit& network_;
  GeneratorSpec spec_;
  FlowMatchSchedule schedule_;
  std::vector<float> timesteps_;             // warped
  std::vector<TimeModulation> modulations_;  // of the steps, then of the context pass
  KvState cache_;
  CacheRing ring_;
  TextKv text_;
  ChunkPlace place_;            // of the chunk made last
  std::deque<KeptChunk> kept_;  // latents whose frames may still be in the cache
  uint64_t seed_ = 0;
  int64_t chunk_index_ = 0;
  int64_t frame_index_ = 0;
  int64_t passes_ = 0;
};

}  // namespace ultraflash
