#include "train/eval/segment.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"

namespace ultraflash::world {
namespace {

// A pixel this far from the background (RGB distance) belongs to an object. Compression and an
// autoencoder at 30 dB move a pixel by 14; a star averaged over a base pixel adds up to 47, but
// stands alone.
constexpr float kAway = 45.0F;

Rgb operator-(Rgb a, Rgb b) { return {a.r - b.r, a.g - b.g, a.b - b.b}; }
Rgb operator+(Rgb a, Rgb b) { return {a.r + b.r, a.g + b.g, a.b + b.b}; }
Rgb operator*(Rgb a, float s) { return {a.r * s, a.g * s, a.b * s}; }
float dot(Rgb a, Rgb b) { return a.r * b.r + a.g * b.g + a.b * b.b; }
float distance2(Rgb a, Rgb b) { return dot(a - b, a - b); }

size_t index_of(int64_t x, int64_t y) {
  const int64_t wx = (x + kBaseWidth) % kBaseWidth;
  const int64_t wy = (y + kBaseHeight) % kBaseHeight;
  return static_cast<size_t>(wy * kBaseWidth + wx);
}

// Median of each channel.
Rgb median_colour(std::vector<Rgb>& colours) {
  Rgb result;
  const auto middle = static_cast<std::ptrdiff_t>(colours.size() / 2);
  for (float Rgb::*channel : {&Rgb::r, &Rgb::g, &Rgb::b}) {
    std::nth_element(colours.begin(), colours.begin() + middle, colours.end(),
                     [channel](const Rgb& a, const Rgb& b) { return a.*channel < b.*channel; });
    result.*channel = colours[static_cast<size_t>(middle)].*channel;
  }
  return result;
}

// The colour that most samples are near to, and how many they are.
std::pair<Rgb, int64_t> most_frequent(const std::vector<Rgb>& samples) {
  constexpr float kNear2 = 24.0F * 24.0F;
  Rgb best;
  int64_t best_count = 0;
  const size_t step = std::max<size_t>(1, samples.size() / 24);
  for (size_t i = 0; i < samples.size(); i += step) {
    Rgb sum;
    int64_t count = 0;
    for (const Rgb& sample : samples) {
      if (distance2(sample, samples[i]) > kNear2) continue;
      sum = sum + sample;
      ++count;
    }
    if (count > best_count) {
      best_count = count;
      best = sum * (1.0F / static_cast<float>(count));
    }
  }
  return {best, best_count};
}

// A line through values over rows that a few rows far from it do not disturb.
struct Line {
  double offset = 0.0;
  double slope = 0.0;
};
Line robust_line(const std::vector<double>& values) {
  const auto count = std::ssize(values);
  const int64_t apart = count / 4;
  std::vector<double> slopes;
  for (int64_t i = 0; i + apart < count; ++i) {
    slopes.push_back((values[static_cast<size_t>(i + apart)] - values[static_cast<size_t>(i)]) /
                     static_cast<double>(apart));
  }
  Line line;
  line.slope = median(slopes);
  std::vector<double> offsets;
  for (int64_t i = 0; i < count; ++i) {
    offsets.push_back(values[static_cast<size_t>(i)] - line.slope * static_cast<double>(i));
  }
  line.offset = median(offsets);
  // Least squares over the rows near that line.
  double n = 0.0;
  double sx = 0.0;
  double sy = 0.0;
  double sxx = 0.0;
  double sxy = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const auto x = static_cast<double>(i);
    const double y = values[static_cast<size_t>(i)];
    if (std::abs(y - line.offset - line.slope * x) > 15.0) continue;
    n += 1.0;
    sx += x;
    sy += y;
    sxx += x * x;
    sxy += x * y;
  }
  const double determinant = n * sxx - sx * sx;
  if (n < 8.0 || determinant <= 0.0) return line;
  line.slope = (n * sxy - sx * sy) / determinant;
  line.offset = (sy - line.slope * sx) / n;
  return line;
}

// 1 for pixels away from the background.
std::vector<uint8_t> foreground(const BaseFrame& frame, const Background& background) {
  std::vector<uint8_t> away(static_cast<size_t>(kBasePixels));
  for (int64_t i = 0; i < kBasePixels; ++i) {
    const Rgb& ground = background.rows[static_cast<size_t>(i / kBaseWidth)];
    away[static_cast<size_t>(i)] =
        distance2(frame[static_cast<size_t>(i)], ground) > kAway * kAway ? 1 : 0;
  }
  return away;
}

// How many of the eight pixels around are marked.
int around(const std::vector<uint8_t>& map, int64_t x, int64_t y) {
  int count = 0;
  for (int64_t dy = -1; dy <= 1; ++dy) {
    for (int64_t dx = -1; dx <= 1; ++dx) {
      if (dx != 0 || dy != 0) count += map[index_of(x + dx, y + dy)];
    }
  }
  return count;
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Colour nearest_colour(Rgb rgb) {
  Colour best = Colour::kRed;
  float best_distance = 1e30F;
  for (size_t i = 0; i < kColourNames.size(); ++i) {
    const Rgb a = anchor(static_cast<Colour>(i));
    const float shade = std::clamp(dot(rgb, a) / dot(a, a), 0.5F, 1.1F);
    const float d = distance2(rgb, a * shade);
    if (d < best_distance) {
      best_distance = d;
      best = static_cast<Colour>(i);
    }
  }
  return best;
}

Ground nearest_ground(Rgb rgb) {
  Ground best = Ground::kBlack;
  float best_distance = 1e30F;
  for (size_t i = 0; i < kGroundNames.size(); ++i) {
    const float d = distance2(rgb, anchor(static_cast<Ground>(i)));
    if (d < best_distance) {
      best_distance = d;
      best = static_cast<Ground>(i);
    }
  }
  return best;
}

std::vector<BaseFrame> base_frames(const ClipView& clip) {
  UF_CHECK(clip.width >= kBaseWidth && clip.height >= kBaseHeight, "{}x{} is below 160x96",
           clip.width, clip.height);
  std::vector<BaseFrame> frames(static_cast<size_t>(clip.frames));
  for (int64_t f = 0; f < clip.frames; ++f) {
    BaseFrame& base = frames[static_cast<size_t>(f)];
    base.resize(static_cast<size_t>(kBasePixels));
    const uint8_t* const pixels = clip.frame(f);
    // Whole source pixels: exact for 1x, 2x and 3x, near enough for others.
    for (int64_t y = 0; y < kBaseHeight; ++y) {
      const int64_t top = y * clip.height / kBaseHeight;
      const int64_t bottom = (y + 1) * clip.height / kBaseHeight;
      for (int64_t x = 0; x < kBaseWidth; ++x) {
        const int64_t left = x * clip.width / kBaseWidth;
        const int64_t right = (x + 1) * clip.width / kBaseWidth;
        Rgb sum;
        for (int64_t v = top; v < bottom; ++v) {
          for (int64_t u = left; u < right; ++u) {
            const uint8_t* const p = pixels + (v * clip.width + u) * 3;
            sum = sum +
                  Rgb{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2])};
          }
        }
        base[static_cast<size_t>(y * kBaseWidth + x)] =
            sum * (1.0F / static_cast<float>((bottom - top) * (right - left)));
      }
    }
  }
  return frames;
}

