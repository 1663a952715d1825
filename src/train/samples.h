// Samples: what a stage that draws clips has learnt so far, shown as a sheet and measured as
// `ultraflash eval` measures finished videos, on frames that never leave memory.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "media/frame.h"
#include "train/clips.h"
#include "train/journal.h"
#include "train/latent_bank.h"
#include "train/objective.h"
#include "train/text_batches.h"

namespace ultraflash {

/// Captions `first` to `first` + n - 1 of held-out clips, and the noise to draw clips for them
/// from.
struct SampleRequest {
  int64_t first = 0;
  at::Tensor noise;  // f32 [n, latent_frames, h, w, c]
  TokenBatch tokens;
};
/// Latents of the noise's shape.
using DrawSamples = std::function<at::Tensor(const SampleRequest&)>;

class Samples {
 public:
  /// kInvalidArgument when `config.evaluate` cannot be done with this data or picture size.
  static Result<std::unique_ptr<Samples>> open(const TrainContext& context);

  /// A row for each of flow.sample_clips captions, which go to the log; nothing when there are
  /// none.
  std::optional<RgbImage> sheet(const DrawSamples& draw) const;
  /// Percentages right over evaluate.captions clips: "colour", "background", ..., then with "_one"
  /// and "_two" those of scenes with so many objects. The same clips and noise every time, and
  /// whatever the number of ranks, which share the work: all of them must call this. Noise and
  /// clips are a few at a time on the device; measuring is done by threads of the CPU meanwhile.
  Measures measure(const DrawSamples& draw) const;

 private:
  explicit Samples(const TrainContext& context) : context_(context) {}
  [[nodiscard]] SampleRequest request(int64_t first, int64_t count) const;

  const TrainContext& context_;
  FrozenAutoencoder autoencoder_;
  std::unique_ptr<TrainingClips> unseen_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
};

/// The names among measure()'s that a progress line has room for.
Measures main_measures(const Measures& measures);

}  // namespace ultraflash
