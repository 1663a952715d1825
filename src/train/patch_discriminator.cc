#include "train/patch_discriminator.h"

#include <ATen/core/grad_mode.h>

#include "weights/binder.h"

namespace ultraflash {
namespace {

constexpr double kSlope = 0.2;  // of the activation, below 0

}  // namespace

Result<PatchDiscriminator> PatchDiscriminator::make(const TrainContext& context, int64_t width) {
  PatchDiscriminator result;
  result.parameters_ = std::make_shared<ParameterSet>(context.device, /*trainable=*/true);
  RandomSource random(static_cast<uint64_t>(context.config.seed) + 2);
  result.parameters_->bind_from(&random);
  Binder binder(*result.parameters_, "the picture discriminator");
  const auto convolution = [&](const std::string& name, int64_t out, int64_t in, int64_t size) {
    const Shape shape{out, in, size, size};
    (void)binder.parameter(name + ".weight", shape, scaled_fan_in(shape, 1.0F));
    (void)binder.parameter(name + ".bias", {out}, ParameterInit::zeros());
  };
  for (int64_t level = 0; level < kLevels; ++level) {
    const std::string base = fmt::format("levels.{}.", level);
    convolution(base + "0", width, 3, 4);
    convolution(base + "1", 2 * width, width, 4);
    convolution(base + "2", 4 * width, 2 * width, 3);
    convolution(base + "3", 1, 4 * width, 3);
  }
  result.parameters_->bind_from(nullptr);
  UF_TRY(binder.finish());
  return result;
}

at::Tensor PatchDiscriminator::convolved(const at::Tensor& x, const std::string& name,
                                         int64_t stride) const {
  return at::conv2d(x, spectral_normalised(parameters_->leaf(name + ".weight")),
                    parameters_->leaf(name + ".bias"), {stride, stride}, {1, 1});
}

PatchDiscriminator::Output PatchDiscriminator::run(const at::Tensor& pictures) const {
  Output output;
  at::Tensor level_x =
      (2.0 * pictures - 1.0).flatten(0, -4).permute({0, 3, 1, 2}).contiguous();  // [n, 3, h, w]
  for (int64_t level = 0; level < kLevels; ++level) {
    const std::string base = fmt::format("levels.{}.", level);
    if (level > 0) level_x = at::avg_pool2d(level_x, {2, 2});
    at::Tensor x = level_x;
    for (const auto& [name, stride] : {std::pair{"0", 2}, std::pair{"1", 2}, std::pair{"2", 1}}) {
      x = at::leaky_relu(convolved(x, base + name, stride), kSlope);
      output.features.push_back(x);
    }
    output.logits.push_back(convolved(x, base + "3", 1));
  }
  return output;
}

at::Tensor spectral_normalised(const at::Tensor& kernel) {
  constexpr int kTurns = 10;
  constexpr double kTiny = 1e-12;
  const at::Tensor matrix = kernel.flatten(1);
  at::Tensor left, right;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor m = matrix.detach();
    // No vector of a kernel's making is at right angles to this one.
    left = at::linspace(1.0, 0.1, m.size(0), m.options());
    for (int i = 0; i < kTurns; ++i) {
      right = at::mv(m.t(), left);
      right = right / (right.norm() + kTiny);
      left = at::mv(m, right);
      left = left / (left.norm() + kTiny);
    }
  }
  return kernel / (at::dot(left, at::mv(matrix, right)) + kTiny);
}

at::Tensor hinge_loss(const PatchDiscriminator::Output& real,
                      const PatchDiscriminator::Output& fake) {
  at::Tensor sum = at::zeros({}, real.logits[0].options());
  for (size_t level = 0; level < real.logits.size(); ++level) {
    sum =
        sum + at::relu(1.0 - real.logits[level]).mean() + at::relu(1.0 + fake.logits[level]).mean();
  }
  return sum / static_cast<double>(real.logits.size());
}

at::Tensor passing_loss(const PatchDiscriminator::Output& fake) {
  at::Tensor sum = at::zeros({}, fake.logits[0].options());
  for (const at::Tensor& logits : fake.logits) sum = sum - logits.mean();
  return sum / static_cast<double>(fake.logits.size());
}

at::Tensor feature_distance(const PatchDiscriminator::Output& real,
                            const PatchDiscriminator::Output& fake) {
  at::Tensor sum = at::zeros({}, fake.logits[0].options());
  for (size_t i = 0; i < fake.features.size(); ++i) {
    sum = sum + (fake.features[i] - real.features[i].detach()).abs().mean();
  }
  return sum / static_cast<double>(fake.features.size());
}

}  // namespace ultraflash
