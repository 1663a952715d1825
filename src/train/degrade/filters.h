// Blurring and resizing degradations: P1, P2 and K2 of ultra-flash-training 2.4. A clip here is f32
// [frames, 3, height, width] in [0, 1] on any device.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "train/config.h"
#include "train/world/scene.h"

namespace ultraflash::degrade {

/// Kernels of Real-ESRGAN's first stage.
enum class KernelFamily : uint8_t {
  kIso,          // Gaussian
  kAniso,        // Gaussian with two widths, turned
  kGeneralised,  // exp(-d^(2 beta) / 2), d the Gaussian's distance
  kGeneralisedAniso,
  kPlateau,  // 1 / (1 + d^(2 beta))
  kPlateauAniso,
  kSinc,  // circular low-pass
};

struct Kernel {
  KernelFamily family = KernelFamily::kIso;
  int64_t size = 7;      // odd
  double sigma_x = 1.0;  // pixels
  double sigma_y = 1.0;
  double angle = 0.0;   // radians
  double beta = 1.0;    // of the generalised and plateau families
  double cutoff = 2.0;  // of the sinc, radians per pixel
};

/// f32 [size, size] on the CPU, sum 1.
at::Tensor make_kernel(const Kernel& kernel);
/// Every plane convolved with an odd square kernel; edges mirror.
at::Tensor filtered(const at::Tensor& clip, const at::Tensor& kernel);

/// Pre-blur of the large clip (P1): family, widths and size at random. `amplitude` scales widths.
Kernel draw_blur(world::Draw& draw, double amplitude);
/// The final low-pass (K2).
Kernel draw_sinc(world::Draw& draw);

struct Downsampling {
  ResizeFilter filter = ResizeFilter::kArea;
  double between = 1.0;  // an intermediate size, as a multiple of the last one; 1: none
};
/// P2: bilinear, area or bicubic, antialiased, to height x width.
at::Tensor downsampled(const at::Tensor& clip, int64_t height, int64_t width,
                       const Downsampling& how);
/// `amplitude` scales how far the intermediate size is from the last.
Downsampling draw_downsampling(world::Draw& draw, double amplitude);

}  // namespace ultraflash::degrade
