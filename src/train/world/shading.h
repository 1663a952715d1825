// What one canvas pixel of an object looks like: shared by the CPU renderer, the CUDA kernel and
// the evaluator's templates. Plain arithmetic without branches, so that loops over it become vector
// code.
//
// Coordinates (u, v) are canvas pixels from the object's centre, turned with the object, v
// downwards. Every shape has its centre of mass at (0, 0). Edges are anti-aliased over one canvas
// pixel: an edge at signed distance d (negative inside) covers clamp(1/2 - d) of the pixel.
#pragma once

#include <cmath>
#include <cstdint>

#include "train/world/scene.h"

namespace ultraflash::world {

/// How dark the dark half of a texture is, and the period of its pattern in canvas pixels.
inline constexpr float kTextureShade = 0.55F;
inline constexpr float kTexturePeriod = 8.0F;

/// Proportions of the shapes, as parts of the object's radius.
inline constexpr float kSquareHalfSide = 0.88F;
inline constexpr float kTriangleInradius = 0.6F;
inline constexpr float kStarTip = 1.15F;
inline constexpr float kStarNotch = 0.5F;  // radius of the inner corners
inline constexpr float kRingHole = 0.55F;
inline constexpr float kCrossArm = 0.33F;  // half the width of an arm
inline constexpr float kDotRadius = 2.7F;  // canvas pixels

namespace shading {

UF_HOST_DEVICE inline float smaller(float a, float b) { return a < b ? a : b; }
UF_HOST_DEVICE inline float larger(float a, float b) { return a > b ? a : b; }
UF_HOST_DEVICE inline float clamp01(float a) { return smaller(larger(a, 0.0F), 1.0F); }
UF_HOST_DEVICE inline float magnitude(float a) { return a < 0.0F ? -a : a; }
UF_HOST_DEVICE inline float root(float a) { return rng::square_root(a); }

/// Position inside a period of length 1 that is centred on 0: in [-1/2, 1/2). |a| < 1000. The
/// conversion truncates, hence the offset.
UF_HOST_DEVICE inline float in_period(float a) {
  const float shifted = a + 1024.5F;
  return shifted - static_cast<float>(static_cast<int32_t>(shifted)) - 0.5F;
}

}  // namespace shading

/// Signed distance to the outline (exact near edges, a lower bound elsewhere).
template <Shape SHAPE>
UF_HOST_DEVICE inline float outline_distance(float u, float v, float radius) {
  using namespace shading;
  const float au = magnitude(u);
  const float av = magnitude(v);
  if constexpr (SHAPE == Shape::kCircle) {
    return root(u * u + v * v) - radius;
  } else if constexpr (SHAPE == Shape::kSquare) {
    return larger(au, av) - kSquareHalfSide * radius;
  } else if constexpr (SHAPE == Shape::kTriangle) {
    // Equilateral, one corner up.
    return larger(v, 0.8660254F * au - 0.5F * v) - kTriangleInradius * radius;
  } else if constexpr (SHAPE == Shape::kStar) {
    // Five points, one up. Folding along the mirror lines at 72 and 36 degrees from "up" leaves the
    // edge from the tip (0, tip) to the inner corner at 36 degrees.
    float x = au;
    float y = -v;
    // Mirror at 72 degrees: the normal that points to larger angles is (cos 72, -sin 72).
    float past = 2.0F * larger(0.30901699F * x - 0.95105652F * y, 0.0F);
    x = magnitude(x - past * 0.30901699F);
    y = y + past * 0.95105652F;
    past = 2.0F * larger(0.80901699F * x - 0.58778525F * y, 0.0F);  // 36 degrees
    x = magnitude(x - past * 0.80901699F);
    y = y + past * 0.58778525F;
    // Corner (notch sin 36, notch cos 36); the edge's normal is (tip - corner_y, corner_x) /
    // length.
    constexpr float kCornerX = kStarNotch * 0.58778525F;
    constexpr float kDrop = kStarTip - kStarNotch * 0.80901699F;
    const float length = root(kDrop * kDrop + kCornerX * kCornerX);
    return (kDrop * x + kCornerX * (y - kStarTip * radius)) / length;
  } else if constexpr (SHAPE == Shape::kRing) {
    const float middle = 0.5F * (1.0F + kRingHole) * radius;
    return magnitude(root(u * u + v * v) - middle) - 0.5F * (1.0F - kRingHole) * radius;
  } else {
    const float arm = kCrossArm * radius;
    return smaller(larger(au - radius, av - arm), larger(au - arm, av - radius));
  }
}

/// Farthest point of the outline from the centre, as a part of the radius.
UF_HOST_DEVICE inline float reach_of(Shape shape) {
  switch (shape) {
    case Shape::kSquare:
      return 1.4142136F * kSquareHalfSide;
    case Shape::kTriangle:
      return 2.0F * kTriangleInradius;
    case Shape::kStar:
      return kStarTip;
    case Shape::kCross:
      return 1.06F;
    case Shape::kCircle:
    case Shape::kRing:
      break;
  }
  return 1.0F;
}

/// Factor on the object's colour, kTextureShade to 1.
template <Texture TEXTURE>
UF_HOST_DEVICE inline float texture_shade(float u, float v) {
  using namespace shading;
  if constexpr (TEXTURE == Texture::kPlain) {
    return 1.0F;
  } else if constexpr (TEXTURE == Texture::kStriped) {
    // Canvas pixels into the dark half of a period.
    const float into = (magnitude(in_period(u / kTexturePeriod)) - 0.25F) * kTexturePeriod;
    return 1.0F - (1.0F - kTextureShade) * clamp01(0.5F + into);
  } else if constexpr (TEXTURE == Texture::kDotted) {
    const float du = in_period(u / kTexturePeriod) * kTexturePeriod;
    const float dv = in_period(v / kTexturePeriod) * kTexturePeriod;
    return 1.0F - (1.0F - kTextureShade) * clamp01(0.5F + kDotRadius - root(du * du + dv * dv));
  } else {
    const float du = (magnitude(in_period(u / kTexturePeriod)) - 0.25F) * kTexturePeriod;
    const float dv = (magnitude(in_period(v / kTexturePeriod)) - 0.25F) * kTexturePeriod;
    // Each factor is -1/2 on light columns (rows) and 1/2 on dark ones; like signs are dark.
    const float product = (clamp01(0.5F + du) - 0.5F) * (clamp01(0.5F + dv) - 0.5F);
    return 1.0F - (1.0F - kTextureShade) * (0.5F + 2.0F * product);
  }
}

/// An object at one frame, ready to be drawn.
struct PlacedObject {
  float x = 0.0F;  // centre, canvas pixels
  float y = 0.0F;
  float cosine = 1.0F;
  float sine = 0.0F;
  float radius = 0.0F;
  float reach = 0.0F;  // beyond it nothing is covered
  Rgb colour;
  Shape shape = Shape::kCircle;
  Texture texture = Texture::kPlain;
};

/// Coverage and shade of the object at offset (dx, dy) canvas pixels from its centre.
struct Sample {
  float coverage;
  float shade;
};
template <Shape SHAPE, Texture TEXTURE>
UF_HOST_DEVICE inline Sample sample_object_at(float dx, float dy, float cosine, float sine,
                                              float radius) {
  const float u = cosine * dx + sine * dy;
  const float v = cosine * dy - sine * dx;
  return {shading::clamp01(0.5F - outline_distance<SHAPE>(u, v, radius)),
          texture_shade<TEXTURE>(u, v)};
}

PlacedObject place(const SceneObject& object, int64_t frame);

}  // namespace ultraflash::world
