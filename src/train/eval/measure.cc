#include "train/eval/measure.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <numbers>

#include "core/check.h"
#include "train/eval/segment.h"
#include "train/world/shading.h"

namespace ultraflash::world {
namespace {

constexpr double kPi = std::numbers::pi;
// Canvas pixels in a base pixel.
constexpr double kCanvasPerBase =
    static_cast<double>(kCanvasWidth) / static_cast<double>(kBaseWidth);

struct Step {
  double x;
  double y;
  [[nodiscard]] double length() const { return std::hypot(x, y); }
};

// Displacements over `gap` frames, per frame, base pixels; one for each frame where both ends are
// whole, with a mark for those that are missing.
std::vector<std::optional<Step>> steps_of(const Track& track, int64_t gap) {
  std::vector<std::optional<Step>> steps;
  for (int64_t i = 0; i + gap < std::ssize(track.centres); ++i) {
    const auto a = static_cast<size_t>(i);
    const auto b = static_cast<size_t>(i + gap);
    if (!track.whole[a] || !track.whole[b]) {
      steps.emplace_back();
      continue;
    }
    const Centre& p = track.centres[a];
    const Centre& q = track.centres[b];
    const auto n = static_cast<double>(gap);
    steps.push_back(Step{std::remainder(q.x - p.x, static_cast<double>(kBaseWidth)) / n,
                         std::remainder(q.y - p.y, static_cast<double>(kBaseHeight)) / n});
  }
  return steps;
}

double median_speed(const std::vector<std::optional<Step>>& steps) {
  std::vector<double> lengths;
  for (const auto& step : steps) {
    if (step) lengths.push_back(step->length());
  }
  return median(lengths);
}

// Order of the turns that bring a shape onto itself; 0 for any turn.
int symmetry(Shape shape) {
  switch (shape) {
    case Shape::kTriangle:
      return 3;
    case Shape::kSquare:
    case Shape::kCross:
      return 4;
    case Shape::kStar:
      return 5;
    case Shape::kCircle:
    case Shape::kRing:
      break;
  }
  return 0;
}

float coverage(Shape shape, float u, float v, float radius) {
  switch (shape) {
    case Shape::kCircle:
      return shading::clamp01(0.5F - outline_distance<Shape::kCircle>(u, v, radius));
    case Shape::kSquare:
      return shading::clamp01(0.5F - outline_distance<Shape::kSquare>(u, v, radius));
    case Shape::kTriangle:
      return shading::clamp01(0.5F - outline_distance<Shape::kTriangle>(u, v, radius));
    case Shape::kStar:
      return shading::clamp01(0.5F - outline_distance<Shape::kStar>(u, v, radius));
    case Shape::kRing:
      return shading::clamp01(0.5F - outline_distance<Shape::kRing>(u, v, radius));
    case Shape::kCross:
      break;
  }
  return shading::clamp01(0.5F - outline_distance<Shape::kCross>(u, v, radius));
}

// Area of each shape of radius 1.
const std::array<double, kShapeNames.size()>& unit_areas() {
  static const std::array<double, kShapeNames.size()> areas = [] {
    std::array<double, kShapeNames.size()> result = {};
    constexpr int kRadius = 100;
    for (size_t s = 0; s < result.size(); ++s) {
      for (int y = -130; y < 130; ++y) {
        for (int x = -130; x < 130; ++x) {
          result[s] +=
              static_cast<double>(coverage(static_cast<Shape>(s), static_cast<float>(x) + 0.5F,
                                           static_cast<float>(y) + 0.5F, kRadius));
        }
      }
      result[s] /= kRadius * kRadius;
    }
    return result;
  }();
  return areas;
}

double overlap(const BaseMask& mask, const Centre& centre, Shape shape, double radius,
               double angle) {
  const auto r = static_cast<float>(radius);
  const auto reach = static_cast<int64_t>(radius * 1.5) + 3;
  const auto cosine = static_cast<float>(std::cos(angle));
  const auto sine = static_cast<float>(std::sin(angle));
  const auto left = static_cast<int64_t>(std::floor(centre.x)) - reach;
  const auto top = static_cast<int64_t>(std::floor(centre.y)) - reach;
  double both = 0.0;
  double either = 0.0;
  const int64_t width = std::min<int64_t>(2 * reach, kBaseWidth);
  const int64_t height = std::min<int64_t>(2 * reach, kBaseHeight);
  for (int64_t j = 0; j < height; ++j) {
    const float dy = static_cast<float>(static_cast<double>(top + j) + 0.5 - centre.y);
    const int64_t y = (top + j + 2 * kBaseHeight) % kBaseHeight;
    for (int64_t i = 0; i < width; ++i) {
      const float dx = static_cast<float>(static_cast<double>(left + i) + 0.5 - centre.x);
      const int64_t x = (left + i + 2 * kBaseWidth) % kBaseWidth;
      const float a = mask[static_cast<size_t>(y * kBaseWidth + x)];
      const float b = coverage(shape, cosine * dx + sine * dy, cosine * dy - sine * dx, r);
      both += static_cast<double>(std::min(a, b));
      either += static_cast<double>(std::max(a, b));
    }
  }
  return either > 0.0 ? both / either : 0.0;
}

}  // namespace

void measure_motion(const Track& track, MeasuredObject& object) {
  // Speeds in base pixels per frame. The slowest motion that is named is up or down in 8.8 s.
  constexpr double kStillBelow = 0.33;
  constexpr double kFastCircle = 1.62;   // between 0.99 and 2.6
  constexpr double kFastAcross = 2.04;   // between 1.25 and 3.3
  constexpr double kFastUpright = 1.22;  // between 0.75 and 2
  std::vector<std::optional<Step>> steps = steps_of(track, 6);
  double speed = median_speed(steps);
  if (speed < kStillBelow) {
    object.motion = Motion::kStill;
    object.velocity = speed * kCanvasPerBase;
    return;
  }
  // Quick objects turn quickly too: shorter steps see single reflections.
  const bool quick = speed > 1.5;
  const int64_t gap = quick ? 3 : 6;
  if (quick) steps = steps_of(track, gap);
  speed = median_speed(steps);
  object.velocity = speed * kCanvasPerBase;

  double x = 0.0;
  double y = 0.0;
  double count = 0.0;
  std::vector<double> turns;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (!steps[i] || steps[i]->length() < 0.25 * speed) continue;
    x += steps[i]->x / steps[i]->length();
    y += steps[i]->y / steps[i]->length();
    count += 1.0;
    const size_t next = i + static_cast<size_t>(gap);
    if (next >= steps.size() || !steps[next]) continue;
    turns.push_back(std::remainder(
        std::atan2(steps[next]->y, steps[next]->x) - std::atan2(steps[i]->y, steps[i]->x),
        2.0 * kPi));
  }
  const double straight = std::hypot(x, y) / std::max(count, 1.0);
  if (straight > 0.96) {
    // Bouncing objects move at 37 to 54 degrees from the axes.
    const double off_axis =
        std::atan2(std::min(std::abs(x), std::abs(y)), std::max(std::abs(x), std::abs(y)));
    if (off_axis < 0.42) {
      const bool across = std::abs(x) > std::abs(y);
      object.motion = across ? (x < 0.0 ? Motion::kLeft : Motion::kRight)
                             : (y < 0.0 ? Motion::kUp : Motion::kDown);
      object.speed = speed > (across ? kFastAcross : kFastUpright) ? Speed::kFast : Speed::kSlow;
      return;
    }
  }
  // A circle turns all the time, slow ones by 0.27 in 6 frames and fast ones by 0.36 in 3.
  std::vector<double> sizes;
  double sum = 0.0;
  double size_sum = 0.0;
  for (const double turn : turns) {
    sizes.push_back(std::abs(turn));
    size_sum += std::abs(turn);
    sum += turn;
  }
  const bool round = median(sizes) > (quick ? 0.2 : 0.14) && std::abs(sum) > 0.6 * size_sum;
  object.motion = round ? Motion::kCircling : Motion::kBouncing;
  object.speed = speed > (round ? kFastCircle : kFastAcross) ? Speed::kFast : Speed::kSlow;
}

