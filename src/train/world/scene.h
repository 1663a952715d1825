// The pocket world: one or two flat objects moving on a background, described by a caption.
// Everything about a scene follows from (seed, index) through Philox, on any machine.
//
// The canvas is 480 x 288 pixels ("canvas pixels"), 16 frames a second; see render.h for the sizes
// that are drawn of it. Its left and right, and its top and bottom, edges are joined: what leaves
// on one side comes back on the other, so a scene has no end.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/rng.h"

namespace ultraflash::world {

inline constexpr int64_t kCanvasWidth = 480;
inline constexpr int64_t kCanvasHeight = 288;
inline constexpr int64_t kFramesPerSecond = 16;
/// Frames of a training clip: 21 latent frames.
inline constexpr int64_t kClipFrames = 84;

enum class Shape : uint8_t { kCircle, kSquare, kTriangle, kStar, kRing, kCross };
enum class Colour : uint8_t {
  kRed,
  kOrange,
  kYellow,
  kGreen,
  kCyan,
  kBlue,
  kPurple,
  kPink,
  kWhite
};
enum class Texture : uint8_t { kPlain, kStriped, kDotted, kCheckered };
enum class Size : uint8_t { kSmall, kLarge };
enum class Motion : uint8_t { kStill, kLeft, kRight, kUp, kDown, kCircling, kBouncing };
enum class Speed : uint8_t { kSlow, kFast };
enum class Ground : uint8_t { kBlack, kGrey, kNavy, kBrown, kDarkGreen };

/// The names used in captions and JSON, in the order of the enumerations.
inline constexpr std::array<std::string_view, 6> kShapeNames = {"circle", "square", "triangle",
                                                                "star",   "ring",   "cross"};
inline constexpr std::array<std::string_view, 9> kColourNames = {
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white"};
inline constexpr std::array<std::string_view, 4> kTextureNames = {"plain", "striped", "dotted",
                                                                  "checkered"};
inline constexpr std::array<std::string_view, 2> kSizeNames = {"small", "large"};
inline constexpr std::array<std::string_view, 7> kMotionNames = {
    "still", "left", "right", "up", "down", "circling", "bouncing"};
inline constexpr std::array<std::string_view, 2> kSpeedNames = {"slow", "fast"};
inline constexpr std::array<std::string_view, 5> kGroundNames = {"black", "grey", "navy", "brown",
                                                                 "dark green"};

inline constexpr std::string_view name_of(Shape v) { return kShapeNames[static_cast<size_t>(v)]; }
inline constexpr std::string_view name_of(Colour v) { return kColourNames[static_cast<size_t>(v)]; }
inline constexpr std::string_view name_of(Texture v) {
  return kTextureNames[static_cast<size_t>(v)];
}
inline constexpr std::string_view name_of(Size v) { return kSizeNames[static_cast<size_t>(v)]; }
inline constexpr std::string_view name_of(Motion v) { return kMotionNames[static_cast<size_t>(v)]; }
inline constexpr std::string_view name_of(Speed v) { return kSpeedNames[static_cast<size_t>(v)]; }
inline constexpr std::string_view name_of(Ground v) { return kGroundNames[static_cast<size_t>(v)]; }

/// sRGB in 0..255.
struct Rgb {
  float r = 0.0F;
  float g = 0.0F;
  float b = 0.0F;
};

/// The named colours. Objects stray from them by at most kColourJitter in each channel.
Rgb anchor(Colour colour);
Rgb anchor(Ground ground);
inline constexpr float kColourJitter = 10.0F;

/// A background's colour at `height`, 0 at the top to 1 at the bottom. A gradient is half again as
/// dark at the top as it is light at the bottom, with the named colour in the middle.
UF_HOST_DEVICE inline Rgb ground_colour(Rgb middle, bool gradient, float height) {
  if (!gradient) return middle;
  const float scale = 0.65F + 0.7F * height;
  const float offset = 28.0F * (height - 0.5F);
  float* const channels[3] = {&middle.r, &middle.g, &middle.b};
  for (float* const channel : channels) {
    const float value = *channel * scale + offset;
    *channel = value < 0.0F ? 0.0F : (value > 255.0F ? 255.0F : value);
  }
  return middle;
}

/// What a caption can say about an object.
struct ObjectTraits {
  Shape shape = Shape::kCircle;
  Colour colour = Colour::kRed;
  Texture texture = Texture::kPlain;
  Size size = Size::kSmall;
  Motion motion = Motion::kStill;
  Speed speed = Speed::kSlow;  // means nothing when still
  bool spinning = false;

  bool operator==(const ObjectTraits&) const = default;
};

/// Where an object is. Lengths are canvas pixels, angles radians, times frames.
struct ObjectPath {
  double x = 0.0;  // at frame 0; of a circling object the centre of its path
  double y = 0.0;
  double velocity_x = 0.0;  // per frame
  double velocity_y = 0.0;
  double orbit_radius = 0.0;
  double orbit_phase = 0.0;
  double orbit_velocity = 0.0;  // radians per frame, clockwise on the screen when positive
  double angle = 0.0;
  double spin = 0.0;  // radians per frame
};

struct SceneObject {
  ObjectTraits traits;
  Rgb colour;
  double radius = 0.0;  // canvas pixels: half of what the object measures across
  ObjectPath path;
};

struct Scene {
  int object_count = 1;
  std::array<SceneObject, 2> objects;  // the second is drawn in front
  Ground ground = Ground::kBlack;
  Rgb ground_rgb;
  bool gradient = false;
  bool starry = false;
  uint64_t star_seed = 0;
};

/// Which scenes to draw from. A (shape, colour, texture) whose indices sum to 0 modulo 7 is held
/// out: such objects occur in no scene of kTraining, and every object of kHeldOut is such a one.
enum class Split : uint8_t { kTraining, kHeldOut };
bool is_held_out(const ObjectTraits& traits);

/// Scene `index` of the endless list that `seed` names. The two objects of a scene differ in
/// colour and begin apart.
Scene sample_scene(uint64_t seed, uint64_t index, Split split = Split::kTraining);

/// An object's place and turn at one frame.
struct Pose {
  double x = 0.0;  // canvas pixels, in [0, kCanvasWidth)
  double y = 0.0;
  double angle = 0.0;  // radians, clockwise on the screen
};

/// Exact for any frame of an endless stream: nothing accumulates.
Pose pose_at(const SceneObject& object, int64_t frame);

/// One star of a starry background: a canvas pixel and its grey level.
struct Star {
  int16_t x = 0;
  int16_t y = 0;
  float level = 0.0F;
};
/// One cell of 16 x 16 canvas pixels holds at most one star.
inline constexpr int64_t kStarCell = 16;
inline constexpr int64_t kMaxStars = (kCanvasWidth / kStarCell) * (kCanvasHeight / kStarCell);
/// The star of a cell, counted row by row; false when it has none.
UF_HOST_DEVICE inline bool star_of(uint64_t star_seed, int64_t cell, Star& star) {
  constexpr int64_t kCellsAcross = kCanvasWidth / kStarCell;
  const rng::Four r = rng::philox(static_cast<uint64_t>(cell), 0, star_seed);
  if (rng::uniform(r.x[0]) > 0.6F) return false;
  star.x = static_cast<int16_t>(cell % kCellsAcross * kStarCell + r.x[1] % kStarCell);
  star.y = static_cast<int16_t>(cell / kCellsAcross * kStarCell + r.x[2] % kStarCell);
  star.level = 150.0F + 105.0F * rng::uniform(r.x[3]);
  return true;
}
/// Writes the stars of a scene, row by row of cells, and returns their number.
int64_t stars_of(uint64_t star_seed, std::span<Star, kMaxStars> stars);

/// Numbers drawn one after the other from one stream.
class Draw {
 public:
  explicit Draw(RandomStream stream) : stream_(stream) {}
  uint32_t bits();
  /// In [low, high).
  double uniform(double low, double high);
  /// In [0, count).
  int64_t below(int64_t count);
  bool chance(double probability) { return uniform(0.0, 1.0) < probability; }
  template <typename T, size_t N>
  const T& pick(const std::array<T, N>& items) {
    return items[static_cast<size_t>(below(static_cast<int64_t>(N)))];
  }

 private:
  RandomStream stream_;
  uint64_t next_ = 0;
  rng::Four four_{};
};

}  // namespace ultraflash::world
