// The text encoder and the transformer inside a graph: what the stages on latents share.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/rng.h"
#include "diffusion/flow_match.h"
#include "models/umt5.h"
#include "models/wan_dit.h"
#include "train/objective.h"
#include "train/text_batches.h"
#include "train/text_embeddings.h"

namespace ultraflash {

/// A text encoder and its parameters, or embeddings made ahead (config.init.text_embeddings), which
/// train nothing and have no parameters.
struct TextNetwork {
  std::shared_ptr<ParameterSet> parameters;
  Umt5Encoder network;
  std::shared_ptr<const TextEmbeddings> prepared;

  static Result<TextNetwork> open(const TrainContext& context, const std::string& init,
                                  bool trainable);
  /// Text embeddings [batch, text_len, text_dim].
  [[nodiscard]] Tensor run(const TrainContext& context, const TokenBatch& tokens) const {
    if (prepared) return prepared->run(context, tokens);
    return network.run(context.ops(), tokens.ids, tokens.lengths);
  }
};

/// A transformer and its parameters. Noise levels are per sample (one value each) or per latent
/// frame (batch * frames values, frames fastest), sigma in [0, 1], on the host.
struct GeneratorNetwork {
  std::shared_ptr<ParameterSet> parameters;
  WanDit network;

  static Result<GeneratorNetwork> open(const TrainContext& context, const std::string& init,
                                       bool trainable);
  /// Another network with the values of this one, without reading a file again.
  [[nodiscard]] Result<GeneratorNetwork> copy(const TrainContext& context, bool trainable) const;
  [[nodiscard]] TextKv text(const TrainContext& context, const Tensor& embeddings) const {
    return network.text(context.ops(), embeddings);
  }
  [[nodiscard]] TimeModulation time(const TrainContext& context, std::span<const double> sigmas,
                                    int64_t batch) const;
  /// Flow prediction of latents f32 [batch, frames, h, w, c], all frames seeing each other.
  [[nodiscard]] at::Tensor bidirectional(const TrainContext& context, const at::Tensor& latents,
                                         std::span<const double> sigmas, const TextKv& text,
                                         const ForwardProbe& probe = {}) const;
  /// The same with chunk i seeing chunks 0 to i; one sigma per latent frame.
  [[nodiscard]] at::Tensor chunk_causal(const TrainContext& context, const at::Tensor& latents,
                                        std::span<const double> sigmas, const TextKv& text) const;
  /// Flow prediction of `noisy`, whose chunk i sees itself and the clean chunks 0 to i - 1.
  [[nodiscard]] at::Tensor teacher_forcing(const TrainContext& context, const at::Tensor& clean,
                                           const at::Tensor& noisy,
                                           std::span<const double> clean_sigmas,
                                           std::span<const double> noisy_sigmas,
                                           const TextKv& text) const;
};

/// sigmas as f32 [batch, rows, 1, 1, 1] on the device, to scale latents with.
at::Tensor sigma_tensor(const TrainContext& context, std::span<const double> sigmas, int64_t batch);
/// k u / (1 + (k - 1) u).
double shifted(double u, double shift);
/// (1 - sigma) x + sigma noise.
at::Tensor add_noise(const at::Tensor& x, const at::Tensor& noise, const at::Tensor& sigma);

/// Random numbers of one draw of a step and rank, the same on every machine.
class StepRandom {
 public:
  StepRandom(const TrainContext& context, int64_t step, int64_t purpose)
      : StepRandom(context.rank_seed(), context, step, purpose) {}
  /// The same numbers on every rank.
  static StepRandom shared(const TrainContext& context, int64_t step, int64_t purpose) {
    return {uint64_t{0}, context, step, purpose};
  }
  /// In [0, 1).
  double uniform() { return static_cast<double>(rng::uniform(next())); }
  int64_t below(int64_t count) { return static_cast<int64_t>(next()) % count; }
  double normal() { return static_cast<double>(rng::normals({seed_, stream_}, counter_++).x[0]); }

 private:
  StepRandom(uint64_t rank_seed, const TrainContext& context, int64_t step, int64_t purpose)
      : seed_((static_cast<uint64_t>(context.config.seed) ^ 0x73746570) + rank_seed),
        stream_(static_cast<uint64_t>(step) << 8 | static_cast<uint64_t>(purpose)) {}
  uint32_t next() { return rng::philox(counter_++, stream_, seed_).x[0]; }
  uint64_t seed_;
  uint64_t stream_;
  uint64_t counter_ = 0;
};

/// A noise level before the shift, in (0, 1): sigmoid of a normal number of flow.logit_mean and
/// logit_std.
double logit_normal(const FlowConfig& flow, StepRandom& random);

/// Latents f32 [batch, frames, h, w, c] noised to one sigma a sample, and the causal network's
/// estimate of what they were: they come to look as the network's own do. Any number of frames.
at::Tensor renoised(const TrainContext& context, const GeneratorNetwork& network,
                    const at::Tensor& latents, std::span<const double> sigmas,
                    const Tensor& embeddings);

/// Euler steps of the bidirectional flow from noise at sigma 1 to 0 with guidance
/// v_u + g (v_c - v_u); `states` receives the latents before each step listed in `keep`.
at::Tensor sample_bidirectional(const TrainContext& context, const GeneratorNetwork& network,
                                const at::Tensor& noise, const TextKv& text, const TextKv& empty,
                                int64_t steps, double shift, double guidance,
                                std::span<const int64_t> keep = {},
                                std::vector<at::Tensor>* states = nullptr);

}  // namespace ultraflash
