#include "train/pictures.h"

#include <algorithm>
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
