// The networks above the generator inside a graph: upsampler and super-resolution transformer.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/latent_upsampler.h"
#include "models/sparse_sr_dit.h"
#include "train/latent_bank.h"
#include "train/objective.h"

namespace ultraflash {

/// The recipe's cascade of `scale` with all parts that `stage` needs, or kInvalidArgument.
Result<const CascadeSpec*> find_cascade(const TrainContext& context, int64_t scale);

/// The upsampler of one scale and its parameters.
struct UpsamplerNetwork {
  std::shared_ptr<ParameterSet> parameters;
  LatentUpsampler network;

  /// Random weights of version 1 end in zeros: the first output is 0 everywhere.
  static Result<UpsamplerNetwork> open(const TrainContext& context, const std::string& init,
                                       int64_t scale, bool trainable);
  /// f32 [batch, f, h, w, c] -> f32 [batch, f, scale h, scale w, c]; advances the state.
  [[nodiscard]] at::Tensor run(const TrainContext& context, const at::Tensor& latents,
                               UpsamplerState& state) const;
  /// Latent frames before a frame that its output depends on.
  [[nodiscard]] int64_t reach() const;
  /// Output for frames `lead` to the end of `latents`: the frames before them run first, without
  /// gradient, and leave their state.
  [[nodiscard]] at::Tensor run_window(const TrainContext& context, const at::Tensor& latents,
                                      int64_t lead) const;
};

/// How much a group of the sparse form reads and leaves.
struct SparseBudget {
  int64_t kv_len = 3;         // temporal blocks for the next group
  double ratio_factor = 1.0;  // on the recipe's top_k_ratio
};

/// The super-resolution transformer, bound for one scale.
struct RefinerNetwork {
  SparseSrDit network;

  [[nodiscard]] TextKv text(const TrainContext& context, const Tensor& embeddings) const {
    return network.transformer().text(context.ops(), embeddings);
  }
  /// Flow prediction of `x` with the condition `y`, both f32 [batch, f, h, w, c], with dense
  /// attention among chunks of the recipe's stream_chunk_size frames and to the chunks before; a
  /// last chunk that is too short is filled with copies of the last frame. One sigma per sample.
  [[nodiscard]] at::Tensor dense(const TrainContext& context, const at::Tensor& x,
                                 const at::Tensor& y, std::span<const double> sigmas,
                                 const TextKv& text) const;
  /// The same at sigmas that lie on the device, f64 [batch]: for recorded work (step_graph.h).
  [[nodiscard]] at::Tensor dense(const TrainContext& context, const at::Tensor& x,
                                 const at::Tensor& y, const at::Tensor& sigmas,
                                 const TextKv& text) const;
  /// Mean squared error of that flow for clips `z` with fresh noise: flow matching.
  [[nodiscard]] at::Tensor flow_loss(const TrainContext& context, const at::Tensor& z,
                                     const at::Tensor& y, const at::Tensor& sigmas,
                                     const at::Tensor& embeddings) const;
  /// The same in a stream, with the block-sparse attention that streams use: one group of frames
  /// after what the state remembers.
  [[nodiscard]] at::Tensor sparse(const TrainContext& context, const at::Tensor& x,
                                  const at::Tensor& y, std::span<const double> sigmas,
                                  const TextKv& text, SparseSrState& state,
                                  const SparseBudget& budget) const;
  /// Memory of a stream of such groups, for `x` as above.
  [[nodiscard]] SparseSrState make_state(const TrainContext& context, const at::Tensor& x,
                                         int64_t group_frames, int64_t kv_len) const {
    return network.make_state(context.ops(), x.size(0), x.size(2) / 2, x.size(3) / 2, group_frames,
                              kv_len, /*one_ring=*/false);
  }
  /// `steps` Euler steps from noise at sigma 1 to 0 with the dense form.
  [[nodiscard]] at::Tensor sample(const TrainContext& context, const at::Tensor& noise,
                                  const at::Tensor& y, const TextKv& text, int64_t steps,
                                  double shift) const;
  /// The same with guidance by the text, v_u + g (v_c - v_u); both sides in one pass.
  [[nodiscard]] at::Tensor sample_guided(const TrainContext& context, const at::Tensor& noise,
                                         const at::Tensor& y, const Tensor& embeddings,
                                         const Tensor& no_text, int64_t steps, double shift,
                                         double guidance) const;
};

/// One set of parameters, bound for each of config.cascade.scales.
struct Refiner {
  std::shared_ptr<ParameterSet> parameters;
  std::map<int64_t, RefinerNetwork> scales;

  [[nodiscard]] const RefinerNetwork& at(int64_t scale) const { return scales.at(scale); }
  /// From `init` (as init.refiner), else from the generator of init.generator, whose patch
  /// embedding gets a zero column for every channel of the condition (ultra-flash-training 2.1):
  /// the flow is then that of the generator's first blocks, whatever the condition.
  static Result<Refiner> open(const TrainContext& context, const std::string& init, bool trainable);
  /// Another one with the values of this one.
  [[nodiscard]] Result<Refiner> copy(const TrainContext& context, bool trainable) const;
};

/// f64 [batch] sigmas on the device as f32 [batch, 1, 1, 1, 1], to scale latents with.
at::Tensor per_sample(const at::Tensor& sigmas);

/// What a frozen decoder makes of two latents of the same clips: `frames` latent frames of the
/// first `clips` ones, drawn for this step and purpose, after one more that gives the decoder's
/// state. Gradients reach the pictures of `x` alone. f32 [clips, pictures, height, width, 3], [0,
/// 1].
struct DecodedPair {
  at::Tensor made;
  at::Tensor truth;
  int64_t first = 0;  // latent frame of the first picture
  int64_t frames = 0;

  /// The last picture of every latent frame: [clips * frames, height, width, 3].
  [[nodiscard]] at::Tensor last_of(const at::Tensor& pictures) const;
  [[nodiscard]] at::Tensor last_made() const { return last_of(made); }
  [[nodiscard]] at::Tensor last_truth() const { return last_of(truth); }
};
/// `frames` latent frames of the first `clips` clips from `first` on, after one more that gives the
/// decoder's state where there is one: pictures f32 [clips, pictures, height, width, 3].
at::Tensor decode_window(const TrainContext& context, const TinyDecoder& decoder,
                         const at::Tensor& latents, int64_t first, int64_t frames, int64_t clips);
DecodedPair decode_pair(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                        const at::Tensor& x, const at::Tensor& truth, int64_t clips, int64_t frames,
                        int64_t step, int64_t purpose);
/// Which of `all` latent frames decode_pair() takes: `count` from `first` on, the first of them for
/// the decoder's state if there are more than one.
struct PairWindow {
  int64_t first = 0;
  int64_t count = 0;

  static PairWindow draw(const TrainContext& context, int64_t all, int64_t frames, int64_t step,
                         int64_t purpose);
  /// i64 [count].
  [[nodiscard]] at::Tensor places(at::Device device) const;
};
/// The same where the frames' numbers are on the device, i64 [count]: for recorded work
/// (step_graph.h). Result.first counts from the first of them.
DecodedPair decode_pair(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                        const at::Tensor& x, const at::Tensor& truth, int64_t clips,
                        const at::Tensor& places);

/// L1 between the two, and between the differences to neighbours, and `spectrum` times their
/// spectrum_distance(). It stands for the perceptual distance of the published recipes, which needs
/// a network trained on other data.
at::Tensor picture_distance(const DecodedPair& pictures, double spectrum);

}  // namespace ultraflash
