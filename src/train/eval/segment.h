// Steps of measure.h: background, objects, and their masks. Internal to eval.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "train/eval/measure.h"
#include "train/world/render.h"

namespace ultraflash::world {

inline constexpr int64_t kBasePixels = kBaseWidth * kBaseHeight;

/// A frame at 160 x 96, or a map over it.
using BaseFrame = std::vector<Rgb>;
using BaseMask = std::vector<float>;

std::vector<BaseFrame> base_frames(const ClipView& clip);

struct Background {
  std::array<Rgb, kBaseHeight> rows;
};
Background fit_background(const std::vector<BaseFrame>& frames);

/// How much of each pixel an object covers, 0 to 1, frame by frame.
struct Segment {
  Rgb rgb;
  Colour colour = Colour::kRed;
  std::vector<BaseMask> masks;  // [frames]
};
std::vector<Segment> find_segments(const std::vector<BaseFrame>& frames,
                                   const Background& background, int64_t objects);

/// Centre of mass of a mask on joined edges, in base pixels.
struct Centre {
  double x = 0.0;
  double y = 0.0;
  double area = 0.0;
};
Centre centre_of(const BaseMask& mask);

/// Steps of measure.h on one object. `whole` marks the frames in which nothing hides it.
struct Track {
  std::vector<Centre> centres;  // [frames]
  std::vector<bool> whole;
};
Track follow(const Segment& segment);
void measure_motion(const Track& track, MeasuredObject& object);
void measure_shape(const Segment& segment, const Track& track, MeasuredObject& object);
void measure_spin(const Segment& segment, const Track& track, MeasuredObject& object);
std::optional<Texture> measure_texture(const ClipView& clip, const Segment& segment,
                                       const Track& track, const MeasuredObject& object);

/// Up to `count` of the frames marked in `whole`, evenly spread.
std::vector<int64_t> spread_frames(const std::vector<bool>& whole, int64_t count);

/// The middle value; 0 of nothing.
double median(std::vector<double> values);

}  // namespace ultraflash::world
