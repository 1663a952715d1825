#include "media/colour.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {
namespace {

// Pixels of a row handled at once: some 20 KB of rows on the stack, which stays in the first-level
// cache. Even, so that chroma pairs never straddle two strips.
constexpr int64_t kStrip = 512;
// One more pixel on either side, for the chroma filters.
constexpr int64_t kPadded = kStrip + 2;

struct Luma {
  double red;
  double blue;
};

constexpr Luma luma_of(ColourMatrix matrix) {
  switch (matrix) {
    case ColourMatrix::kBt601:
      return {0.299, 0.114};
    case ColourMatrix::kBt2020:
      return {0.2627, 0.0593};
    case ColourMatrix::kBt709:
      break;
  }
  return {0.2126, 0.0722};
}

// ---- RGB to YUV ------------------------------------------------------------------------------

struct ForwardMatrix {
  float y[3];
  float u[3];
  float v[3];
};

// 8-bit RGB to limited range without the offsets 16 and 128.
constexpr ForwardMatrix forward_matrix(Luma luma) {
  const double green = 1.0 - luma.red - luma.blue;
  const double y = 219.0 / 255.0;
  const double u = 224.0 / 255.0 / (2.0 * (1.0 - luma.blue));
  const double v = 224.0 / 255.0 / (2.0 * (1.0 - luma.red));
  return {{static_cast<float>(y * luma.red), static_cast<float>(y * green),
           static_cast<float>(y * luma.blue)},
          {static_cast<float>(-u * luma.red), static_cast<float>(-u * green),
           static_cast<float>(u * (1.0 - luma.blue))},
          {static_cast<float>(v * (1.0 - luma.red)), static_cast<float>(-v * green),
           static_cast<float>(-v * luma.blue)}};
}

constexpr ForwardMatrix kForward = forward_matrix(luma_of(ColourMatrix::kBt709));

// A strip of one row, split into its colours. Element i + 1 is pixel i, so that index 0 is the left
// neighbour of the strip.
struct SplitRow {
  alignas(64) uint8_t red[kPadded + 62];
  alignas(64) uint8_t green[kPadded + 62];
  alignas(64) uint8_t blue[kPadded + 62];
};

// Pixels [begin, begin + count) of a row of `width`, with both neighbours (edges repeated).
inline void split(const uint8_t* row, int64_t width, int64_t begin, int64_t count, SplitRow& out) {
  const uint8_t* pixels = row + 3 * begin;
  for (int64_t i = 0; i < count; ++i) {
    out.red[i + 1] = pixels[3 * i];
    out.green[i + 1] = pixels[3 * i + 1];
    out.blue[i + 1] = pixels[3 * i + 2];
  }
  const uint8_t* left = row + 3 * std::max<int64_t>(begin - 1, 0);
  const uint8_t* right = row + 3 * std::min(begin + count, width - 1);
  out.red[0] = left[0];
  out.green[0] = left[1];
  out.blue[0] = left[2];
  out.red[count + 1] = right[0];
  out.green[count + 1] = right[1];
  out.blue[count + 1] = right[2];
}

// weights . (red, green, blue) + offset, where the offset holds the 0.5 that rounds to nearest. All
// results lie in 16..240, so that no clamp is needed.
inline void weigh(const uint8_t* red, const uint8_t* green, const uint8_t* blue,
                  const float (&weights)[3], float offset, int64_t count, uint8_t* out) {
  const float r = weights[0];
  const float g = weights[1];
  const float b = weights[2];
  for (int64_t i = 0; i < count; ++i) {
    const float sum = static_cast<float>(red[i]) * r + static_cast<float>(green[i]) * g +
                      static_cast<float>(blue[i]) * b + offset;
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(sum));
  }
}

// Eight times the colour at every chroma position of a strip: 1 2 1 across, 1 1 down.
inline void gather_chroma(const uint8_t* top, const uint8_t* bottom, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int left = top[2 * i] + bottom[2 * i];
    const int middle = top[2 * i + 1] + bottom[2 * i + 1];
    const int right = top[2 * i + 2] + bottom[2 * i + 2];
    out[i] = static_cast<uint16_t>(left + 2 * middle + right);
  }
}

inline void weigh_chroma(const uint16_t* red, const uint16_t* green, const uint16_t* blue,
                         const float (&weights)[3], int64_t count, uint8_t* out) {
  const float r = weights[0] / 8.0F;
  const float g = weights[1] / 8.0F;
  const float b = weights[2] / 8.0F;
  for (int64_t i = 0; i < count; ++i) {
    const float sum = static_cast<float>(red[i]) * r + static_cast<float>(green[i]) * g +
                      static_cast<float>(blue[i]) * b + 128.5F;
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(sum));
  }
}