Background fit_background(const std::vector<BaseFrame>& frames) {
  const auto count = std::ssize(frames);
  std::array<std::vector<double>, 3> values;
  for (int64_t y = 0; y < kBaseHeight; ++y) {
    std::vector<Rgb> samples;
    for (int64_t k = 0; k < 6; ++k) {
      const BaseFrame& frame = frames[static_cast<size_t>(k * (count - 1) / 5)];
      for (int64_t x = y % 2; x < kBaseWidth; x += 2) samples.push_back(frame[index_of(x, y)]);
    }
    const Rgb row = most_frequent(samples).first;
    values[0].push_back(static_cast<double>(row.r));
    values[1].push_back(static_cast<double>(row.g));
    values[2].push_back(static_cast<double>(row.b));
  }
  const Line red = robust_line(values[0]);
  const Line green = robust_line(values[1]);
  const Line blue = robust_line(values[2]);
  Background background;
  for (size_t y = 0; y < background.rows.size(); ++y) {
    const auto at = [y](const Line& line) {
      return static_cast<float>(
          std::clamp(line.offset + line.slope * static_cast<double>(y), 0.0, 255.0));
    };
    background.rows[y] = {at(red), at(green), at(blue)};
  }
  return background;
}

std::vector<Segment> find_segments(const std::vector<BaseFrame>& frames,
                                   const Background& background, int64_t objects) {
  // Colours of pixels that lie inside objects: all around them is object too.
  std::array<std::vector<Rgb>, kColourNames.size()> inside;
  std::vector<std::vector<uint8_t>> away;
  for (size_t f = 0; f < frames.size(); ++f) {
    away.push_back(foreground(frames[f], background));
    if (f % 3 != 0) continue;
    for (int64_t y = 0; y < kBaseHeight; ++y) {
      for (int64_t x = 0; x < kBaseWidth; ++x) {
        const size_t i = index_of(x, y);
        if (away.back()[i] == 0 || around(away.back(), x, y) < 8) continue;
        inside[static_cast<size_t>(nearest_colour(frames[f][i]))].push_back(frames[f][i]);
      }
    }
  }
  // The most frequent colours. 10 pixels a frame are less than the inside of the smallest shape.
  const size_t sampled = (frames.size() + 2) / 3;
  std::vector<Segment> segments;
  for (int64_t k = 0; k < objects; ++k) {
    auto largest = std::max_element(inside.begin(), inside.end(), [](const auto& a, const auto& b) {
      return a.size() < b.size();
    });
    if (largest->size() < 10 * sampled) break;
    Segment segment;
    segment.rgb = median_colour(*largest);
    segment.colour = nearest_colour(segment.rgb);
    segments.push_back(std::move(segment));
    largest->clear();
  }
  // A pixel belongs to the object on whose line from the background its colour lies nearest, and is
  // covered as far as it lies along that line.
  constexpr float kOff2 = 90.0F * 90.0F;
  for (Segment& segment : segments) {
    segment.masks.assign(frames.size(), BaseMask(static_cast<size_t>(kBasePixels), 0.0F));
  }
  for (size_t f = 0; f < frames.size(); ++f) {
    for (int64_t y = 0; y < kBaseHeight; ++y) {
      const Rgb ground = background.rows[static_cast<size_t>(y)];
      for (int64_t x = 0; x < kBaseWidth; ++x) {
        const size_t i = index_of(x, y);
        if (around(away[f], x, y) < 3) continue;
        const Rgb pixel = frames[f][i] - ground;
        Segment* nearest = nullptr;
        float nearest_distance = kOff2;
        float covered = 0.0F;
        for (Segment& segment : segments) {
          const Rgb line = segment.rgb - ground;
          const float along = dot(pixel, line) / std::max(dot(line, line), 1.0F);
          const float t = std::clamp(along, 0.0F, 1.0F);
          const float d = distance2(pixel, line * t);
          if (d < nearest_distance) {
            nearest_distance = d;
            nearest = &segment;
            covered = t;
          }
        }
        // Textures leave some base pixels darker than the mean; they are whole all the same.
        if (nearest != nullptr && covered > 0.15F) {
          nearest->masks[f][i] = std::min(1.0F, covered / 0.85F);
        }
      }
    }
  }
  return segments;
}

