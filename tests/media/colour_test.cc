#include "media/colour.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "media/media_test_util.h"

namespace ultraflash {
namespace {

// ---- The definition of right: one pixel at a time, in double. --------------------------------

struct Luma {
  double red;
  double green;
  double blue;
};

Luma luma_of(ColourMatrix matrix) {
  if (matrix == ColourMatrix::kBt601) return {0.299, 0.587, 0.114};
  if (matrix == ColourMatrix::kBt2020) return {0.2627, 0.6780, 0.0593};
  return {0.2126, 0.7152, 0.0722};
}

// BT.709 limited range of 8-bit RGB, not rounded.
std::array<double, 3> reference_yuv(double red, double green, double blue) {
  const Luma luma = luma_of(ColourMatrix::kBt709);
  const double y = (luma.red * red + luma.green * green + luma.blue * blue) / 255.0;
  return {16.0 + 219.0 * y, 128.0 + 224.0 * (blue / 255.0 - y) / (2.0 * (1.0 - luma.blue)),
          128.0 + 224.0 * (red / 255.0 - y) / (2.0 * (1.0 - luma.red))};
}

std::array<double, 3> reference_rgb(double y, double u, double v, ColourMatrix matrix,
                                    ColourRange range) {
  const Luma luma = luma_of(matrix);
  const bool full = range == ColourRange::kFull;
  const double y1 = full ? y / 255.0 : (y - 16.0) / 219.0;
  const double u1 = (u - 128.0) / (full ? 255.0 : 224.0);
  const double v1 = (v - 128.0) / (full ? 255.0 : 224.0);
  const double red = y1 + 2.0 * (1.0 - luma.red) * v1;
  const double blue = y1 + 2.0 * (1.0 - luma.blue) * u1;
  const double green = (y1 - luma.red * red - luma.blue * blue) / luma.green;
  std::array<double, 3> rgb = {red, green, blue};
  for (double& c : rgb) c = std::clamp(255.0 * c, 0.0, 255.0);
  return rgb;
}

// A float computation may round a value that lies on the border to either side.
void expect_rounded(uint8_t actual, double expected, const std::string& where) {
  ASSERT_LE(std::abs(static_cast<double>(actual) - expected), 0.5 + 1e-3) << where;
}

std::string place(int64_t width, int64_t height, int64_t x, int64_t y) {
  return std::to_string(width) + "x" + std::to_string(height) + " at " + std::to_string(x) + "," +
         std::to_string(y);
}

// Sizes around the strip of 512 pixels that the conversion works in, odd ones among them.
constexpr std::pair<int64_t, int64_t> kSizes[] = {{1, 1},   {2, 2},   {3, 5},   {17, 4},  {511, 3},
                                                  {512, 2}, {513, 4}, {514, 3}, {1027, 2}};

// A plane with guard bytes around every row.
struct Plane {
  static constexpr int64_t kGuard = 13;
  static constexpr uint8_t kGuardValue = 0xa5;
  int64_t width;
  int64_t height;
  int64_t stride;
  std::vector<uint8_t> bytes;

