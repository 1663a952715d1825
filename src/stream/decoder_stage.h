// DecoderStage: latents to 8-bit pictures, trimming and cutting included.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "ops/executor.h"
#include "stream/chunk_plan.h"
#include "stream/networks.h"

namespace ultraflash {

/// How many pictures a decoder makes and how many of a stream's first ones `rule` drops.
PictureRate picture_rate(const DecoderSpec& spec, TrimRule rule);

/// Whether the tiny decoder of rows x columns latents takes a group in one go and leaves what its
/// memory blocks need of the frame before where it is: 3 % less time at 960x1664 for 0.4 GiB; at
/// 1440x2496 the 1.5 GiB are too much.
bool decodes_in_one_go(int64_t rows, int64_t columns);

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
  /// Pictures decoded so far, those that were trimmed or cut off included.
  [[nodiscard]] int64_t decoded() const { return decoded_; }

 private:
  // What the tiny decoder reads and writes for so many latent frames, at fixed addresses; one
  // recording takes them all.
  struct Decoding {
    Tensor latent, pictures;
    std::array<std::unique_ptr<Recording>, 2> recordings;  // at the start of a stream, later
  };
  // The tiny decoder's result is overwritten by the next call.
  Tensor decode(const Tensor& latent);
  // Latent frames of these that a call needs: the limit may come before their end.
  [[nodiscard]] int64_t needed(int64_t frames) const;
  [[nodiscard]] float low() const;

  Executor& ops_;
  const PictureDecoder& decoder_;
  std::map<int64_t, Decoding> decoding_;
  DecoderState tiny_state_;
  VaeState vae_state_;
  int64_t to_drop_ = 0;
  int64_t limit_ = 0;
  int64_t delivered_ = 0;
  int64_t decoded_ = 0;
};

}  // namespace ultraflash
