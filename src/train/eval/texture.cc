#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "train/eval/segment.h"
#include "train/world/shading.h"

namespace ultraflash::world {
namespace {

// Over half a turn. A large object's wave is 0.007 periods per pixel wide; so are the steps of the
// angle (at 0.177) and of the frequency.
constexpr int kAngles = 72;
constexpr double kStretch[] = {0.92, 0.96, 1.0, 1.04, 1.08};

// The inside of an object in one frame: its brightness over the object's own mean, 0 outside.
struct Inside {
  int64_t width = 0;
  int64_t height = 0;
  int64_t count = 0;
  std::vector<float> values;  // [height, width]
};

bool deep_inside(const BaseMask& mask, int64_t x, int64_t y) {
  for (int64_t dy = -1; dy <= 1; ++dy) {
    for (int64_t dx = -1; dx <= 1; ++dx) {
      const int64_t wx = (x + dx + kBaseWidth) % kBaseWidth;
      const int64_t wy = (y + dy + kBaseHeight) % kBaseHeight;
      if (mask[static_cast<size_t>(wy * kBaseWidth + wx)] < 0.6F) return false;
    }
  }
  return true;
}

Inside inside_of(const ClipView& clip, int64_t frame, const BaseMask& mask, const Centre& centre,
                 const MeasuredObject& object) {
  const double scale = static_cast<double>(clip.width) / static_cast<double>(kBaseWidth);
  const auto reach = static_cast<int64_t>(object.radius / 3.0 * 1.25 * scale) + 2;
  const auto middle_x = static_cast<int64_t>(centre.x * scale);
  const auto middle_y = static_cast<int64_t>(centre.y * scale);
  Inside inside;
  inside.width = std::min(2 * reach, clip.width);
  inside.height = std::min(2 * reach, clip.height);
  inside.values.resize(static_cast<size_t>(inside.width * inside.height));
  std::vector<uint8_t> counted(inside.values.size());
  const float norm =
      1.0F / std::max(1.0F, object.rgb.r * object.rgb.r + object.rgb.g * object.rgb.g +
                                object.rgb.b * object.rgb.b);
  double sum = 0.0;
  for (int64_t j = 0; j < inside.height; ++j) {
    const int64_t y = (middle_y - inside.height / 2 + j + 2 * clip.height) % clip.height;
    for (int64_t i = 0; i < inside.width; ++i) {
      const int64_t x = (middle_x - inside.width / 2 + i + 2 * clip.width) % clip.width;
      if (!deep_inside(mask, x * kBaseWidth / clip.width, y * kBaseHeight / clip.height)) continue;
      const uint8_t* const p = clip.frame(frame) + (y * clip.width + x) * 3;
      const auto at = static_cast<size_t>(j * inside.width + i);
      inside.values[at] = norm * (static_cast<float>(p[0]) * object.rgb.r +
                                  static_cast<float>(p[1]) * object.rgb.g +
                                  static_cast<float>(p[2]) * object.rgb.b);
      counted[at] = 1;
      ++inside.count;
      sum += static_cast<double>(inside.values[at]);
    }
  }
  const auto mean =
      static_cast<float>(sum / static_cast<double>(std::max<int64_t>(inside.count, 1)));
  for (size_t i = 0; i < counted.size(); ++i) {
    if (counted[i] != 0) inside.values[i] = inside.values[i] / std::max(mean, 1e-3F) - 1.0F;
  }
  return inside;
}

// Amplitude of the wave with (fx, fy) periods per pixel.
double amplitude(const Inside& inside, double fx, double fy) {
  const double turn_x = -2.0 * std::numbers::pi * fx;
  const double turn_y = -2.0 * std::numbers::pi * fy;
  std::vector<float> cosines(static_cast<size_t>(inside.width));
  std::vector<float> sines(static_cast<size_t>(inside.width));
  for (size_t i = 0; i < cosines.size(); ++i) {
    cosines[i] = static_cast<float>(std::cos(turn_x * static_cast<double>(i)));
    sines[i] = static_cast<float>(std::sin(turn_x * static_cast<double>(i)));
  }
  std::complex<double> total = 0.0;
  for (int64_t j = 0; j < inside.height; ++j) {
    const float* const row = inside.values.data() + j * inside.width;
    float real = 0.0F;
    float imaginary = 0.0F;
    for (size_t i = 0; i < cosines.size(); ++i) {
      real += row[i] * cosines[i];
      imaginary += row[i] * sines[i];
    }
    total += std::complex<double>(static_cast<double>(real), static_cast<double>(imaginary)) *
             std::polar(1.0, turn_y * static_cast<double>(j));
  }
  return 2.0 * std::abs(total) / static_cast<double>(inside.count);
}

// The largest amplitude near `frequency` in each of kAngles directions.
std::vector<double> ring_of(const Inside& inside, double frequency) {
  std::vector<double> ring(kAngles);
  for (int a = 0; a < kAngles; ++a) {
    const double angle = std::numbers::pi * a / kAngles;
    for (const double stretch : kStretch) {
      const double f = stretch * frequency;
      ring[static_cast<size_t>(a)] =
          std::max(ring[static_cast<size_t>(a)],
                   amplitude(inside, f * std::cos(angle), f * std::sin(angle)));
    }
  }
  return ring;
}

}  // namespace

// Stripes are one wave of period 8, dots two at right angles, checks two of period 8 / sqrt 2.
std::optional<Texture> measure_texture(const ClipView& clip, const Segment& segment,
                                       const Track& track, const MeasuredObject& object) {
  constexpr double kPresent = 0.06;  // of the mean brightness; the textures have 0.2 to 0.37
  constexpr int64_t kEnough = 250;   // pixels inside, three periods of each direction or so
  if (clip.width < 2 * kBaseWidth || clip.height < 2 * kBaseHeight) return std::nullopt;
  // Periods per pixel.
  const double frequency = static_cast<double>(kCanvasWidth) / static_cast<double>(clip.width) /
                           static_cast<double>(kTexturePeriod);
  double one = 0.0;
  double across = 0.0;
  double diagonal = 0.0;
  int64_t counted = 0;
  for (const int64_t f : spread_frames(track.whole, 3)) {
    const auto frame = static_cast<size_t>(f);
    const Inside inside = inside_of(clip, f, segment.masks[frame], track.centres[frame], object);
    if (inside.count < kEnough) continue;
    const std::vector<double> near = ring_of(inside, frequency);
    const std::vector<double> far = ring_of(inside, frequency * std::numbers::sqrt2);
    const auto best = std::max_element(near.begin(), near.end());
    one += *best;
    // The same wave a quarter turn on, within 5 degrees.
    const int64_t quarter = best - near.begin() + kAngles / 2;
    double second = 0.0;
    for (int64_t d = -2; d <= 2; ++d) {
      second = std::max(second, near[static_cast<size_t>((quarter + d) % kAngles)]);
    }
    across += second;
    diagonal += *std::max_element(far.begin(), far.end());
    ++counted;
  }
  if (counted == 0) return std::nullopt;
  const auto n = static_cast<double>(counted);
  if (std::max(one, diagonal) < kPresent * n) return Texture::kPlain;
  if (diagonal > one) return Texture::kCheckered;
  return across > 0.5 * one ? Texture::kDotted : Texture::kStriped;
}

}  // namespace ultraflash::world
