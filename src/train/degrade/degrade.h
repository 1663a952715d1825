// The degradation pipeline of ultra-flash-training 2.4: large clips become small ones that look as
// generators' do. Order: pre-blur, downsampling, then groups M (movement), C (colour), S (noise), K
// (codec) on the small clip.
//
// K1 and the flow of M1 and M3 depend on the build (DegradeConfig::codec and flow). Not here: P7,
// which works on latents.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <span>
#include <string>
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
  at::Tensor (*apply)(const at::Tensor& clip, world::Draw& draw,
                      const DegradeConfig& config) = nullptr;
};
/// In the order in which they are done.
std::span<const Operation> operations();

inline constexpr double kPreBlurProbability = 0.4;

/// What `config` gets in this build: "H.264 by libx264, optical flow by OpenCV", in a sentence.
/// kUnsupported when it asks for what the build lacks.
Result<std::string> describe(const DegradeConfig& config);
/// Whether something takes the place of H.264 or of the dense flow.
bool stands_in(const DegradeConfig& config);
/// From each frame to the next, as config.flow says.
at::Tensor flow_of(const at::Tensor& clip, const DegradeConfig& config);
/// K1: what H.264 at `crf` with a key frame every `gop` frames leaves. Throws Error as
/// recode_h264() fails.
at::Tensor h264(const at::Tensor& clip, int crf, int64_t gop, const std::string& preset);

/// f32 [frames, 3, H, W] in [0, 1] -> [frames, 3, height, width]. Parameters come from `draw`,
/// noise from the device's generator.
at::Tensor degraded(const at::Tensor& clip, int64_t height, int64_t width, world::Draw& draw,
                    const DegradeConfig& config);

/// Whether clip `index` is one of those that are damaged.
bool chosen(const TrainContext& context, int64_t index);
/// f32 [frames, H, W, 3] in [0, 1], clip `index` -> [frames, height, width, 3], damaged with
/// parameters that the clip's number and the seed of the data give. Seeds the device's generator.
at::Tensor damaged_clip(const TrainContext& context, const at::Tensor& pictures, int64_t height,
                        int64_t width, int64_t index);

/// f32 [n, frames, H, W, 3], clip `first` and the next ones -> [n, frames, height, width, 3]: each
/// damaged, or made small alone where it is not chosen.
at::Tensor degraded_clips(const TrainContext& context, const at::Tensor& pictures, int64_t height,
                          int64_t width, int64_t first);

/// A row for every operation on one held-out clip, with the most visible parameters of several
/// draws: three frames without and with it and four times their difference. The log says what each
/// row is.
Result<RgbImage> degradation_sheet(const TrainContext& context);

}  // namespace ultraflash::degrade
