// DecoderStage: latents to 8-bit pictures, trimming and cutting included.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/executor.h"
#include "stream/chunk_plan.h"
#include "stream/networks.h"

namespace ultraflash {

/// How many pictures a decoder makes and how many of a stream's first ones `rule` drops.
PictureRate picture_rate(const DecoderSpec& spec, TrimRule rule);

class DecoderStage {
 public:
  DecoderStage(Executor& ops, const PictureDecoder& decoder) : ops_(ops), decoder_(decoder) {}

  /// A new stream whose first `dropped` pictures are not delivered, and which ends after `limit`
  /// pictures (0: never).
  void reset(int64_t dropped, int64_t limit);
  /// [1, f, h, w, c] -> u8 pictures [n, 8h, 8w, 3] in executor memory; undefined when none is left
  /// after trimming and cutting.
  Tensor run(const Tensor& latent);

  /// Pictures delivered so far.
  [[nodiscard]] int64_t delivered() const { return delivered_; }

 private:
  Tensor decode(const Tensor& latent);
  [[nodiscard]] float low() const;

  Executor& ops_;
  const PictureDecoder& decoder_;
  DecoderState tiny_state_;
  VaeState vae_state_;
  int64_t to_drop_ = 0;
  int64_t limit_ = 0;
  int64_t delivered_ = 0;
};

}  // namespace ultraflash