void rgb_to_yuv444(const RgbFrame& rgb, const YuvPlanes<uint8_t>& yuv) {
  SplitRow split_row;
  for (int64_t y = 0; y < rgb.height; ++y) {
    for (int64_t x = 0; x < rgb.width; x += kStrip) {
      const int64_t count = std::min(kStrip, rgb.width - x);
      split(rgb.row(y), rgb.width, x, count, split_row);
      const uint8_t* red = split_row.red + 1;
      const uint8_t* green = split_row.green + 1;
      const uint8_t* blue = split_row.blue + 1;
      weigh(red, green, blue, kForward.y, 16.5F, count, yuv.y + y * yuv.y_stride + x);
      weigh(red, green, blue, kForward.u, 128.5F, count, yuv.u + y * yuv.uv_stride + x);
      weigh(red, green, blue, kForward.v, 128.5F, count, yuv.v + y * yuv.uv_stride + x);
    }
  }
}

void rgb_to_yuv420(const RgbFrame& rgb, const YuvPlanes<uint8_t>& yuv) {
  SplitRow rows[2];
  alignas(64) uint16_t red[kStrip / 2];
  alignas(64) uint16_t green[kStrip / 2];
  alignas(64) uint16_t blue[kStrip / 2];
  for (int64_t y = 0; y < rgb.height; y += 2) {
    const bool pair = y + 1 < rgb.height;
    for (int64_t x = 0; x < rgb.width; x += kStrip) {
      const int64_t count = std::min(kStrip, rgb.width - x);
      for (int64_t line = 0; line < (pair ? 2 : 1); ++line) {
        SplitRow& part = rows[line];
        split(rgb.row(y + line), rgb.width, x, count, part);
        weigh(part.red + 1, part.green + 1, part.blue + 1, kForward.y, 16.5F, count,
              yuv.y + (y + line) * yuv.y_stride + x);
      }
      const SplitRow& bottom = rows[pair ? 1 : 0];
      const int64_t half = (count + 1) / 2;
      gather_chroma(rows[0].red, bottom.red, half, red);
      gather_chroma(rows[0].green, bottom.green, half, green);
      gather_chroma(rows[0].blue, bottom.blue, half, blue);
      const int64_t at = y / 2 * yuv.uv_stride + x / 2;
      weigh_chroma(red, green, blue, kForward.u, half, yuv.u + at);
      weigh_chroma(red, green, blue, kForward.v, half, yuv.v + at);
    }
  }
}

// ---- YUV to RGB ------------------------------------------------------------------------------

struct InverseMatrix {
  float y;
  float y_offset;
  float red_v;
  float green_u;
  float green_v;
  float blue_u;
};

InverseMatrix inverse_matrix(ColourMatrix matrix, ColourRange range) {
  const Luma luma = luma_of(matrix);
  const double green = 1.0 - luma.red - luma.blue;
  const bool full = range == ColourRange::kFull;
  const double chroma = full ? 1.0 : 255.0 / 224.0;
  const double red_v = 2.0 * (1.0 - luma.red) * chroma;
  const double blue_u = 2.0 * (1.0 - luma.blue) * chroma;
  return {static_cast<float>(full ? 1.0 : 255.0 / 219.0),
          full ? 0.0F : 16.0F,
          static_cast<float>(red_v),
          static_cast<float>(-blue_u * luma.blue / green),
          static_cast<float>(-red_v * luma.red / green),
          static_cast<float>(blue_u)};
}

// One chroma plane and how its rows lie under the luma rows.
struct ChromaPlane {
  const uint8_t* data;
  int64_t stride;
  int64_t width;
  int64_t height;
};

// Chroma samples [begin - 1, begin + count + 1) of the luma row `y`, edges repeated, as floats
// centred on zero: element i + 1 is sample begin + i. `halved`: two luma rows to a chroma row.
inline void blend_rows(const ChromaPlane& plane, bool halved, int64_t y, int64_t begin,
                       int64_t count, float* out) {
  const int64_t near_y = halved ? y / 2 : y;
  const int64_t far_y =
      halved ? std::clamp<int64_t>(near_y + (y % 2 == 0 ? -1 : 1), 0, plane.height - 1) : near_y;
  const uint8_t* near_row = plane.data + near_y * plane.stride;
  const uint8_t* far_row = plane.data + far_y * plane.stride;
  const auto blend = [&](int64_t x) {
    return static_cast<float>(near_row[x]) * 0.75F + static_cast<float>(far_row[x]) * 0.25F -
           128.0F;
  };
  for (int64_t i = 0; i < count; ++i) out[i + 1] = blend(begin + i);
  out[0] = blend(std::max<int64_t>(begin - 1, 0));
  out[count + 1] = blend(std::min(begin + count, plane.width - 1));
}

