// What a clip of the pocket world shows, measured from its pixels alone.
//
// The method, in the order of the steps; all but the texture on the 160 x 96 average of the frames:
//   background  the most frequent colour of every row, and a straight line over the rows through it
//   objects     pixels away from the background, told apart by colour
//   shape       the renderer's outline with the best overlap, over all turns
//   motion      centres of mass on the joined edges; direction and turn of their displacements
//   spin        phase of the outline's angular Fourier component of the shape's own symmetry
//   texture     Fourier amplitudes of the inside at the textures' frequencies and all directions,
//               at sizes from 320 x 192
// It knows nothing of how the clip was made.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "train/world/scene.h"

namespace ultraflash::world {

/// Frames of one size: u8 sRGB [frames, height, width, 3].
struct ClipView {
  const uint8_t* pixels = nullptr;
  int64_t frames = 0;
  int64_t width = 0;
  int64_t height = 0;

  [[nodiscard]] const uint8_t* frame(int64_t i) const { return pixels + i * width * height * 3; }
};

struct MeasuredObject {
  Rgb rgb;
  Colour colour = Colour::kRed;
  Shape shape = Shape::kCircle;
  double overlap = 0.0;  // with the best outline, intersection over union, 0 to 1
  Size size = Size::kSmall;
  double radius = 0.0;  // canvas pixels
  Motion motion = Motion::kStill;
  Speed speed = Speed::kSlow;
  double velocity = 0.0;  // canvas pixels per frame along the path
  bool spinning = false;
  std::optional<Texture> texture;  // nothing below 320 x 192, and for objects without an inside
};

struct MeasuredScene {
  Rgb ground_rgb;  // half way up
  Ground ground = Ground::kBlack;
  bool gradient = false;
  /// As many as were asked for, or fewer. Those of two are in the order of their visible area.
  std::vector<MeasuredObject> objects;
};

/// Measures a clip that should show `objects` objects (1 or 2). At least 8 frames, any size from
/// 160 x 96; other shapes than 5:3 are squeezed to it.
MeasuredScene measure(const ClipView& clip, int64_t objects);

/// The anchor on whose line from black `rgb` lies nearest: a texture darkens the mean colour.
Colour nearest_colour(Rgb rgb);
Ground nearest_ground(Rgb rgb);

}  // namespace ultraflash::world
