// LatentBank: clips of the data, encoded by a frozen encoder and kept on the device in bf16, with
// their captions' token ids. A ring: every few steps a group of clips replaces the oldest. What it
// holds depends on the step alone, so a run that starts again continues with the same clips. A bank
// may keep several latents of a clip, such as those of its small and its large form.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "models/tiny_decoder.h"
#include "models/wan_vae.h"
#include "train/clips.h"
#include "train/objective.h"
#include "train/prefetcher.h"
#include "train/text_batches.h"

namespace ultraflash {

/// The frozen autoencoder of a stage that works on latents: that of the recipe's scale 1, a tiny
/// one or the Wan VAE.
struct FrozenAutoencoder {
  std::shared_ptr<ParameterSet> parameters;
  TinyEncoder encoder;
  TinyDecoder decoder;
  std::optional<WanVae> vae;  // encodes in place of the tiny encoder,
  bool vae_decodes = false;   // and decodes in place of the tiny decoder

  static Result<FrozenAutoencoder> open(const TrainContext& context);
  /// That of a scale above 1, from init.decoder: its own decoder, and its own encoder where the
  /// recipe has one, else the encoder of `base`. `base` itself where init.decoder is empty.
  static Result<FrozenAutoencoder> open_large(const TrainContext& context, int64_t scale,
                                              const FrozenAutoencoder& base);
  /// u8 [batch, pictures_of(frames), height, width, 3] on any device -> f32
  /// [batch, frames, h, w, c].
  [[nodiscard]] at::Tensor encode(const TrainContext& context, const at::Tensor& clips) const;
  /// Pictures that latents were made of, where they stand for `count` frames of the tiny encoder:
  /// the Wan VAE has no picture for the frames that the tiny decoder trims.
  [[nodiscard]] int64_t pictures_for(int64_t count) const { return vae ? count - 3 : count; }
  /// f32 latents -> f32 pictures in about [0, 1] on the device, the decoder's first frames trimmed.
  [[nodiscard]] at::Tensor show(const TrainContext& context, const at::Tensor& latents) const;
  /// Latents -> u8 on the CPU, clip after clip.
  [[nodiscard]] at::Tensor decode(const TrainContext& context, const at::Tensor& latents) const;
  /// f32 latents -> those of the pictures that they decode to. The first pictures of a stream,
  /// which hold nothing yet, are taken to be as the first one that does.
  [[nodiscard]] at::Tensor round_trip(const TrainContext& context, const at::Tensor& latents) const;
};

/// f32 latents [count, config.bank.latent_frames, h, w, c] of the clips from index 0 on.
at::Tensor latents_of(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                      const TrainingClips& clips, int64_t count);

struct LatentBatch {
  at::Tensor latents;  // f32 [batch, latent_frames, h, w, c]
  TokenBatch tokens;
  std::vector<at::Tensor> others;  // where the bank keeps more than one form of a clip
};

struct FrameRange {
  int64_t first = 0;
  int64_t count = 0;  // 0: to the end
};

class LatentBank {
 public:
  LatentBank(const TrainContext& context, const FrozenAutoencoder& autoencoder,
             const TrainingClips& clips, const CaptionTokenizer& tokenizer);
  /// Pictures u8 [n, frames, height, width, 3] of group `group` (latents f32 where the clips are
  /// latents) -> what the bank keeps of them, each [n, latent_frames, h, w, c].
  using Encode = std::function<std::vector<at::Tensor>(const at::Tensor& clips, int64_t group)>;
  /// Of pictures of `scale` times the base size.
  LatentBank(const TrainContext& context, const TrainingClips& clips,
             const CaptionTokenizer& tokenizer, int64_t scale, Encode encode);

  /// Encodes what the bank holds at `first_step`.
  void fill(int64_t first_step);
  /// Brings in new clips when `step` is due to; call it once for every step from first_step on.
  void advance(int64_t step);
  /// `count` clips with one of their captions each; with probability `dropout` the empty caption.
  /// `purpose` tells apart several draws of one step.
  [[nodiscard]] LatentBatch sample(int64_t step, int64_t count, double dropout, int64_t purpose = 0,
                                   FrameRange frames = {}) const;
  [[nodiscard]] int64_t size() const { return groups_ * group_clips_; }

 private:
  struct Group {
    at::Tensor clips;  // u8, scenes to draw, or f32 where the clips are latents; pinned when the
                       // device is a GPU
    std::vector<TokenRow> captions;  // `captions` a clip
  };
  Group render(int64_t group) const;
  void take();

  const TrainContext& context_;
  const TrainingClips& clips_;
  const CaptionTokenizer& tokenizer_;
  int64_t scale_;
  Encode encode_;
  int64_t group_clips_;
  int64_t groups_;  // in the bank
  bool drawn_;      // on the device, from scenes
  int64_t period_;  // steps between groups; 0: never
  int64_t next_group_ = 0;
  int64_t first_step_ = 0;
  std::vector<at::Tensor> latents_;  // bf16 [size, latent_frames, h, w, c]
  std::vector<TokenRow> captions_;
  std::unique_ptr<Prefetcher<Group>> rendered_;  // last: its threads use the above
};

}  // namespace ultraflash
