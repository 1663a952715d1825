// Single pictures: PNG files, contact sheets, resizing.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// zlib levels: 1 is fast, 9 is small.
inline constexpr int kFastPng = 1;
inline constexpr int kSmallPng = 9;

/// The bytes of a PNG file (8-bit RGB, tagged sRGB). kInvalidArgument, kUnsupported without libpng.
Result<std::vector<uint8_t>> encode_png(const RgbFrame& frame, int level = kFastPng);

/// Writes a PNG file; an existing one is replaced in one step when the new one is complete.
Status write_png(const std::string& path, const RgbFrame& frame, int level = kFastPng);

/// Largest picture that a reader takes; more is kUnsupported, before memory is asked for.
struct ImageLimits {
  int64_t max_side = kMaxFrameSide;
  int64_t max_pixels = 8192 * 4320;
};

/// Decodes a PNG of any kind to 8-bit RGB: grey and palettes are expanded, 16 bits rounded to 8,
/// transparency is dropped. `name` begins messages. kMalformed, kUnsupported, kOutOfMemory.
Result<RgbImage> decode_png(std::span<const uint8_t> bytes, const std::string& name,
                            const ImageLimits& limits = {});
Result<RgbImage> read_png(const std::string& path, const ImageLimits& limits = {});

/// How the frames of a contact sheet are laid out.
struct SheetOptions {
  int64_t columns = 0;      // 0: as square as possible
  int64_t margin = 8;       // pixels around and between the frames
  int64_t max_width = 0;    // frames are reduced until the sheet is at most this wide; 0: no limit
  uint8_t background = 32;  // grey level
};

/// Frames of one size in a grid, row by row. kInvalidArgument when there are none, their sizes
/// differ, or the sheet would pass kMaxFrameSide.
Result<RgbImage> contact_sheet(std::span<const RgbFrame> frames, const SheetOptions& options = {});

/// Resizes to `width` x `height`, each side on its own: an area average where it shrinks, linear
/// interpolation where it grows. Works on the stored values (no linear light). kInvalidArgument.
Result<RgbImage> resize(const RgbFrame& frame, int64_t width, int64_t height);

}  // namespace ultraflash
