#include "train/degrade/filters.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "train/pictures.h"

namespace ultraflash::degrade {
namespace {

// First-order Bessel function of the first kind over its argument; 1/2 at 0.
double bessel_over(double x) { return x < 1e-6 ? 0.5 : std::cyl_bessel_j(1.0, x) / x; }

}  // namespace

at::Tensor make_kernel(const Kernel& k) {
  UF_CHECK(k.size % 2 == 1 && k.size > 0, "a kernel of {}", k.size);
  at::Tensor kernel = at::empty({k.size, k.size}, at::kFloat);
  auto values = kernel.accessor<float, 2>();
  const double cosine = std::cos(k.angle);
  const double sine = std::sin(k.angle);
  const int64_t middle = k.size / 2;
  for (int64_t j = 0; j < k.size; ++j) {
    for (int64_t i = 0; i < k.size; ++i) {
      const auto x = static_cast<double>(i - middle);
      const auto y = static_cast<double>(j - middle);
      const double u = (cosine * x + sine * y) / k.sigma_x;
      const double v = (cosine * y - sine * x) / k.sigma_y;
      const double square = u * u + v * v;
      double value = 0.0;
      switch (k.family) {
        case KernelFamily::kIso:
        case KernelFamily::kAniso:
          value = std::exp(-0.5 * square);
          break;
        case KernelFamily::kGeneralised:
        case KernelFamily::kGeneralisedAniso:
          value = std::exp(-0.5 * std::pow(square, k.beta));
          break;
        case KernelFamily::kPlateau:
        case KernelFamily::kPlateauAniso:
          value = 1.0 / (1.0 + std::pow(square, k.beta));
          break;
        case KernelFamily::kSinc: {
          // The disc of radius `cutoff` in frequency.
          const double r = std::sqrt(x * x + y * y);
          value = k.cutoff * k.cutoff / (2.0 * std::numbers::pi) * bessel_over(k.cutoff * r);
          break;
        }
      }
      values[j][i] = static_cast<float>(value);
    }
  }
  return kernel / kernel.sum();
}

at::Tensor filtered(const at::Tensor& clip, const at::Tensor& kernel) {
  const int64_t side = kernel.size(0) / 2;
  const at::Tensor planes = clip.flatten(0, 1).unsqueeze(1);  // [frames * 3, 1, h, w]
  const at::Tensor padded = at::reflection_pad2d(planes, {side, side, side, side});
  return at::conv2d(padded, kernel.to(clip.device()).view({1, 1, kernel.size(0), kernel.size(1)}))
      .view(clip.sizes());
}

Kernel draw_blur(world::Draw& draw, double amplitude) {
  constexpr std::array<double, 7> kShares = {0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1};
  double u = draw.uniform(0.0, 1.0);
  size_t family = 0;
  while (family + 1 < kShares.size() && u >= kShares[family]) u -= kShares[family++];
  Kernel k;
  k.family = static_cast<KernelFamily>(family);
  k.size = 7 + 2 * draw.below(8);
  k.sigma_x = amplitude * draw.uniform(0.2, 1.5);
  k.sigma_y = k.sigma_x;
  if (k.family == KernelFamily::kAniso || k.family == KernelFamily::kGeneralisedAniso ||
      k.family == KernelFamily::kPlateauAniso) {
    k.sigma_y = amplitude * draw.uniform(0.2, 1.5);
    k.angle = draw.uniform(-std::numbers::pi, std::numbers::pi);
  }
  const bool plateau =
      k.family == KernelFamily::kPlateau || k.family == KernelFamily::kPlateauAniso;
  k.beta = plateau ? draw.uniform(1.0, 2.0) : draw.uniform(0.5, 4.0);
  k.cutoff = draw.uniform(std::numbers::pi / 3.0, std::numbers::pi);
  return k;
}

Kernel draw_sinc(world::Draw& draw) {
  Kernel k;
  k.family = KernelFamily::kSinc;
  k.size = 7 + 2 * draw.below(8);
  k.cutoff = draw.uniform(std::numbers::pi / 3.0, std::numbers::pi);
  return k;
}

at::Tensor downsampled(const at::Tensor& clip, int64_t height, int64_t width,
                       const Downsampling& how) {
  at::Tensor x = clip.permute({0, 2, 3, 1}).unsqueeze(0);  // [1, frames, h, w, 3]
  if (how.between != 1.0) {
    const auto side = [&](int64_t length) {
      return std::max<int64_t>(1, std::llround(how.between * static_cast<double>(length)));
    };
    x = resized(x, side(height), side(width), ResizeFilter::kBilinear);
  }
  const bool whole = x.size(2) % height == 0 && x.size(3) % width == 0;
  const ResizeFilter filter =
      how.filter == ResizeFilter::kArea && !whole ? ResizeFilter::kBilinear : how.filter;
  return resized(x, height, width, filter).squeeze(0).permute({0, 3, 1, 2}).contiguous();
}

Downsampling draw_downsampling(world::Draw& draw, double amplitude) {
  Downsampling how;
  const double u = draw.uniform(0.0, 1.0);
  how.filter = u < 0.5    ? ResizeFilter::kBilinear
               : u < 0.75 ? ResizeFilter::kArea
                          : ResizeFilter::kBicubic;
  if (draw.chance(0.5)) how.between = 1.0 + amplitude * draw.uniform(-0.5, 0.2);
  return how;
}

}  // namespace ultraflash::degrade
