// Flow matching: the noise schedule, and the few-step sampler's arithmetic.
// Follows Self-Forcing utils/scheduler.py (FlowMatchScheduler) and pipeline/causal_inference.py.
//
// x_t = (1 - sigma) x0 + sigma eps, t = 1000 sigma, and the network predicts v = eps - x0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

/// 1000 training steps warped by `shift`, as the reference tabulates them in f32.
class FlowMatchSchedule {
 public:
  static constexpr int64_t kSteps = 1000;

  /// shift > 0; 5 for Self-Forcing.
  explicit FlowMatchSchedule(float shift = 5.0F);

  [[nodiscard]] float shift() const { return shift_; }
  /// sigma_i = k u_i / (1 + (k - 1) u_i), u from 1 down to 1/1000.
  [[nodiscard]] std::span<const float> sigmas() const { return sigmas_; }
  /// t_i = 1000 sigma_i.
  [[nodiscard]] std::span<const float> timesteps() const { return timesteps_; }
  /// The step list as the network sees it: step s becomes t_(1000 - s), and step 0 becomes 0.
  /// kInvalidArgument for a step outside [0, 1000], an empty list or one that does not descend.
  [[nodiscard]] Result<std::vector<float>> warp(std::span<const int64_t> steps) const;
  /// Noise level of timestep t: that of the nearest entry of the table, the first on a tie.
  [[nodiscard]] float sigma_at(float timestep) const;

 private:
  float shift_;
  std::vector<float> sigmas_;
  std::vector<float> timesteps_;
};

/// Which of the `total` denoising steps a chunk runs when it may take `wanted` of them: indices
/// round_half_even(linspace(0, total - 1, wanted)), or the first alone. Ultra Flash, dynamic cache
/// management (i).
std::vector<int64_t> reduced_steps(int64_t total, int64_t wanted);

}  // namespace ultraflash
