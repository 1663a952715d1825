#include "stream/quality_score.h"

#include <vector>

namespace ultraflash {

std::optional<double> sharpness_score(const Picture& picture) {
  const int64_t w = picture.width;
  const int64_t h = picture.height;
  if (w < 3 || h < 3) return std::nullopt;
  std::vector<float> luma(static_cast<size_t>(w * h));
  for (size_t i = 0; i < luma.size(); ++i) {
    const uint8_t* p = picture.rgb.data() + 3 * i;
    luma[i] = 0.2126F * static_cast<float>(p[0]) + 0.7152F * static_cast<float>(p[1]) +
              0.0722F * static_cast<float>(p[2]);
  }
  double sum = 0.0;
  for (int64_t y = 1; y + 1 < h; ++y) {
    for (int64_t x = 1; x + 1 < w; ++x) {
      const float* p = luma.data() + y * w + x;
      const auto laplacian = static_cast<double>(4.0F * p[0] - p[-1] - p[1] - p[-w] - p[w]);
      sum += laplacian * laplacian;
    }
  }
  const double mean = sum / static_cast<double>((w - 2) * (h - 2));
  return mean / (mean + 100.0);
}

}  // namespace ultraflash
