// Colour, noise and codec degradations: C1, C2, S1, S2 of ultra-flash-training 2.4,
// and a stand-in for its K1. A clip is f32 [frames, 3, height, width] in [0, 1] on any device.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "train/world/scene.h"

namespace ultraflash::degrade {

/// RGB and full-range YCbCr of BT.601 with Cb and Cr around 0.
at::Tensor to_ycc(const at::Tensor& clip);
at::Tensor from_ycc(const at::Tensor& ycc);

/// C1: brightness and colour of each frame waver.
struct Flicker {
  double gain = 1.0;
  double bias = 0.0;
  double gamma = 1.0;
  double saturation = 1.0;
};
at::Tensor flicker(const at::Tensor& clip, const std::vector<Flicker>& frames);
/// Each frame's is 0.7 of the last one's deviation and something new.
std::vector<Flicker> draw_flicker(world::Draw& draw, int64_t frames, double amplitude);

/// C2: saturation and contrast grow linearly to these factors at the end of the clip, as those of a
/// generator do that feeds on its own output.
at::Tensor colour_drift(const at::Tensor& clip, double saturation, double contrast);

/// S1: noise from the device's generator. `sigma` of Gaussian noise in [0, 1] units; `grey`: the
/// same for all channels.
at::Tensor gaussian_noise(const at::Tensor& clip, double sigma, bool grey);
/// Counts of light with `scale` times the deviation of a full scale of 255 counts.
at::Tensor poisson_noise(const at::Tensor& clip, double scale, bool grey);

/// S2: what JPEG of `quality` 1 to 100 leaves, 4:2:0, with the tables of ITU-T T.81 annex K; the
/// entropy coding, which loses nothing, is left out.
at::Tensor jpeg(const at::Tensor& clip, double quality);

/// K1's stand-in without an encoder: the blocks of a predictive codec. Every `gop` frames one is
/// coded by itself, the others by their difference from the decoded frame before, in 8x8 cosine
/// blocks with the quantiser step of H.264 at `crf`, 2^((crf - 4) / 6) / 255.
at::Tensor predictive_blocks(const at::Tensor& clip, double crf, int64_t gop);

}  // namespace ultraflash::degrade
