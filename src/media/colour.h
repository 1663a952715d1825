// Colour conversion between RGB and planar 8-bit YUV.
//
// Plain loops over strips of a row, in float, that a compiler vectorises; no memory is allocated.
// Coefficients follow ITU-R BT.709-6, BT.601-7 and BT.2020-2 (non-constant luminance). No gamma is
// applied: R'G'B' in, Y'CbCr out.
#pragma once

#include <cstdint>

#include "media/frame.h"

namespace ultraflash {

enum class ColourMatrix : uint8_t { kBt601, kBt709, kBt2020 };
enum class ColourRange : uint8_t {
  kLimited,  // luma 16..235, chroma 16..240
  kFull,     // 0..255
};
/// How many chroma samples there are: none, a quarter, half or all.
enum class ChromaLayout : uint8_t { k400, k420, k422, k444 };
/// Where a chroma sample of a 4:2:0 or 4:2:2 picture lies horizontally: on the left luma sample of
/// its pair (MPEG-2, H.264) or between the two (JPEG, MPEG-1). Vertically it lies between two rows.
enum class ChromaSiting : uint8_t { kLeft, kCentre };

/// What the numbers of a YUV picture mean. The default is what this layer writes.
struct YuvFormat {
  ChromaLayout layout = ChromaLayout::k420;
  ChromaSiting siting = ChromaSiting::kLeft;
  ColourMatrix matrix = ColourMatrix::kBt709;
  ColourRange range = ColourRange::kLimited;
};

/// Three planes to write or read. Chroma planes are unused (may be null) for k400.
template <typename Byte>
struct YuvPlanes {
  Byte* y = nullptr;
  Byte* u = nullptr;
  Byte* v = nullptr;
  int64_t y_stride = 0;   // bytes from one luma row to the next
  int64_t uv_stride = 0;  // bytes from one chroma row to the next
};

/// Chroma samples per row and rows of chroma; odd luma sizes round up.
int64_t chroma_width(ChromaLayout layout, int64_t width);
int64_t chroma_height(ChromaLayout layout, int64_t height);

/// RGB to BT.709 limited range, rounded to nearest. `layout` is k420 (left siting: weights 1 2 1
/// across, 1 1 down, edges repeated) or k444; anything else is a mistake of the caller.
void rgb_to_yuv(const RgbFrame& rgb, ChromaLayout layout, const YuvPlanes<uint8_t>& yuv);

/// YUV to RGB of `width` x `height` pixels at `rgb`, rows `row_stride` bytes apart; chroma is
/// interpolated linearly, results are rounded to nearest and clamped to 0..255.
void yuv_to_rgb(const YuvPlanes<const uint8_t>& yuv, const YuvFormat& format, int64_t width,
                int64_t height, uint8_t* rgb, int64_t row_stride);

}  // namespace ultraflash
