// The causal latent upsampler of Ultra Flash: latents of the generator, enlarged 2x, 3x or by any
// integer. v1 follows UltraFlash sr/latent_upsampler/ultra_latent_up_v1.py (the published 1K and 2K
// weights), v3 follows ultra_latent_up_v3.py (powers of two; also the layout of Ultra Decoder V3).
#pragma once

#include <cstdint>
#include <vector>

#include "models/memory_net.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

struct LatentUpsamplerConfig {
  int64_t version = 1;  // 1 or 3
  int64_t in_channels = 16;
  int64_t out_channels = 16;
  int64_t scale = 2;           // v1: any integer from 1; v3: 1, 2, 4 or 8
  int64_t temporal_scale = 1;  // v3 only: 1, 2, 4 or 8 frames out per frame in
  int64_t mid_channels = 128;  // v1
  int64_t num_blocks = 8;      // v1
  std::vector<int64_t> stage_channels = {256, 128, 64};  // v3: three stages
  std::vector<int64_t> blocks_per_stage = {3, 3, 3};     // v3
  Activation activation = Activation::kRelu;
  bool residual = false;  // adds an upsampled skip path
  double residual_scale = 1.0;
  MemoryInit memory_init = MemoryInit::kReplicate;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("version", version);
    visit("in_channels", in_channels);
    visit("out_channels", out_channels);
    visit("scale", scale);
    visit("temporal_scale", temporal_scale);
    visit("mid_channels", mid_channels);
    visit("num_blocks", num_blocks);
    visit("stage_channels", stage_channels);
    visit("blocks_per_stage", blocks_per_stage);
    visit("activation", activation);
    visit("residual", residual);
    visit("residual_scale", residual_scale);
    visit("memory_init", memory_init);
  }

  [[nodiscard]] Status validate() const;
  /// v1 or v3 from names and shapes; kMalformed naming the tensor that is missing.
  static Result<LatentUpsamplerConfig> detect(const Checkpoint& checkpoint);
};

struct UpsamplerState {
  MemoryState net;
  void reset() { net.reset(); }
};

class LatentUpsampler {
 public:
  static LatentUpsampler bind(Loader loader, const LatentUpsamplerConfig& config);

  [[nodiscard]] const LatentUpsamplerConfig& config() const { return config_; }
  /// [batch, f, h, w, in] -> [batch, f * temporal_scale, h * scale, w * scale, out]. Advances the
  /// state.
  Tensor run(Executor& ops, const Tensor& latent, UpsamplerState& state) const;

 private:
  LatentUpsamplerConfig config_;
  MemoryNet net_;
  MemoryNet skip_;  // empty without the residual form
};

}  // namespace ultraflash
