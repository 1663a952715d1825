// One moment of the same captions in several folders of videos, side by side: how a stage of the
// cascade differs from the ones before it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash::world {

struct ComparisonOptions {
  /// The first has the captions.jsonl whose files are looked for in all; objects are found in it.
  std::vector<std::string> folders;
  int64_t clips = 12;   // at most so many rows
  double at = 2.5;      // seconds from the beginning
  int64_t side = 56;    // of the square around an object, in pixels of the base size
  int64_t enlarge = 1;  // of the largest video's pixels, by repetition
};

/// A row a caption that names a texture, a column a folder: the square around the first object with
/// a texture. Smaller videos are enlarged to the largest by linear interpolation. kNotFound when a
/// file is missing or too short, kInvalidArgument when no caption names a texture.
Result<RgbImage> comparison_sheet(const ComparisonOptions& options);

}  // namespace ultraflash::world
