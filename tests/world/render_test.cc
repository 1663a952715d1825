#include "train/world/render.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numbers>
#include <utility>
#include <vector>

#include "train/world/shading.h"

namespace ultraflash::world {
namespace {

int channel(const std::vector<uint8_t>& picture, int64_t width, int64_t x, int64_t y, int64_t c) {
  return picture[static_cast<size_t>((y * width + x) * 3 + c)];
}

// The smaller sizes are area averages of the canvas.
TEST(Render, SizesAgree) {
  for (uint64_t i = 0; i < 40; ++i) {
    const Scene scene = sample_scene(1, i);
    const int64_t frame = static_cast<int64_t>(i) * 7;
    const std::vector<uint8_t> canvas = render(scene, RenderWindow::whole(3, frame, 1));
    const std::vector<uint8_t> base = render(scene, RenderWindow::whole(1, frame, 1));
    const std::vector<uint8_t> twice = render(scene, RenderWindow::whole(2, frame, 1));
    for (int64_t y = 0; y < kBaseHeight; ++y) {
      for (int64_t x = 0; x < kBaseWidth; ++x) {
        for (int64_t c = 0; c < 3; ++c) {
          int sum3 = 0;
          int sum2 = 0;
          for (int64_t k = 0; k < 9; ++k) {
            sum3 += channel(canvas, 480, 3 * x + k % 3, 3 * y + k / 3, c);
          }
          for (int64_t k = 0; k < 4; ++k) {
            sum2 += channel(twice, 320, 2 * x + k % 2, 2 * y + k / 2, c);
          }
          const int value = channel(base, 160, x, y, c);
          ASSERT_LE(std::abs(9 * value - sum3), 9) << i << ": " << x << "," << y;
          ASSERT_LE(std::abs(4 * value - sum2), 4) << i << ": " << x << "," << y;
        }
      }
    }
  }
}

TEST(Render, WindowsAreCutsOfTheWhole) {
  for (uint64_t i = 0; i < 30; ++i) {
    const Scene scene = sample_scene(2, i);
    const auto scale = static_cast<int64_t>(1 + i % 3);
    const std::vector<uint8_t> whole = render(scene, RenderWindow::whole(scale, 5, 20));
    const RenderWindow window = {scale, 12, 3, 31, 17, 77, 45};
    const std::vector<uint8_t> part = render(scene, window);
    for (int64_t f = 0; f < 3; ++f) {
      for (int64_t y = 0; y < window.height; ++y) {
        const int64_t row = ((7 + f) * 96 * scale + window.y + y) * 160 * scale + window.x;
        const int64_t out = (f * window.height + y) * window.width;
        ASSERT_EQ(0, std::memcmp(whole.data() + row * 3, part.data() + out * 3,
                                 static_cast<size_t>(window.width * 3)))
            << "scene " << i << ", frame " << f << ", row " << y;
      }
    }
  }
}

constexpr double kSquare = static_cast<double>(kSquareHalfSide);
constexpr double kTriangle = static_cast<double>(kTriangleInradius);
constexpr double kTip = static_cast<double>(kStarTip);
constexpr double kNotch = static_cast<double>(kStarNotch);
constexpr double kHole = static_cast<double>(kRingHole);
constexpr double kArm = static_cast<double>(kCrossArm);

// A plain sum over 4 x 4 points of each canvas pixel, without bands, ranges or analytic edges.
Rgb plain_pixel(const Scene& scene, int64_t frame, int64_t x, int64_t y) {
  constexpr int64_t kPoints = 4;
  Rgb sum;
  for (int64_t k = 0; k < kPoints * kPoints; ++k) {
    const double px = static_cast<double>(x) + (static_cast<double>(k % kPoints) + 0.5) / kPoints;
    const double py = static_cast<double>(y) + (static_cast<double>(k / kPoints) + 0.5) / kPoints;
    Rgb value = ground_colour(scene.ground_rgb, scene.gradient,
                              (static_cast<float>(y) + 0.5F) / static_cast<float>(kCanvasHeight));
    for (int i = 0; i < scene.object_count; ++i) {
      const SceneObject& object = scene.objects[static_cast<size_t>(i)];
      const Pose pose = pose_at(object, frame);
      const double dx = std::remainder(px - pose.x, 480.0);
      const double dy = std::remainder(py - pose.y, 288.0);
      const double r = object.radius;
      const double u = std::cos(pose.angle) * dx + std::sin(pose.angle) * dy;
      const double v = std::cos(pose.angle) * dy - std::sin(pose.angle) * dx;
      bool inside = false;
      const double distance = std::hypot(u, v);
      switch (object.traits.shape) {
        case Shape::kCircle:
          inside = distance < r;
          break;
        case Shape::kSquare:
          inside = std::max(std::abs(u), std::abs(v)) < kSquare * r;
          break;
        case Shape::kTriangle:
          inside = v < kTriangle * r && std::abs(u) * std::sqrt(3.0) / 2 - v / 2 < kTriangle * r;
          break;
        case Shape::kStar: {
          // Crossing test on the ten corners.
          for (int corner = 0; corner < 10; ++corner) {
            const auto at = [&](int n) {
              const double radius = (n % 2 == 0 ? kTip : kNotch) * r;
              const double angle = std::numbers::pi / 5 * n;
              return std::pair(radius * std::sin(angle), -radius * std::cos(angle));
            };
            const auto [ax, ay] = at(corner);
            const auto [bx, by] = at(corner + 1);
            if ((ay > v) != (by > v) && u < (bx - ax) * (v - ay) / (by - ay) + ax) inside = !inside;
          }
          break;
        }
        case Shape::kRing:
          inside = distance < r && distance > kHole * r;
          break;
        case Shape::kCross:
          inside = std::max(std::abs(u), std::abs(v)) < r &&
                   std::min(std::abs(u), std::abs(v)) < kArm * r;
          break;
      }
      if (!inside) continue;
      const auto part = [](double a) { return a / 8.0 - std::floor(a / 8.0 + 0.5); };
      const bool dark_u = std::abs(part(u)) > 0.25;
      const bool dark_v = std::abs(part(v)) > 0.25;
      bool dark = false;
      if (object.traits.texture == Texture::kStriped) dark = dark_u;
      if (object.traits.texture == Texture::kCheckered) dark = dark_u == dark_v;
      if (object.traits.texture == Texture::kDotted) {
        dark = std::hypot(part(u), part(v)) * 8.0 < 2.7;
      }
      const float shade = dark ? kTextureShade : 1.0F;
      value = {object.colour.r * shade, object.colour.g * shade, object.colour.b * shade};
    }
    sum.r += value.r / (kPoints * kPoints);
    sum.g += value.g / (kPoints * kPoints);
    sum.b += value.b / (kPoints * kPoints);
  }
  return sum;
}

// Every shape and texture, turned and wrapped, against point sampling.
TEST(Render, DrawsWhatTheSceneSays) {
  std::array<bool, 24> seen = {};
  for (uint64_t i = 0; i < 150; ++i) {
    Scene scene = sample_scene(3, i);
    scene.starry = false;
    const int64_t frame = 1000 + static_cast<int64_t>(i);
    const std::vector<uint8_t> canvas = render(scene, RenderWindow::whole(3, frame, 1));
    double squares = 0.0;
    int64_t count = 0;
    // Pixels on a grid that meets every part of the textures.
    for (int64_t y = 0; y < 288; y += 3) {
      for (int64_t x = (y / 3) % 5; x < 480; x += 5) {
        const Rgb expected = plain_pixel(scene, frame, x, y);
        const float values[3] = {expected.r, expected.g, expected.b};
        for (int64_t c = 0; c < 3; ++c) {
          const double d = channel(canvas, 480, x, y, c) - static_cast<double>(values[c]);
          squares += d * d;
          ++count;
        }
      }
    }
    // Corners are where the analytic edge differs from the area. A wrong or shifted shape or
    // texture gives far more than 3 of 255.
    EXPECT_LT(std::sqrt(squares / static_cast<double>(count)), 2.0)
        << i << ": " << name_of(scene.objects[0].traits.shape) << " "
        << name_of(scene.objects[0].traits.texture);
    const ObjectTraits& t = scene.objects[0].traits;
    seen[static_cast<size_t>(t.shape) * 4 + static_cast<size_t>(t.texture)] = true;
  }
  EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](bool b) { return b; }));
}

