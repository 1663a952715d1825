#include "train/world/scene.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ultraflash::world {
namespace {

constexpr double kPi = std::numbers::pi;
constexpr auto kWidth = static_cast<double>(kCanvasWidth);
constexpr auto kHeight = static_cast<double>(kCanvasHeight);
constexpr double kCrossSeconds[2] = {8.0, 3.0};  // slow, fast

template <typename Enum, size_t N>
Enum any(Draw& draw, const std::array<std::string_view, N>&) {
  return static_cast<Enum>(draw.below(static_cast<int64_t>(N)));
}

float jitter(Draw& draw, float value, float amount) {
  return std::clamp(value + static_cast<float>(draw.uniform(-1.0, 1.0)) * amount, 0.0F, 255.0F);
}

Rgb jittered(Draw& draw, Rgb colour, float amount) {
  colour.r = jitter(draw, colour.r, amount);
  colour.g = jitter(draw, colour.g, amount);
  colour.b = jitter(draw, colour.b, amount);
  return colour;
}

ObjectTraits sample_traits(Draw& draw, Split split) {
  ObjectTraits traits;
  do {
    traits.shape = any<Shape>(draw, kShapeNames);
    traits.colour = any<Colour>(draw, kColourNames);
    traits.texture = any<Texture>(draw, kTextureNames);
  } while (is_held_out(traits) != (split == Split::kHeldOut));
  traits.size = any<Size>(draw, kSizeNames);
  traits.motion = any<Motion>(draw, kMotionNames);
  traits.speed = any<Speed>(draw, kSpeedNames);
  // A turning circle or ring looks as one that does not turn.
  const bool round = traits.shape == Shape::kCircle || traits.shape == Shape::kRing;
  traits.spinning = !round && draw.chance(0.25);
  return traits;
}

// Where the object may have its centre without touching the edge, on an axis of `length`.
double inside(Draw& draw, double margin, double length) {
  return draw.uniform(margin, length - margin);
}

ObjectPath sample_path(Draw& draw, const ObjectTraits& traits, double radius) {
  ObjectPath path;
  const double frames = kCrossSeconds[static_cast<size_t>(traits.speed)] *
                        static_cast<double>(kFramesPerSecond) * draw.uniform(0.9, 1.1);
  path.x = inside(draw, radius, kWidth);
  path.y = inside(draw, radius, kHeight);
  path.angle = draw.uniform(-0.08, 0.08);
  if (traits.spinning) {
    path.spin = draw.uniform(0.07, 0.11) * (draw.chance(0.5) ? 1.0 : -1.0);  // 3.6 to 5.6 s a turn
    path.angle = draw.uniform(-kPi, kPi);
  }
  switch (traits.motion) {
    case Motion::kStill:
      break;
    case Motion::kLeft:
      path.velocity_x = -kWidth / frames;
      break;
    case Motion::kRight:
      path.velocity_x = kWidth / frames;
      break;
    case Motion::kUp:
      path.velocity_y = -kHeight / frames;
      break;
    case Motion::kDown:
      path.velocity_y = kHeight / frames;
      break;
    case Motion::kCircling: {
      path.orbit_radius = draw.uniform(0.19, 0.23) * kHeight;
      path.orbit_phase = draw.uniform(-kPi, kPi);
      path.orbit_velocity = 2.0 * kPi / frames * (draw.chance(0.5) ? 1.0 : -1.0);
      path.x = inside(draw, radius + path.orbit_radius, kWidth);
      path.y = inside(draw, radius + path.orbit_radius, kHeight);
      break;
    }
    case Motion::kBouncing: {
      // Steep enough in both axes that it is not taken for a motion along one of them.
      const double slope = draw.uniform(0.65, 0.95);
      const double speed = kWidth / frames;
      path.velocity_x = speed * std::cos(slope) * (draw.chance(0.5) ? 1.0 : -1.0);
      path.velocity_y = speed * std::sin(slope) * (draw.chance(0.5) ? 1.0 : -1.0);
      break;
    }
  }
  return path;
}

SceneObject sample_object(Draw& draw, Split split) {
  SceneObject object;
  object.traits = sample_traits(draw, split);
  object.colour = jittered(draw, anchor(object.traits.colour), kColourJitter);
  const double across = object.traits.size == Size::kLarge ? 0.5 : 0.25;
  object.radius = 0.5 * across * kHeight * draw.uniform(0.92, 1.08);
  object.path = sample_path(draw, object.traits, object.radius);
  return object;
}

double wrapped(double value, double length) { return value - length * std::floor(value / length); }

// Distance on a line whose ends are joined.
double around(double a, double b, double length) {
  const double d = wrapped(a - b, length);
  return std::min(d, length - d);
}

// `value` reflected into [low, high] as often as needed.
double reflected(double value, double low, double high) {
  const double range = high - low;
  const double t = wrapped(value - low, 2.0 * range);
  return low + (t < range ? t : 2.0 * range - t);
}

bool apart(const SceneObject& a, const SceneObject& b) {
  const Pose p = pose_at(a, 0);
  const Pose q = pose_at(b, 0);
  const double dx = around(p.x, q.x, kWidth);
  const double dy = around(p.y, q.y, kHeight);
  return std::hypot(dx, dy) > 1.2 * (a.radius + b.radius);
}

}  // namespace

