#include "media/frame.h"

#include <limits>

#include "core/check.h"

namespace ultraflash {

Status check_video_format(const VideoFormat& format, const std::string& what) {
  if (format.width < 1 || format.height < 1 || format.width > kMaxFrameSide ||
      format.height > kMaxFrameSide) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: the frame size is {}x{}; both sides must be 1 to {} pixels", what,
                       format.width, format.height, kMaxFrameSide);
  }
  // The upper bounds keep every product of a rate and a frame count within 64 bits.
  constexpr int64_t kMaxTerm = std::numeric_limits<int32_t>::max();
  if (format.fps_num < 1 || format.fps_den < 1 || format.fps_num > kMaxTerm ||
      format.fps_den > kMaxTerm || format.fps_num > 1000 * format.fps_den) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: the frame rate is {}/{}; give a fraction of whole numbers above zero, "
                       "at most 1000 frames per second",
                       what, format.fps_num, format.fps_den);
  }
  return {};
}

Status check_frame(const RgbFrame& frame, const std::string& what) {
  if (frame.pixels == nullptr || frame.width < 1 || frame.height < 1) {
    return make_status(StatusCode::kInvalidArgument, "{}: the frame is empty ({}x{} pixels)", what,
                       frame.width, frame.height);
  }
  if (frame.row_stride < 3 * frame.width) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: the rows of the frame are {} bytes apart, but {} pixels need {}", what,
                       frame.row_stride, frame.width, 3 * frame.width);
  }
  return {};
}

}  // namespace ultraflash
