// CascadeStage: groups of the generator's latents, enlarged by the upsampler and refined in one
// step by the sparse SR transformer. Follows UltraFlash pipeline/causal_cascade_streaming.py.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "models/latent_upsampler.h"
#include "models/sparse_sr_dit.h"
#include "ops/executor.h"
#include "stream/recipe_data.h"

namespace ultraflash {

class CascadeStage {
 public:
  /// `upsampler` and `refiner` may be null. Groups have at most `group_frames` latent frames.
  CascadeStage(Executor& ops, const CascadeSpec& spec, const GeneratorSpec& generator,
               const LatentUpsampler* upsampler, const SparseSrDit* refiner, int64_t group_frames);

  /// A new stream; the memory stays. Groups draw their noise from `seed`.
  void reset(uint64_t seed, double condition_noise_scale);
  void set_text(TextKv text) { keep_text(ops_, std::move(text), text_); }

  /// [1, f, h, w, c] -> [1, f, h * scale, w * scale, c], before refinement.
  Tensor upsample(const Tensor& latent);
  /// Refines an upsampled group; `kv_len` temporal blocks stay for the next one. The result
  /// of upsample() is overwritten by its next call.
  Tensor refine(const Tensor& upsampled, int64_t kv_len);

  [[nodiscard]] bool has_upsampler() const { return upsampler_ != nullptr; }
  [[nodiscard]] bool has_refiner() const { return refiner_ != nullptr; }
  [[nodiscard]] int64_t groups() const { return group_index_; }
  /// Groups after the first until the refiner's cache is as full as it gets.
  [[nodiscard]] int64_t groups_until_full() const;

 private:
  // What the networks read and write for groups of one length, at fixed addresses.
  struct Upsampling {
    Tensor latent, upsampled;
    std::array<std::unique_ptr<Recording>, 2> recordings;  // at the start of a stream, later
  };
  struct Refining {
    Tensor noise, condition, flow;
    std::map<int64_t, std::unique_ptr<Recording>> recordings;  // by the cached blocks
  };

  Executor& ops_;
  const LatentUpsampler* upsampler_;
  const SparseSrDit* refiner_;
  TimeModulation modulation_;
  std::map<int64_t, Upsampling> upsampling_;
  std::map<int64_t, Refining> refining_;
  UpsamplerState upsampler_state_;
  SparseSrState refiner_state_;
  TextKv text_;
  uint64_t seed_ = 0;
  float condition_noise_ = 0.0F;
  int64_t group_index_ = 0;
};

}  // namespace ultraflash
