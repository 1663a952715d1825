#include "train/pictures.h"

#include <ATen/TensorIndexing.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace ultraflash {

at::Tensor difference(const at::Tensor& x, int64_t axis) {
  const int64_t size = x.size(axis);
  return x.narrow(axis, 1, size - 1) - x.narrow(axis, 0, size - 1);
}

double psnr(double mean_square_error) {
  return -10.0 * std::log10(std::max(mean_square_error, 1e-10));
}

at::Tensor resized(const at::Tensor& pictures, int64_t height, int64_t width, ResizeFilter filter) {
  const at::Tensor x = pictures.flatten(0, 1).permute({0, 3, 1, 2});  // [n, c, h, w]
  at::Tensor y;
  switch (filter) {
    case ResizeFilter::kArea:
      UF_CHECK(x.size(2) % height == 0 && x.size(3) % width == 0, "{}x{} of {}x{} by area", width,
               height, x.size(3), x.size(2));
      y = at::avg_pool2d(x, {x.size(2) / height, x.size(3) / width});
      break;
    case ResizeFilter::kBilinear:
      y = at::_upsample_bilinear2d_aa(x.contiguous(), {height, width}, /*align_corners=*/false);
      break;
    case ResizeFilter::kBicubic:
      y = at::_upsample_bicubic2d_aa(x.contiguous(), {height, width}, /*align_corners=*/false);
      break;
  }
  return y.permute({0, 2, 3, 1}).contiguous().unflatten(0, {pictures.size(0), pictures.size(1)});
}

at::Tensor to_bytes(const at::Tensor& pictures) {
  return (pictures * 255.0).add_(0.5).clamp_(0.0, 255.0).to(at::kCPU, at::kByte);
}

Windows busiest_windows(const at::Tensor& pictures, int64_t side) {
  constexpr int64_t kStride = 8;
  Windows windows;
  windows.side = std::min({side, pictures.size(1), pictures.size(2)});
  const int64_t n = pictures.size(0);
  const at::Tensor x = pictures.detach();
  const at::Tensor detail =
      at::constant_pad_nd(difference(x, 1).abs().sum(3), {0, 0, 0, 1}) +
      at::constant_pad_nd(difference(x, 2).abs().sum(3), {0, 1, 0, 0});  // [n, height, width]
  const at::Tensor sums =
      at::avg_pool2d(detail.unsqueeze(1), {windows.side, windows.side}, {kStride, kStride});
  const at::Tensor best = sums.reshape({n, -1}).argmax(1);
  windows.top = best.div(sums.size(3), "floor") * kStride;
  windows.left = best.remainder(sums.size(3)) * kStride;
  return windows;
}

at::Tensor cropped(const at::Tensor& pictures, const Windows& windows) {
  const at::Tensor offsets = at::arange(windows.side, windows.top.options());
  const at::Tensor rows = windows.top.unsqueeze(1) + offsets;      // [n, side]
  const at::Tensor columns = windows.left.unsqueeze(1) + offsets;  // [n, side]
  const at::Tensor all = at::arange(pictures.size(0), windows.top.options());
  return pictures.index({all.view({-1, 1, 1}), rows.unsqueeze(2), columns.unsqueeze(1)});
}