  Plane(int64_t w, int64_t h)
      : width(w),
        height(h),
        stride(w + 2 * kGuard),
        bytes(static_cast<size_t>((h + 2) * stride), kGuardValue) {}
  [[nodiscard]] uint8_t* data() { return bytes.data() + stride + kGuard; }
  [[nodiscard]] uint8_t at(int64_t x, int64_t y) const {
    return bytes[static_cast<size_t>((y + 1) * stride + kGuard + x)];
  }
  [[nodiscard]] bool guards_intact() const {
    for (int64_t y = -1; y <= height; ++y) {
      for (int64_t x = -kGuard; x < width + kGuard; ++x) {
        const bool inside = x >= 0 && x < width && y >= 0 && y < height;
        if (!inside && at(x, y) != kGuardValue) return false;
      }
    }
    return true;
  }
};

TEST(ColourTest, ForwardMatchesDoubleReference) {
  for (const auto& [width, height] : kSizes) {
    const RgbImage image = media_test::noise(width, height, 7);
    for (const ChromaLayout layout : {ChromaLayout::k444, ChromaLayout::k420}) {
      const int64_t uv_width = chroma_width(layout, width);
      const int64_t uv_height = chroma_height(layout, height);
      Plane y_plane(width, height);
      Plane u_plane(uv_width, uv_height);
      Plane v_plane(uv_width, uv_height);
      rgb_to_yuv(image.view(), layout,
                 {y_plane.data(), u_plane.data(), v_plane.data(), y_plane.stride, u_plane.stride});
      const auto pixel = [&](int64_t x, int64_t y, int c) {
        x = std::clamp<int64_t>(x, 0, image.width - 1);
        y = std::clamp<int64_t>(y, 0, image.height - 1);
        return static_cast<double>(image.view().row(y)[3 * x + c]);
      };
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          const auto yuv = reference_yuv(pixel(x, y, 0), pixel(x, y, 1), pixel(x, y, 2));
          ASSERT_NO_FATAL_FAILURE(
              expect_rounded(y_plane.at(x, y), yuv[0], "y " + place(width, height, x, y)));
        }
      }
      for (int64_t y = 0; y < uv_height; ++y) {
        for (int64_t x = 0; x < uv_width; ++x) {
          double rgb[3] = {};
          for (int c = 0; c < 3; ++c) {
            if (layout == ChromaLayout::k444) {
              rgb[c] = pixel(x, y, c);
              continue;
            }
            for (int64_t row = 2 * y; row < 2 * y + 2; ++row) {
              rgb[c] += (pixel(2 * x - 1, row, c) + 2.0 * pixel(2 * x, row, c) +
                         pixel(2 * x + 1, row, c)) /
                        8.0;
            }
          }
          const auto yuv = reference_yuv(rgb[0], rgb[1], rgb[2]);
          ASSERT_NO_FATAL_FAILURE(
              expect_rounded(u_plane.at(x, y), yuv[1], "u " + place(width, height, x, y)));
          ASSERT_NO_FATAL_FAILURE(
              expect_rounded(v_plane.at(x, y), yuv[2], "v " + place(width, height, x, y)));
        }
      }
      EXPECT_TRUE(y_plane.guards_intact() && u_plane.guards_intact() && v_plane.guards_intact())
          << width << "x" << height;
    }
  }
}

TEST(ColourTest, InverseMatchesDoubleReferenceForEveryLayoutSitingMatrixAndRange) {
  std::mt19937 random(11);
  for (const auto& [width, height] : kSizes) {
    for (const ChromaLayout layout :
         {ChromaLayout::k400, ChromaLayout::k420, ChromaLayout::k422, ChromaLayout::k444}) {
      const int64_t uv_width = chroma_width(layout, width);
      const int64_t uv_height = chroma_height(layout, height);
      std::vector<uint8_t> y_plane(static_cast<size_t>(width * height));
      std::vector<uint8_t> u_plane(static_cast<size_t>(uv_width * uv_height));
      std::vector<uint8_t> v_plane = u_plane;
      for (auto* plane : {&y_plane, &u_plane, &v_plane}) {
        for (uint8_t& value : *plane) value = static_cast<uint8_t>(random());
      }
      for (const ChromaSiting siting : {ChromaSiting::kLeft, ChromaSiting::kCentre}) {
        for (const ColourMatrix matrix :
             {ColourMatrix::kBt601, ColourMatrix::kBt709, ColourMatrix::kBt2020}) {
          for (const ColourRange range : {ColourRange::kLimited, ColourRange::kFull}) {
            Plane rgb(3 * width, height);
            yuv_to_rgb({y_plane.data(), u_plane.data(), v_plane.data(), width, uv_width},
                       {layout, siting, matrix, range}, width, height, rgb.data(), rgb.stride);
            // The chroma value at a luma position, by the position of the samples.
            const auto chroma = [&](const std::vector<uint8_t>& plane, int64_t x, int64_t y) {
              if (layout == ChromaLayout::k400) return 128.0;
              const bool halved_across = layout != ChromaLayout::k444;
              const bool halved_down = layout == ChromaLayout::k420;
              const double shift = siting == ChromaSiting::kLeft ? 0.0 : 0.25;
              const double at_x =
                  halved_across ? static_cast<double>(x) / 2.0 - shift : static_cast<double>(x);
              const double at_y =
                  halved_down ? static_cast<double>(y) / 2.0 - 0.25 : static_cast<double>(y);
              double sum = 0.0;
              for (int corner = 0; corner < 4; ++corner) {
                const double cx = std::floor(at_x) + corner % 2;
                const double cy = std::floor(at_y) + corner / 2;
                const double weight = (1.0 - std::abs(at_x - cx)) * (1.0 - std::abs(at_y - cy));
                const auto sx = std::clamp<int64_t>(static_cast<int64_t>(cx), 0, uv_width - 1);
                const auto sy = std::clamp<int64_t>(static_cast<int64_t>(cy), 0, uv_height - 1);
                sum += weight * static_cast<double>(plane[static_cast<size_t>(sy * uv_width + sx)]);
              }
              return sum;
            };
            for (int64_t y = 0; y < height; ++y) {
              for (int64_t x = 0; x < width; ++x) {
                const auto expected =
                    reference_rgb(static_cast<double>(y_plane[static_cast<size_t>(y * width + x)]),
                                  chroma(u_plane, x, y), chroma(v_plane, x, y), matrix, range);
                for (int c = 0; c < 3; ++c) {
                  ASSERT_NO_FATAL_FAILURE(
                      expect_rounded(rgb.at(3 * x + c, y), expected[static_cast<size_t>(c)],
                                     place(width, height, x, y) + " colour " + std::to_string(c)));
                }
              }
            }
            ASSERT_TRUE(rgb.guards_intact()) << width << "x" << height;
          }
        }
      }
    }
  }
}

