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

/// Squares of `side` pixels, one a picture: first rows and columns, i64 [pictures] on the device of
/// the pictures.
struct Windows {
  at::Tensor top;
  at::Tensor left;
  int64_t side = 0;
};
/// Of pictures [n, height, width, c] the windows with most detail (differences between neighbours).
/// Smaller than `side` where the pictures are.
Windows busiest_windows(const at::Tensor& pictures, int64_t side);
/// [n, height, width, c] -> [n, side, side, c].
at::Tensor cropped(const at::Tensor& pictures, const Windows& windows);

/// Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003) of pictures f32
/// [n, height, width, c] in [0, 1]: f32 [n], 1 for equal ones. As many of the five sizes as its
/// 11-pixel window fits, the others' weights shared out.
at::Tensor ms_ssim(const at::Tensor& a, const at::Tensor& b);

/// How much amplitude pictures [n, height, width, c] in [0, 1] have at other frequencies, wherever
/// their waves begin: sums of differences between magnitudes of Fourier coefficients of the mean
/// over channels, in weighted windows of 24 pixels (or what fits) every 8, means over windows. A
/// missing sine wave of amplitude a counts 2 a to 3 a, by its direction.
at::Tensor spectrum_distance(const at::Tensor& a, const at::Tensor& b);

/// Whole frames of clips 0 to `count` - 1 at `scale`, u8 [count, frames, height, width, 3] on the
/// CPU.
at::Tensor first_clips(const TrainContext& context, const TrainingClips& clips, int64_t scale,
                       int64_t frames, int64_t count);

/// Clips u8 [n, frames, height, width, 3] on the CPU -> a picture: a row a clip, `columns` of its
/// frames at equal distances.
RgbImage clip_sheet(const at::Tensor& clips, int64_t columns);

}  // namespace ultraflash
