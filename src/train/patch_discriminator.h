// The picture discriminator of the large decoder (ultra-flash-training 3.2): three levels, each on
// pictures of half the size of the one before, and a logit for every patch. Its convolutions have
// spectral norm 1.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/objective.h"
#include "train/parameters.h"

namespace ultraflash {

class PatchDiscriminator {
 public:
  static constexpr int64_t kLevels = 3;
  /// Least side of a picture: the last level sees a quarter of it.
  static constexpr int64_t kLeastSide = 64;

  /// Random weights; `width` channels after the first convolution of a level, four times as many
  /// before the last.
  static Result<PatchDiscriminator> make(const TrainContext& context, int64_t width);

  struct Output {
    std::vector<at::Tensor> logits;    // of each level, f32 [n, 1, rows, columns]
    std::vector<at::Tensor> features;  // what its convolutions found on the way
  };
  /// Pictures f32 [..., height, width, 3] in [0, 1].
  [[nodiscard]] Output run(const at::Tensor& pictures) const;

  [[nodiscard]] const std::shared_ptr<ParameterSet>& parameters() const { return parameters_; }

 private:
  [[nodiscard]] at::Tensor convolved(const at::Tensor& x, const std::string& name,
                                     int64_t stride) const;

  std::shared_ptr<ParameterSet> parameters_;
};

/// A kernel [out, ...] over the largest singular value of its matrix [out, in * size], found by
/// power iteration from one fixed vector: the same weights give the same result, and there is no
/// state. Gradients as if the singular vectors were constants, which is exact at the fixed point.
at::Tensor spectral_normalised(const at::Tensor& kernel);

/// Hinge losses, means over levels of means over patches: max(0, 1 - real) + max(0, 1 + fake) for
/// the discriminator, -fake for who wants to pass for real.
at::Tensor hinge_loss(const PatchDiscriminator::Output& real,
                      const PatchDiscriminator::Output& fake);
at::Tensor passing_loss(const PatchDiscriminator::Output& fake);
/// Mean L1 between features; those of `real` are constants.
at::Tensor feature_distance(const PatchDiscriminator::Output& real,
                            const PatchDiscriminator::Output& fake);

}  // namespace ultraflash