// The 8-bit grid of limited-range YUV is coarser than that of RGB, so that a colour that has once
// been stored survives any number of round trips, unless rounding put it outside the RGB cube.
TEST(ColourTest, YuvSurvivesTheWayThroughRgbFor444) {
  constexpr int64_t kWidth = 640;
  constexpr int64_t kHeight = 97;
  RgbImage first = media_test::noise(kWidth, kHeight, 3);
  for (uint8_t& value : first.pixels) value = static_cast<uint8_t>(4 + value * 247 / 255);
  std::vector<uint8_t> once(3 * kWidth * kHeight);
  std::vector<uint8_t> twice = once;
  const auto planes = [](std::vector<uint8_t>& bytes) {
    return YuvPlanes<uint8_t>{bytes.data(), bytes.data() + kWidth * kHeight,
                              bytes.data() + 2 * kWidth * kHeight, kWidth, kWidth};
  };
  rgb_to_yuv(first.view(), ChromaLayout::k444, planes(once));
  RgbImage back = RgbImage::black(kWidth, kHeight);
  const YuvPlanes<uint8_t> stored = planes(once);
  YuvFormat format;
  format.layout = ChromaLayout::k444;
  yuv_to_rgb({stored.y, stored.u, stored.v, kWidth, kWidth}, format, kWidth, kHeight,
             back.pixels.data(), 3 * kWidth);
  EXPECT_LE(media_test::largest_difference(first.view(), back.view()), 2);
  rgb_to_yuv(back.view(), ChromaLayout::k444, planes(twice));
  EXPECT_EQ(once, twice);
}

TEST(ColourTest, GreysStayGreyAndPrimariesHaveTheirTableValues) {
  // ITU-R BT.709-6, rounded: 75 % is not in the table, 100 % colours are.
  constexpr struct {
    uint8_t rgb[3];
    uint8_t yuv[3];
  } kTable[] = {{{255, 255, 255}, {235, 128, 128}}, {{0, 0, 0}, {16, 128, 128}},
                {{255, 0, 0}, {63, 102, 240}},      {{0, 255, 0}, {173, 42, 26}},
                {{0, 0, 255}, {32, 240, 118}},      {{255, 255, 0}, {219, 16, 138}}};
  for (const auto& row : kTable) {
    uint8_t yuv[3];
    rgb_to_yuv(RgbFrame::contiguous(row.rgb, 1, 1), ChromaLayout::k444,
               {yuv, yuv + 1, yuv + 2, 1, 1});
    for (int c = 0; c < 3; ++c) EXPECT_EQ(int{yuv[c]}, int{row.yuv[c]}) << "component " << c;
  }
  for (int grey = 0; grey < 256; ++grey) {
    const std::vector<uint8_t> pixels(12, static_cast<uint8_t>(grey));
    uint8_t y[4];
    uint8_t uv[2];
    rgb_to_yuv(RgbFrame::contiguous(pixels.data(), 2, 2), ChromaLayout::k420,
               {y, uv, uv + 1, 2, 1});
    EXPECT_EQ(uv[0], 128);
    EXPECT_EQ(uv[1], 128);
  }
}

TEST(ColourTest, RowsMayHaveGaps) {
  const RgbImage image = media_test::noise(30, 6, 5);
  const RgbFrame part{image.view().row(1) + 3 * 4, 20, 4, image.view().row_stride};
  const RgbImage packed = media_test::copy_of(part);
  std::vector<uint8_t> from_part(20 * 4 * 3);
  std::vector<uint8_t> from_packed = from_part;
  for (auto* target : {&from_part, &from_packed}) {
    uint8_t* y = target->data();
    rgb_to_yuv(target == &from_part ? part : packed.view(), ChromaLayout::k444,
               {y, y + 80, y + 160, 20, 20});
  }
  EXPECT_EQ(from_part, from_packed);
}

}  // namespace
}  // namespace ultraflash