void measure_shape(const Segment& segment, const Track& track, MeasuredObject& object) {
  const std::vector<int64_t> frames = spread_frames(track.whole, 8);
  double best = -1.0;
  for (size_t s = 0; s < kShapeNames.size(); ++s) {
    const auto shape = static_cast<Shape>(s);
    const int order = symmetry(shape);
    const int angles = order == 0 ? 1 : 36 / order;
    double sum = 0.0;
    std::vector<double> radii;
    for (const int64_t f : frames) {
      const Centre& centre = track.centres[static_cast<size_t>(f)];
      const double radius = std::sqrt(centre.area / unit_areas()[s]);
      radii.push_back(radius);
      double frame_best = 0.0;
      for (int a = 0; a < angles; ++a) {
        const double angle = 2.0 * kPi * a / (order * angles + (order == 0 ? 1 : 0));
        frame_best = std::max(frame_best, overlap(segment.masks[static_cast<size_t>(f)], centre,
                                                  shape, radius, angle));
      }
      sum += frame_best;
    }
    if (sum > best) {
      best = sum;
      object.shape = shape;
      object.radius = median(radii) * kCanvasPerBase;
    }
  }
  object.overlap = frames.empty() ? 0.0 : best / static_cast<double>(frames.size());
  // Between an eighth and a quarter of the height.
  object.size = object.radius > 51.0 ? Size::kLarge : Size::kSmall;
}

