// The renderer of the pocket world on the CPU.
//
// The picture is defined on the canvas of 480 x 288 pixels with anti-aliased edges. The other sizes
// are area averages of it (of the stored sRGB values), so that the three agree:
//   scale 1: 160 x 96, scale 2: 320 x 192, scale 3: 480 x 288.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "train/world/scene.h"

namespace ultraflash::world {

inline constexpr int64_t kBaseWidth = 160;
inline constexpr int64_t kBaseHeight = 96;

/// Which part of a scene to draw: a rectangle of the picture at `scale`, and a range of frames.
struct RenderWindow {
  int64_t scale = 1;        // 1, 2 or 3
  int64_t first_frame = 0;  // any, also far into an endless stream
  int64_t frames = kClipFrames;
  int64_t x = 0;
  int64_t y = 0;
  int64_t width = kBaseWidth;
  int64_t height = kBaseHeight;

  /// The whole picture at `scale`.
  static RenderWindow whole(int64_t scale, int64_t first_frame, int64_t frames) {
    return {scale, first_frame, frames, 0, 0, scale * kBaseWidth, scale * kBaseHeight};
  }
  [[nodiscard]] int64_t bytes() const { return frames * height * width * 3; }
};

/// The scale whose whole picture is `width` x `height`; 0 when there is none.
int64_t scale_of(int64_t width, int64_t height);

/// Fills `out` [frames, height, width, 3] with 8-bit sRGB. The window lies inside the picture. One
/// thread; scenes are independent of each other.
void render(const Scene& scene, const RenderWindow& window, std::span<uint8_t> out);
std::vector<uint8_t> render(const Scene& scene, const RenderWindow& window);

}  // namespace ultraflash::world
