// Frames and formats: what every part of the media layer passes around.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

/// Key and value pairs in the order they were given; both UTF-8.
using Metadata = std::vector<std::pair<std::string, std::string>>;

/// Size and rate of a video. The rate is a fraction, so that 30000/1001 stays exact.
struct VideoFormat {
  int64_t width = 0;
  int64_t height = 0;
  int64_t fps_num = 16;
  int64_t fps_den = 1;

  [[nodiscard]] double fps() const {
    return static_cast<double>(fps_num) / static_cast<double>(fps_den);
  }
};

/// View of one picture: 8-bit sRGB, interleaved R G B, rows from top to bottom. Owns nothing.
struct RgbFrame {
  const uint8_t* pixels = nullptr;
  int64_t width = 0;
  int64_t height = 0;
  int64_t row_stride = 0;  // bytes from one row to the next, at least 3 * width

  /// A view of `pixels` without gaps between the rows.
  static RgbFrame contiguous(const uint8_t* pixels, int64_t width, int64_t height) {
    return {pixels, width, height, 3 * width};
  }
  [[nodiscard]] const uint8_t* row(int64_t y) const { return pixels + y * row_stride; }
};

/// A picture that owns its pixels, without gaps between the rows.
struct RgbImage {
  int64_t width = 0;
  int64_t height = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3]

  /// A black picture. The size must be positive and has been checked by the caller.
  static RgbImage black(int64_t width, int64_t height) {
    return {width, height, std::vector<uint8_t>(static_cast<size_t>(width * height * 3))};
  }
  [[nodiscard]] RgbFrame view() const { return RgbFrame::contiguous(pixels.data(), width, height); }
  [[nodiscard]] uint8_t* row(int64_t y) { return pixels.data() + y * width * 3; }
};

/// The largest picture side that this layer writes.
inline constexpr int64_t kMaxFrameSide = 16384;

/// kInvalidArgument unless the size is in [1, kMaxFrameSide] and the rate a sensible fraction.
/// `what` begins the message: a path, or the name of a setting.
Status check_video_format(const VideoFormat& format, const std::string& what);

/// kInvalidArgument unless `frame` has pixels, a positive size and rows that do not overlap.
Status check_frame(const RgbFrame& frame, const std::string& what);

}  // namespace ultraflash