void measure_spin(const Segment& segment, const Track& track, MeasuredObject& object) {
  const int order = symmetry(object.shape);
  if (order == 0) return;
  const double reach =
      object.radius / kCanvasPerBase * static_cast<double>(reach_of(object.shape)) + 1.5;
  std::vector<std::complex<double>> phases;
  for (size_t f = 0; f < track.centres.size(); ++f) {
    std::complex<double> sum = 0.0;
    const Centre& centre = track.centres[f];
    for (size_t i = 0; i < segment.masks[f].size(); ++i) {
      const auto m = static_cast<double>(segment.masks[f][i]);
      if (m == 0.0) continue;
      const double dx =
          std::remainder(static_cast<double>(i % static_cast<size_t>(kBaseWidth)) + 0.5 - centre.x,
                         static_cast<double>(kBaseWidth));
      const double dy =
          std::remainder(static_cast<double>(i / static_cast<size_t>(kBaseWidth)) + 0.5 - centre.y,
                         static_cast<double>(kBaseHeight));
      // r^n e^(i n angle): the corners count most, and stray pixels must not.
      if (std::hypot(dx, dy) > reach) continue;
      sum += m * std::pow(std::complex<double>(dx, dy), order);
    }
    phases.push_back(sum);
  }
  std::vector<double> rates;
  constexpr size_t kGap = 3;
  for (size_t f = 0; f + kGap < phases.size(); ++f) {
    if (!track.whole[f] || !track.whole[f + kGap]) continue;
    rates.push_back(std::arg(phases[f + kGap] * std::conj(phases[f])) / (order * double{kGap}));
  }
  // Spinning objects turn by 0.07 to 0.11 a frame.
  object.spinning = std::abs(median(rates)) > 0.035;
}

MeasuredScene measure(const ClipView& clip, int64_t objects) {
  UF_CHECK(clip.frames >= 8, "a clip of {} frames is too short to measure", clip.frames);
  const std::vector<BaseFrame> frames = base_frames(clip);
  const Background background = fit_background(frames);
  MeasuredScene scene;
  scene.ground_rgb = background.rows[static_cast<size_t>(kBaseHeight / 2)];
  scene.ground = nearest_ground(scene.ground_rgb);
  const Rgb& top = background.rows.front();
  const Rgb& bottom = background.rows.back();
  scene.gradient = (bottom.r + bottom.g + bottom.b) - (top.r + top.g + top.b) > 36.0F;
  for (const Segment& segment : find_segments(frames, background, objects)) {
    const Track track = follow(segment);
    MeasuredObject object;
    object.rgb = segment.rgb;
    object.colour = segment.colour;
    measure_shape(segment, track, object);
    measure_motion(track, object);
    measure_spin(segment, track, object);
    object.texture = measure_texture(clip, segment, track, object);
    scene.objects.push_back(object);
  }
  return scene;
}

}  // namespace ultraflash::world
