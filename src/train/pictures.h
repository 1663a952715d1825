// Pictures as tensors: what stages share to compare, resize and show them.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "media/frame.h"
#include "train/clips.h"
#include "train/config.h"
#include "train/objective.h"

namespace ultraflash {

/// Forward difference along `axis`, one shorter.
at::Tensor difference(const at::Tensor& x, int64_t axis);

/// Of values in [0, 1], in dB; 100 when equal.
double psnr(double mean_square_error);

/// f32 pictures [batch, frames, height, width, c] in another size. Everything is antialiased;
/// kArea is the mean over boxes and shrinks by whole numbers only.
at::Tensor resized(const at::Tensor& pictures, int64_t height, int64_t width, ResizeFilter filter);

/// [0, 1] -> u8 on the CPU, rounded.
at::Tensor to_bytes(const at::Tensor& pictures);

/// Whole frames of clips 0 to `count` - 1 at `scale`, u8 [count, frames, height, width, 3] on the
/// CPU.
at::Tensor first_clips(const TrainContext& context, const TrainingClips& clips, int64_t scale,
                       int64_t frames, int64_t count);

/// Clips u8 [n, frames, height, width, 3] on the CPU -> a picture: a row a clip, `columns` of its
/// frames at equal distances.
RgbImage clip_sheet(const at::Tensor& clips, int64_t columns);

}  // namespace ultraflash
