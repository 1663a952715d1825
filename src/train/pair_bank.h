// PairBank: clips at the base size and enlarged, as latents of the base autoencoder, for the stages
// above the generator.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "train/latent_bank.h"
#include "train/objective.h"

namespace ultraflash {

/// A stretch of clips: `frames` of them, after up to `reach` that give a stream's state.
struct StreamWindow {
  int64_t first = 0;  // of the stretch, lead included
  int64_t lead = 0;
  int64_t frames = 0;
  [[nodiscard]] FrameRange range() const { return {first, lead + frames}; }

  /// A stretch of the bank's clips; every fourth on average is the beginning of a stream.
  static StreamWindow draw(const TrainContext& context, int64_t step, int64_t purpose,
                           int64_t reach, int64_t frames);
};

struct PairBatch {
  at::Tensor high;     // f32 [batch, f, scale h, scale w, c]
  at::Tensor low;      // f32 [batch, f, h, w, c]
  at::Tensor damaged;  // low after degradation; undefined where config.degrade has no share
  TokenBatch tokens;
};

/// `pictures` f32 in [0, 1] [n, frames, scale h, scale w, 3] -> latents of both sizes.
struct PairLatents {
  at::Tensor high;
  at::Tensor low;
};
/// The autoencoders of both sizes.
struct PairAutoencoders {
  FrozenAutoencoder small, large;
  static Result<PairAutoencoders> open(const TrainContext& context, int64_t scale);
};
PairLatents encode_pair(const TrainContext& context, const PairAutoencoders& autoencoders,
                        const at::Tensor& pictures, int64_t scale);

class PairBank {
 public:
  PairBank(const TrainContext& context, PairAutoencoders autoencoders, const TrainingClips& clips,
           const CaptionTokenizer& tokenizer, int64_t scale);

  void fill(int64_t first_step) { bank_.fill(first_step); }
  void advance(int64_t step) { bank_.advance(step); }
  [[nodiscard]] PairBatch sample(int64_t step, int64_t count, double dropout,
                                 FrameRange frames) const;

 private:
  LatentBank bank_;
};

}  // namespace ultraflash
