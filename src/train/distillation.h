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

}  // namespace ultraflash
