// GeneratorStage: chunks of latents from noise, with the KV cache of one stream.
// Follows Self-Forcing pipeline/causal_inference.py.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
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
  void set_text(TextKv text) { keep_text(ops_, std::move(text), text_); }
  /// Runs every kind of pass that a stream may have, `times` times, and forgets what came of it.
  void warm_up(bool independent_first_frame, int times);
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
  // What passes over chunks of one length read and write, at fixed addresses.
  struct Passes {
    Tensor latent;
    Tensor flow;
    // By the frames in the cache and whether it is a context pass.
    std::map<std::pair<int64_t, bool>, std::unique_ptr<Recording>> recordings;
  };
  // The flow is overwritten by the next pass.
  Tensor run(const Tensor& latent, size_t modulation, const ChunkPlace& place, bool cache_only);
  Result<ChunkPlace> append(int64_t frames, int64_t first_frame);

  Executor& ops_;
  const WanDit& network_;
  GeneratorSpec spec_;
  FlowMatchSchedule schedule_;
  std::vector<float> timesteps_;     // warped
  std::vector<Tensor> modulations_;  // of the steps, then of the context pass
  Tensor modulation_numbers_;        // of the pass that runs, as in modulations_
  TimeModulation modulation_;        // views of them
  std::map<int64_t, Passes> passes_by_frames_;
  KvState cache_;
  CacheRing ring_;
  TextKv text_;
  ChunkPlace place_;            // of the chunk made last
  Tensor place_numbers_;        // the executor's copy of it
  std::deque<KeptChunk> kept_;  // latents whose frames may still be in the cache
  uint64_t seed_ = 0;
  int64_t chunk_index_ = 0;
  int64_t frame_index_ = 0;
  int64_t passes_ = 0;
};

}  // namespace ultraflash
