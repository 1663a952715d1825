// Clips of the pocket world drawn on the GPU, where they are needed: the processors send a few
// kilobytes a clip instead of pictures.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "train/clips.h"
#include "train/objective.h"

namespace ultraflash {

/// Whether this build and device can draw `frames` frames of these clips.
bool draws_on_device(const TrainContext& context, const TrainingClips& clips, int64_t frames);

/// Scenes as the kernel reads them, u8 [clips, bytes of one] in pinned memory.
at::Tensor make_scene_rows(const TrainContext& context, int64_t clips);
/// Fills row `row` with the poses of clip `index` in `window`.
void prepare_scene_row(const TrainingClips& clips, int64_t index, const ClipWindow& window,
                       const at::Tensor& rows, int64_t row);
/// u8 [clips, frames, height, width, 3] on the device. One window for all, or one each, of one
/// size.
at::Tensor draw_scenes(const TrainContext& context, const at::Tensor& rows,
                       const std::vector<ClipWindow>& windows);

}  // namespace ultraflash