// Twice as many samples across. `in` is as blend_rows() leaves it.
inline void widen(const float* in, ChromaSiting siting, int64_t count, float* out) {
  if (siting == ChromaSiting::kLeft) {
    for (int64_t i = 0; i < count; ++i) {
      out[2 * i] = in[i + 1];
      out[2 * i + 1] = (in[i + 1] + in[i + 2]) * 0.5F;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      out[2 * i] = in[i + 1] * 0.75F + in[i] * 0.25F;
      out[2 * i + 1] = in[i + 1] * 0.75F + in[i + 2] * 0.25F;
    }
  }
}

// Rounds to nearest and clamps. `value` holds the 0.5 already; the clamp comes after the
// conversion, where it is a plain integer minimum and maximum.
inline uint8_t to_byte(float value) {
  return static_cast<uint8_t>(std::clamp(static_cast<int32_t>(value), 0, 255));
}

inline void combine(const uint8_t* luma, const float* u, const float* v, const InverseMatrix matrix,
                    int64_t count, uint8_t* out) {
  alignas(64) uint8_t red[kStrip];
  alignas(64) uint8_t green[kStrip];
  alignas(64) uint8_t blue[kStrip];
  const float offset = 0.5F - matrix.y_offset * matrix.y;
  for (int64_t i = 0; i < count; ++i) {
    const float y = static_cast<float>(luma[i]) * matrix.y + offset;
    red[i] = to_byte(y + matrix.red_v * v[i]);
    green[i] = to_byte(y + (matrix.green_u * u[i] + matrix.green_v * v[i]));
    blue[i] = to_byte(y + matrix.blue_u * u[i]);
  }
  for (int64_t i = 0; i < count; ++i) {
    out[3 * i] = red[i];
    out[3 * i + 1] = green[i];
    out[3 * i + 2] = blue[i];
  }
}

}  // namespace

int64_t chroma_width(ChromaLayout layout, int64_t width) {
  if (layout == ChromaLayout::k400) return 0;
  return layout == ChromaLayout::k444 ? width : (width + 1) / 2;
}

int64_t chroma_height(ChromaLayout layout, int64_t height) {
  if (layout == ChromaLayout::k400) return 0;
  return layout == ChromaLayout::k420 ? (height + 1) / 2 : height;
}

void rgb_to_yuv(const RgbFrame& rgb, ChromaLayout layout, const YuvPlanes<uint8_t>& yuv) {
  if (layout == ChromaLayout::k420) {
    rgb_to_yuv420(rgb, yuv);
  } else {
    UF_CHECK(layout == ChromaLayout::k444, "only 4:2:0 and 4:4:4 are written");
    rgb_to_yuv444(rgb, yuv);
  }
}

void yuv_to_rgb(const YuvPlanes<const uint8_t>& yuv, const YuvFormat& format, int64_t width,
                int64_t height, uint8_t* rgb, int64_t row_stride) {
  const InverseMatrix matrix = inverse_matrix(format.matrix, format.range);
  const bool halved_across =
      format.layout == ChromaLayout::k420 || format.layout == ChromaLayout::k422;
  const bool halved_down = format.layout == ChromaLayout::k420;
  const ChromaPlane planes[2] = {{yuv.u, yuv.uv_stride, chroma_width(format.layout, width),
                                  chroma_height(format.layout, height)},
                                 {yuv.v, yuv.uv_stride, chroma_width(format.layout, width),
                                  chroma_height(format.layout, height)}};
  alignas(64) float blended[kPadded];
  alignas(64) float chroma[2][kStrip] = {};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; x += kStrip) {
      const int64_t count = std::min(kStrip, width - x);
      if (format.layout != ChromaLayout::k400) {
        for (int plane = 0; plane < 2; ++plane) {
          const int64_t samples = halved_across ? (count + 1) / 2 : count;
          blend_rows(planes[plane], halved_down, y, halved_across ? x / 2 : x, samples, blended);
          if (halved_across) {
            widen(blended, format.siting, samples, chroma[plane]);
          } else {
            std::copy_n(blended + 1, count, chroma[plane]);
          }
        }
      }
      combine(yuv.y + y * yuv.y_stride + x, chroma[0], chroma[1], matrix, count,
              rgb + y * row_stride + 3 * x);
    }
  }
}

}  // namespace ultraflash
