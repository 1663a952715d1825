// YUV4MPEG2 ("y4m"): a line of text, then frames of planar 8-bit YUV, each after its own line.
//
// Written and read: C420mpeg2, C444; read besides: C420jpeg, C420, C420paldv, C422, Cmono; 8 bits,
// progressive. The format has no tag for the colour matrix: files written here say XBT709, which
// other programs skip; without it the matrix is guessed from the size as players do (see
// guess_matrix).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "media/colour.h"
#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct Y4mHeader {
  VideoFormat format;  // fps_num 0: not stated
  YuvFormat yuv;
  std::string colour_space;  // the C tag: "420mpeg2"
};

/// Longest header or frame line that is read; real ones are below 200 bytes.
inline constexpr int64_t kMaxY4mLine = 1024;

/// The header line with its line break.
std::string y4m_header(const Y4mHeader& header);

/// Parses a header line without its line break. `name` begins messages; kMalformed, kUnsupported.
Result<Y4mHeader> parse_y4m_header(std::string_view line, const std::string& name);

/// Bytes of one frame without its line.
int64_t y4m_frame_bytes(const Y4mHeader& header);

/// BT.709 for pictures wider than 1279 or higher than 576, BT.601 below: what players assume when a
/// file does not say.
ColourMatrix guess_matrix(int64_t width, int64_t height);

}  // namespace ultraflash
