// What a video codec leaves of frames: encoded and decoded again, in memory.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct RecodeOptions {
  int crf = 23;                 // 1 (best) to 51
  int64_t gop = 24;             // frames from one key frame to the next
  std::string preset = "fast";  // of x264
};

/// Whether this build and the installed libavcodec can: libx264 and a decoder of H.264 are there.
bool can_recode();

/// Replaces u8 RGB frames [frames, height, width, 3] by what H.264 of 4:2:0 makes of them. Odd
/// sides are coded with their last row or column twice. The same input gives the same output.
/// kUnsupported without libx264 or a decoder, kInvalidArgument for what the encoder refuses.
Status recode_h264(std::span<uint8_t> pixels, const VideoFormat& format,
                   const RecodeOptions& options);

}  // namespace ultraflash
