#include "train/distillation.h"

#include <ATen/core/grad_mode.h>

namespace ultraflash {
namespace {

// Per sample, over frames, height, width and channels; no gradient.
at::Tensor distance(const at::Tensor& x, const at::Tensor& real) {
  return (x - real).detach().abs().mean({1, 2, 3, 4}, /*keepdim=*/true);
}

}  // namespace

at::Tensor dmd_loss(const at::Tensor& x, const Scores& scores) {
  at::Tensor target;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor gradient =
        at::nan_to_num((scores.fake - scores.real) / distance(x, scores.real), 0.0, 0.0, 0.0);
    target = x.detach() - gradient;
  }
  return 0.5 * (x - target).square().mean();
}

at::Tensor sid_loss(const at::Tensor& x, const Scores& scores, double alpha) {
  const at::Tensor difference = scores.real - scores.fake;
  const at::Tensor loss =
      difference * ((scores.real - x) - alpha * difference) / distance(x, scores.real);
  return at::nan_to_num(loss, 0.0, 0.0, 0.0).mean();
}

}  // namespace ultraflash