Rgb anchor(Colour colour) {
  switch (colour) {
    case Colour::kRed:
      return {225, 30, 35};
    case Colour::kOrange:
      return {250, 140, 10};
    case Colour::kYellow:
      return {245, 225, 40};
    case Colour::kGreen:
      return {50, 205, 65};
    case Colour::kCyan:
      return {20, 215, 220};
    case Colour::kBlue:
      return {45, 85, 245};
    case Colour::kPurple:
      return {145, 50, 205};
    case Colour::kPink:
      return {245, 125, 185};
    case Colour::kWhite:
      break;
  }
  return {245, 245, 245};
}

Rgb anchor(Ground ground) {
  switch (ground) {
    case Ground::kBlack:
      return {10, 10, 12};
    case Ground::kGrey:
      return {96, 96, 96};
    case Ground::kNavy:
      return {14, 22, 82};
    case Ground::kBrown:
      return {84, 52, 26};
    case Ground::kDarkGreen:
      break;
  }
  return {10, 58, 28};
}

bool is_held_out(const ObjectTraits& traits) {
  const int sum = static_cast<int>(traits.shape) + static_cast<int>(traits.colour) +
                  static_cast<int>(traits.texture);
  return sum % 7 == 0;
}

Scene sample_scene(uint64_t seed, uint64_t index, Split split) {
  Draw draw(
      make_random_stream(seed, RandomPurpose::kPocketScene, index, static_cast<uint32_t>(split)));
  Scene scene;
  scene.ground = any<Ground>(draw, kGroundNames);
  scene.ground_rgb = jittered(draw, anchor(scene.ground), 0.4F * kColourJitter);
  scene.gradient = draw.chance(0.35);
  scene.starry = draw.chance(0.25);
  scene.star_seed = (static_cast<uint64_t>(draw.bits()) << 32) | draw.bits();
  scene.object_count = draw.chance(0.35) ? 2 : 1;
  scene.objects[0] = sample_object(draw, split);
  if (scene.object_count == 2) {
    do {
      scene.objects[1] = sample_object(draw, split);
    } while (scene.objects[1].traits.colour == scene.objects[0].traits.colour ||
             !apart(scene.objects[0], scene.objects[1]));
  }
  return scene;
}

Pose pose_at(const SceneObject& object, int64_t frame) {
  const ObjectPath& path = object.path;
  const auto time = static_cast<double>(frame);
  Pose pose;
  pose.angle = std::remainder(path.angle + path.spin * time, 2.0 * kPi);
  if (object.traits.motion == Motion::kBouncing) {
    pose.x = reflected(path.x + path.velocity_x * time, object.radius, kWidth - object.radius);
    pose.y = reflected(path.y + path.velocity_y * time, object.radius, kHeight - object.radius);
    return pose;
  }
  const double phase = path.orbit_phase + path.orbit_velocity * time;
  pose.x = wrapped(path.x + path.velocity_x * time + path.orbit_radius * std::cos(phase), kWidth);
  pose.y = wrapped(path.y + path.velocity_y * time + path.orbit_radius * std::sin(phase), kHeight);
  return pose;
}

int64_t stars_of(uint64_t star_seed, std::span<Star, kMaxStars> stars) {
  int64_t count = 0;
  for (int64_t cell = 0; cell < kMaxStars; ++cell) {
    if (star_of(star_seed, cell, stars[static_cast<size_t>(count)])) ++count;
  }
  return count;
}

uint32_t Draw::bits() {
  if (next_ % 4 == 0) four_ = rng::philox(next_ / 4, stream_.stream, stream_.seed);
  return four_.x[next_++ % 4];
}

double Draw::uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(rng::uniform(bits()));
}

int64_t Draw::below(int64_t count) {
  return static_cast<int64_t>((static_cast<uint64_t>(bits()) * static_cast<uint64_t>(count)) >> 32);
}

}  // namespace ultraflash::world
