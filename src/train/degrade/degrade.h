// The degradation pipeline of ultra-flash-training 2.4: large clips become small ones that look as
// generators' do. Order: pre-blur, downsampling, then groups M (movement), C (colour), S (noise), K
// (codec) on the small clip.
//
// Not here: H.264 itself, for which K1 stands in (colour.h), and P7, which works on latents.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "train/config.h"
#include "train/objective.h"
#include "train/world/scene.h"

namespace ultraflash::degrade {

/// One step on the small clip, with parameters drawn anew.
struct Operation {
  std::string_view name;
  std::string_view what;
  double probability = 0.0;
  at::Tensor (*apply)(const at::Tensor& clip, world::Draw& draw, double amplitude) = nullptr;
};
/// In the order in which they are done.
std::span<const Operation> operations();

inline constexpr double kPreBlurProbability = 0.4;

/// f32 [frames, 3, H, W] in [0, 1] -> [frames, 3, height, width]. Parameters come from `draw`,
/// noise from the device's generator.
at::Tensor degraded(const at::Tensor& clip, int64_t height, int64_t width, world::Draw& draw,
                    const DegradeConfig& config);

/// f32 [n, frames, H, W, 3], clip `first` and the next ones -> [n, frames, height, width, 3]: each
/// damaged or made small alone, as its number and the seed of the data say. For the same numbers
/// the same, if the device's generator is seeded before.
at::Tensor degraded_clips(const TrainContext& context, const at::Tensor& pictures, int64_t height,
                          int64_t width, int64_t first);

/// A row for every operation on one held-out clip, with the most visible parameters of several
/// draws: three frames without and with it and four times their difference. The log says what each
/// row is.
Result<RgbImage> degradation_sheet(const TrainContext& context);

}  // namespace ultraflash::degrade