Centre centre_of(const BaseMask& mask) {
  // On joined edges the mean is that of angles.
  static const auto columns = [] {
    std::array<std::pair<double, double>, kBaseWidth> table;
    for (size_t x = 0; x < table.size(); ++x) {
      const double a = 2.0 * std::numbers::pi * (static_cast<double>(x) + 0.5) / kBaseWidth;
      table[x] = {std::cos(a), std::sin(a)};
    }
    return table;
  }();
  static const auto rows = [] {
    std::array<std::pair<double, double>, kBaseHeight> table;
    for (size_t y = 0; y < table.size(); ++y) {
      const double a = 2.0 * std::numbers::pi * (static_cast<double>(y) + 0.5) / kBaseHeight;
      table[y] = {std::cos(a), std::sin(a)};
    }
    return table;
  }();
  Centre centre;
  double cx = 0.0;
  double sx = 0.0;
  double cy = 0.0;
  double sy = 0.0;
  for (size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] == 0.0F) continue;
    const auto m = static_cast<double>(mask[i]);
    centre.area += m;
    const auto& column = columns[i % static_cast<size_t>(kBaseWidth)];
    const auto& row = rows[i / static_cast<size_t>(kBaseWidth)];
    cx += m * column.first;
    sx += m * column.second;
    cy += m * row.first;
    sy += m * row.second;
  }
  centre.x = std::atan2(sx, cx) / (2.0 * std::numbers::pi) * kBaseWidth;
  centre.y = std::atan2(sy, cy) / (2.0 * std::numbers::pi) * kBaseHeight;
  // One step of the plain mean around that point: the mean of angles is off for uneven shapes.
  double dx = 0.0;
  double dy = 0.0;
  for (size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] == 0.0F) continue;
    const auto m = static_cast<double>(mask[i]);
    dx += m *
          std::remainder(static_cast<double>(i % static_cast<size_t>(kBaseWidth)) + 0.5 - centre.x,
                         static_cast<double>(kBaseWidth));
    dy += m *
          std::remainder(static_cast<double>(i / static_cast<size_t>(kBaseWidth)) + 0.5 - centre.y,
                         static_cast<double>(kBaseHeight));
  }
  if (centre.area > 0.0) {
    centre.x += dx / centre.area;
    centre.y += dy / centre.area;
  }
  return centre;
}

Track follow(const Segment& segment) {
  Track track;
  std::vector<double> areas;
  for (const BaseMask& mask : segment.masks) {
    track.centres.push_back(centre_of(mask));
    areas.push_back(track.centres.back().area);
  }
  // What is hidden for some of the time has its whole area in the frames with the largest.
  std::vector<double> sorted = areas;
  std::sort(sorted.begin(), sorted.end());
  const double whole = sorted[sorted.size() * 8 / 10];
  for (const double part : {0.9, 0.7, 0.4}) {
    track.whole.clear();
    for (const double area : areas) track.whole.push_back(area > part * whole && area > 4.0);
    if (std::count(track.whole.begin(), track.whole.end(), true) >= std::ssize(areas) / 4) break;
  }
  return track;
}

std::vector<int64_t> spread_frames(const std::vector<bool>& whole, int64_t count) {
  std::vector<int64_t> all;
  for (size_t i = 0; i < whole.size(); ++i) {
    if (whole[i]) all.push_back(static_cast<int64_t>(i));
  }
  if (std::ssize(all) <= count) return all;
  std::vector<int64_t> chosen;
  for (int64_t k = 0; k < count; ++k) {
    chosen.push_back(all[static_cast<size_t>(k * (std::ssize(all) - 1) / (count - 1))]);
  }
  return chosen;
}

}  // namespace ultraflash::world
