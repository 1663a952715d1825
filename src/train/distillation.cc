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

PreferenceErrors PreferenceErrors::at_start(const at::Tensor& x, const at::Tensor& reference,
                                            const at::Tensor& better, const at::Tensor& worse) {
  // A result z is e - v: the error of v for the target e - z is that of z.
  const auto error = [](const at::Tensor& made, const at::Tensor& wanted) {
    return (made - wanted).square().mean({1, 2, 3, 4});
  };
  return {error(x, better), error(reference, better), error(x, worse), error(reference, worse)};
}

at::Tensor preference_loss(const PreferenceErrors& errors, double beta) {
  return at::softplus(0.5 * beta * errors.bracket());
}

}  // namespace ultraflash
