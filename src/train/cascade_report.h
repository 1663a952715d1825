// CascadeReport: what the stages above the generator make of held-out clips of one scale, beside
// bicubic enlargement of the small clip and the autoencoder's own reconstruction of the large one.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "media/frame.h"
#include "train/journal.h"
#include "train/latent_bank.h"
#include "train/objective.h"
#include "train/pair_bank.h"
#include "train/reward.h"

namespace ultraflash {

class CascadeReport {
 public:
  /// config.cascade.eval_clips clips.
  static Result<std::unique_ptr<CascadeReport>> open(const TrainContext& context,
                                                     PairAutoencoders autoencoders, int64_t scale);

  /// Latents f32 [eval_clips, eval_frames, h, w, c] at the base size and enlarged, and captions
  /// that name everything.
  [[nodiscard]] const PairLatents& latents() const { return latents_; }
  [[nodiscard]] const TokenBatch& tokens() const { return tokens_; }

  /// Decodes latents of the large size and measures them under `name`; a second call of that name
  /// replaces the first.
  void add(const std::string& name, const at::Tensor& latents);

  /// Of bicubic enlargement, of all that was added, and of the autoencoder, each with
  /// _<name>_<scale>x behind it:
  ///   psnr              in dB, inside the boxes around objects (everywhere for clips that are no
  ///                     scenes)
  ///   sharpness         mean difference between neighbours there, as a part of that of the truth
  ///   dissimilarity     1 - MS-SSIM, where the truth has most detail; and there, with init.judge,
  ///   judge             its score, in deviations of its reference (reward.h)
  ///   feature_distance  and how far the truth is for it
  ///   colour, shape, texture  percentages of objects that have the named one, for scenes
  [[nodiscard]] Measures measures() const;
  /// A row a clip, a column for each of these and at last the truth: the middle frame around the
  /// first object.
  [[nodiscard]] RgbImage sheet(int64_t clips) const;

 private:
  struct Entry {
    std::string name;
    at::Tensor pictures;  // u8 [clips, frames, height, width, 3]
    Measures measures;
  };

  CascadeReport(const TrainContext& context, PairAutoencoders autoencoders, int64_t scale)
      : context_(context), autoencoders_(std::move(autoencoders)), scale_(scale) {}
  [[nodiscard]] Entry measured(const std::string& name, const at::Tensor& pictures) const;
  [[nodiscard]] at::Tensor object_boxes() const;

  const TrainContext& context_;
  PairAutoencoders autoencoders_;
  int64_t scale_;
  std::unique_ptr<TrainingClips> clips_;
  std::optional<RewardNetwork> judge_;
  at::Tensor truth_;  // u8 [clips, frames, height, width, 3] on the CPU, without the first frames
  at::Tensor boxes_;  // f32 [clips, frames, height, width], 1 inside
  PairLatents latents_;
  TokenBatch tokens_;
  std::vector<Entry> entries_;  // bicubic, autoencoder, then what was added
};

/// `report`, opened the first time that it is asked for; null where config.cascade.eval_clips is 0.
/// Throws Error.
CascadeReport* report_of(const TrainContext& context, const PairAutoencoders& autoencoders,
                         int64_t scale, std::unique_ptr<CascadeReport>& report);

}  // namespace ultraflash
