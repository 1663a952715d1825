// The distillation losses of wan-self-forcing section 8, as functions of the scores.
#pragma once

#include <ATen/ATen.h>

namespace ultraflash {

/// What the scores say about a noised rollout: x0 estimates f32 [batch, frames, h, w, c].
struct Scores {
  at::Tensor fake;
  at::Tensor real;  // with guidance: r_c + w (r_c - r_u)
};

/// 8.4: a loss whose gradient with respect to x is (fake - real) / mean|x - real| / numel.
at::Tensor dmd_loss(const at::Tensor& x, const Scores& scores);
/// 8.6: mean((r - f) ((r - x) - alpha (r - f)) / mean|x - r|); gradients reach x through the scores
/// too.
at::Tensor sid_loss(const at::Tensor& x, const Scores& scores, double alpha);

/// Of a better and a worse result of one condition: mean squared errors of the flow prediction, by
/// the network that learns and by the frozen reference, at the same noise and level. f32 [batch].
struct PreferenceErrors {
  at::Tensor better, better_reference;
  at::Tensor worse, worse_reference;

  /// At sigma 1, where a network's input does not depend on the result that it is judged by, from
  /// what both networks make: f32 [batch, frames, h, w, c].
  static PreferenceErrors at_start(const at::Tensor& x, const at::Tensor& reference,
                                   const at::Tensor& better, const at::Tensor& worse);
  /// Negative where the network prefers the better result by more than the reference does.
  [[nodiscard]] at::Tensor bracket() const {
    return (better - better_reference) - (worse - worse_reference);
  }
};
/// ultra-flash-training 5.3: -log sigmoid(-beta / 2 bracket), f32 [batch].
at::Tensor preference_loss(const PreferenceErrors& errors, double beta);

}  // namespace ultraflash