at::Tensor ms_ssim(const at::Tensor& a, const at::Tensor& b) {
  constexpr int64_t kWindow = 11;
  constexpr double kDeviation = 1.5;
  constexpr double kLuminance = 0.01 * 0.01;  // constants that keep the quotients finite
  constexpr double kContrast = 0.03 * 0.03;
  constexpr std::array<double, 5> kWeights = {0.0448, 0.2856, 0.3001, 0.2363, 0.1333};
  const int64_t channels = a.size(3);
  const at::Tensor offsets = at::arange(kWindow, a.options()) - static_cast<double>(kWindow / 2);
  const at::Tensor bell = (offsets.square() / (-2.0 * kDeviation * kDeviation)).exp();
  const at::Tensor line = (bell / bell.sum()).expand({channels, 1, kWindow});
  const auto blurred = [&](const at::Tensor& x) {
    const auto filter = [&](const at::Tensor& z, const at::Tensor& weight) {
      return at::conv2d(z, weight, /*bias=*/std::nullopt, /*stride=*/at::IntArrayRef{1},
                        /*padding=*/at::IntArrayRef{0}, /*dilation=*/at::IntArrayRef{1}, channels);
    };
    return filter(filter(x, line.unsqueeze(3)), line.unsqueeze(2));
  };
  at::Tensor x = a.permute({0, 3, 1, 2}).contiguous();
  at::Tensor y = b.permute({0, 3, 1, 2}).contiguous();
  size_t levels = 1;
  while (levels < kWeights.size() && std::min(x.size(2), x.size(3)) >> levels >= kWindow) ++levels;
  double sum = 0.0;
  for (size_t i = 0; i < levels; ++i) sum += kWeights[i];
  at::Tensor result = at::ones({a.size(0)}, a.options());
  for (size_t i = 0; i < levels; ++i) {
    const at::Tensor mean_x = blurred(x);
    const at::Tensor mean_y = blurred(y);
    const at::Tensor var_x = blurred(x * x) - mean_x * mean_x;
    const at::Tensor var_y = blurred(y * y) - mean_y * mean_y;
    const at::Tensor both = blurred(x * y) - mean_x * mean_y;
    at::Tensor similar = (2.0 * both + kContrast) / (var_x + var_y + kContrast);
    if (i + 1 == levels) {
      similar = similar * (2.0 * mean_x * mean_y + kLuminance) /
                (mean_x * mean_x + mean_y * mean_y + kLuminance);
    } else {
      x = at::avg_pool2d(x, {2, 2});
      y = at::avg_pool2d(y, {2, 2});
    }
    result = result * similar.mean({1, 2, 3}).clamp_min(0.0).pow(kWeights[i] / sum);
  }
  return result;
}

at::Tensor spectrum_distance(const at::Tensor& a, const at::Tensor& b) {
  constexpr int64_t kStride = 8;
  constexpr double kTiny = 1e-8;  // where a magnitude has no slope
  const int64_t side = std::min<int64_t>({24, a.size(1), a.size(2)});
  const at::Tensor bell = at::hann_window(side, a.options().requires_grad(false));
  const at::Tensor weight = bell.unsqueeze(1) * bell / (bell.sum() * bell.sum());
  const auto magnitudes = [&](const at::Tensor& x) {
    const at::Tensor windows = x.mean(3).unfold(1, side, kStride).unfold(2, side, kStride);
    const at::Tensor waves = at::fft_rfft2((windows - windows.mean({-1, -2}, true)) * weight);
    return (at::view_as_real(waves).square().sum(-1) + kTiny).sqrt();  // [n, rows, columns, f, f]
  };
  // A real wave has two coefficients, of which this half of the plane holds one.
  return (magnitudes(a) - magnitudes(b)).abs().sum({-1, -2}).mean();
}

at::Tensor first_clips(const TrainContext& context, const TrainingClips& clips, int64_t scale,
                       int64_t frames, int64_t count) {
  ClipWindow window;
  window.scale = scale;
  window.frames = frames;
  window.width = context.width() * scale;
  window.height = context.height() * scale;
  at::Tensor pictures = at::empty({count, frames, window.height, window.width, 3}, at::kByte);
  std::vector<std::thread> threads;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  for (int64_t t = 0; t < std::min(context.workers(), count); ++t) {
    threads.emplace_back([&] {
      try {
        for (int64_t i = next++; i < count; i = next++) {
          clips.render(i, window, pictures.mutable_data_ptr<uint8_t>() + i * window.bytes());
        }
      } catch (...) {
        const std::lock_guard lock(mutex);
        error = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
  return pictures;
}

RgbImage clip_sheet(const at::Tensor& clips, int64_t columns) {
  const at::Tensor c = clips.contiguous();
  const int64_t count = c.size(0);
  const int64_t frames = c.size(1);
  const int64_t height = c.size(2);
  const int64_t width = c.size(3);
  columns = std::min(columns, frames);
  constexpr int64_t kGap = 4;
  RgbImage image = RgbImage::black(columns * (width + kGap) - kGap, count * (height + kGap) - kGap);
  for (int64_t clip = 0; clip < count; ++clip) {
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t frame = columns == 1 ? 0 : column * (frames - 1) / (columns - 1);
      const uint8_t* pixels =
          c.const_data_ptr<uint8_t>() + (clip * frames + frame) * height * width * 3;
      for (int64_t y = 0; y < height; ++y) {
        std::copy_n(pixels + y * width * 3, width * 3,
                    image.row(clip * (height + kGap) + y) + column * (width + kGap) * 3);
      }
    }
  }
  return image;
}

}  // namespace ultraflash
