// The GAN variant's discriminator: heads on hidden states of the fake score network
// (wan-self-forcing 8.7). Each tap is read by one learned register token through cross-attention;
// the tokens together give one logit.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "train/generator.h"

namespace ultraflash {

class Discriminator {
 public:
  static constexpr int64_t kTaps = 3;

  /// Random heads for a transformer of the recipe's size: taps after the layers at half, three
  /// quarters and the end of its depth (13, 21 and 29 of 30).
  static Result<Discriminator> make(const TrainContext& context);

  /// Logits f32 [batch] of noised latents; gradients reach the trunk, the heads and the latents.
  /// `flow` receives the trunk's flow prediction when not null.
  [[nodiscard]] at::Tensor logits(const TrainContext& context, const GeneratorNetwork& trunk,
                                  const at::Tensor& latents, std::span<const double> sigmas,
                                  const Tensor& embeddings, at::Tensor* flow = nullptr) const;

  [[nodiscard]] const std::shared_ptr<ParameterSet>& parameters() const { return parameters_; }

 private:
  [[nodiscard]] at::Tensor read(const at::Tensor& hidden, int64_t tap) const;
  [[nodiscard]] const at::Tensor& leaf(const std::string& name) const {
    return parameters_->leaf(name);
  }

  std::shared_ptr<ParameterSet> parameters_;
  std::vector<int64_t> layers_;
  int64_t heads_ = 0;
};

/// Means over the batch of softplus(-real) + softplus(fake); `relativistic`: of
/// softplus(-(real - fake)) of pairs.
at::Tensor discriminator_loss(const at::Tensor& real, const at::Tensor& fake, bool relativistic);
/// softplus(-fake); `relativistic`: softplus(-(fake - real)).
at::Tensor adversarial_loss(const at::Tensor& real, const at::Tensor& fake, bool relativistic);
/// How steep the discriminator is, from its logits at x and at x + sigma n, n standard normal: mean
/// of ((disturbed - logits) / sigma)^2, whose expectation tends to the mean of |d logit / dx|^2.
at::Tensor slope_penalty(const at::Tensor& logits, const at::Tensor& disturbed, double sigma);

}  // namespace ultraflash
