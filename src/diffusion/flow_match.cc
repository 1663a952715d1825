#include "diffusion/flow_match.h"

#include <cmath>

#include "core/check.h"

namespace ultraflash {

FlowMatchSchedule::FlowMatchSchedule(float shift) : shift_(shift) {
  UF_CHECK(shift > 0.0F, "schedule shift {}", shift);
  sigmas_.reserve(kSteps);
  timesteps_.reserve(kSteps);
  // linspace(1, 0, 1001) in f32, evaluated from both ends as the reference's library does.
  const float step = -1.0F / static_cast<float>(kSteps);
  for (int64_t i = 0; i < kSteps; ++i) {
    const float u = i < (kSteps + 1) / 2 ? 1.0F + step * static_cast<float>(i)
                                         : 0.0F - step * static_cast<float>(kSteps - i);
    const float sigma = shift * u / (1.0F + (shift - 1.0F) * u);
    sigmas_.push_back(sigma);
    timesteps_.push_back(sigma * static_cast<float>(kSteps));
  }
}

Result<std::vector<float>> FlowMatchSchedule::warp(std::span<const int64_t> steps) const {
  if (steps.empty()) {
    return make_status(StatusCode::kInvalidArgument, "the list of denoising steps is empty");
  }
  std::vector<float> warped;
  int64_t previous = kSteps + 1;
  for (const int64_t step : steps) {
    if (step < 0 || step > kSteps) {
      return make_status(StatusCode::kInvalidArgument, "denoising step {} is outside 0 to {}", step,
                         kSteps);
    }
    if (step >= previous) {
      return make_status(StatusCode::kInvalidArgument,
                         "denoising steps must descend, but {} follows {}", step, previous);
    }
    previous = step;
    warped.push_back(step == 0 ? 0.0F : timesteps_[static_cast<size_t>(kSteps - step)]);
  }
  return warped;
}

float FlowMatchSchedule::sigma_at(float timestep) const {
  size_t best = 0;
  double best_distance =
      std::fabs(static_cast<double>(timesteps_[0]) - static_cast<double>(timestep));
  for (size_t i = 1; i < timesteps_.size(); ++i) {
    const double distance =
        std::fabs(static_cast<double>(timesteps_[i]) - static_cast<double>(timestep));
    if (distance < best_distance) {
      best = i;
      best_distance = distance;
    }
  }
  return sigmas_[best];
}

std::vector<int64_t> reduced_steps(int64_t total, int64_t wanted) {
  std::vector<int64_t> indices;
  if (wanted <= 0 || wanted >= total) {
    for (int64_t i = 0; i < total; ++i) indices.push_back(i);
    return indices;
  }
  if (wanted == 1) return {0};
  for (int64_t i = 0; i < wanted; ++i) {
    // nearbyint rounds halves to even in the default rounding mode.
    indices.push_back(static_cast<int64_t>(
        std::nearbyint(static_cast<double>(total - 1) * static_cast<double>(i) /
                       static_cast<double>(wanted - 1))));
  }
  return indices;
}

}  // namespace ultraflash