TEST(Render, StarsArePixelsOfTheCanvas) {
  Scene scene = sample_scene(4, 0);
  scene.object_count = 0;
  scene.starry = true;
  scene.gradient = false;
  scene.ground_rgb = {10, 10, 10};
  const std::vector<uint8_t> canvas = render(scene, RenderWindow::whole(3, 0, 1));
  int64_t bright = 0;
  for (size_t i = 0; i < canvas.size(); i += 3) bright += canvas[i] > 140 ? 1 : 0;
  EXPECT_NEAR(static_cast<double>(bright), 0.6 * 540, 50);
}

TEST(Render, ScaleOfSizes) {
  EXPECT_EQ(scale_of(160, 96), 1);
  EXPECT_EQ(scale_of(320, 192), 2);
  EXPECT_EQ(scale_of(480, 288), 3);
  EXPECT_EQ(scale_of(480, 270), 0);
}

// What it costs; the numbers are in the log, the limit only catches a slow path.
TEST(Render, IsFast) {
  std::vector<uint8_t> out(static_cast<size_t>(RenderWindow::whole(1, 0, kClipFrames).bytes()));
  constexpr uint64_t kScenes = 20;
  const auto begin = std::chrono::steady_clock::now();
  for (uint64_t i = 0; i < kScenes; ++i) {
    render(sample_scene(5, i), RenderWindow::whole(1, 0, kClipFrames), out);
  }
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - begin;
  const double each = spent.count() / static_cast<double>(kScenes);
  std::printf("84 frames of 160 x 96: %.1f ms\n", each);
  EXPECT_LT(each, 3000.0);
}

}  // namespace
}  // namespace ultraflash::world
