// RolloutBank: streams of the frozen generator for captions of the data, as small latents on the
// device, drawn under dynamic cache management that differs from stream to stream
// (ultra-flash-training 5.1). A ring: every few steps new ones replace the oldest. What it holds
// depends on the step alone.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "train/generator.h"
#include "train/objective.h"
#include "train/rollout.h"
#include "train/text_batches.h"

namespace ultraflash {

class TrainingClips;

/// As RolloutPlan::make(), with the cache of the recipe: streams as sessions run them.
Result<RolloutPlan> stream_plan(const TrainContext& context);

/// Streams of `frames` latent frames, one for each caption, under settings of
/// config.preference drawn for number `draw` and `purpose`. f32 [batch, frames, h, w, c].
at::Tensor draw_streams(const TrainContext& context, const GeneratorNetwork& generator,
                        const RolloutPlan& plan, const Tensor& embeddings, int64_t frames,
                        int64_t draw, int64_t purpose);

class RolloutBank {
 public:
  RolloutBank(const TrainContext& context, const GeneratorNetwork& generator,
              const TextNetwork& text, const TrainingClips& clips,
              const CaptionTokenizer& tokenizer, RolloutPlan plan);

  void fill(int64_t first_step);
  /// Brings in new streams when `step` is due to; once for every step from first_step on.
  void advance(int64_t step);

  struct Batch {
    at::Tensor low;  // f32 [count, frames, h, w, c], beginnings of streams
    TokenBatch tokens;
  };
  [[nodiscard]] Batch sample(int64_t step, int64_t count, int64_t frames) const;

 private:
  void make_group();

  const TrainContext& context_;
  const GeneratorNetwork& generator_;
  const TextNetwork& text_;
  const TrainingClips& clips_;
  const CaptionTokenizer& tokenizer_;
  RolloutPlan plan_;
  int64_t first_step_ = 0;
  int64_t next_group_ = 0;
  at::Tensor latents_;  // bf16 [rollouts, bank.latent_frames, h, w, c]
  std::vector<TokenRow> captions_;
};

}  // namespace ultraflash
