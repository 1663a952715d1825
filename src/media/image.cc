#include "media/image.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/input_file.h"
#include "core/output_file.h"

namespace ultraflash {
namespace {

// One write has all of a picture.
constexpr OutputFileOptions kPictureFile{.allow_streams = true, .buffer_bytes = 0};

// The source samples and weights of every target sample along one axis.
struct Taps {
  std::vector<int64_t> begin;   // [target] first source sample
  std::vector<int64_t> offset;  // [target + 1] where its weights begin
  std::vector<float> weights;   // each target's weights sum to 1
};

Taps make_taps(int64_t source, int64_t target) {
  Taps taps;
  taps.offset.push_back(0);
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  for (int64_t i = 0; i < target; ++i) {
    if (scale <= 1.0) {
      // Sample centres lie at half-integers; at the edges the outermost sample repeats.
      const double centre = (static_cast<double>(i) + 0.5) * scale - 0.5;
      const double at = std::clamp(centre, 0.0, static_cast<double>(source - 1));
      const auto first = std::min(static_cast<int64_t>(at), std::max<int64_t>(source - 2, 0));
      const double fraction = at - static_cast<double>(first);
      taps.begin.push_back(first);
      taps.weights.push_back(static_cast<float>(1.0 - fraction));
      if (source > 1) taps.weights.push_back(static_cast<float>(fraction));
    } else {
      const double left = static_cast<double>(i) * scale;
      const double right = std::min(left + scale, static_cast<double>(source));
      const auto first = static_cast<int64_t>(left);
      taps.begin.push_back(first);
      for (int64_t s = first; s < source && static_cast<double>(s) < right; ++s) {
        const double covered =
            std::min(right, static_cast<double>(s + 1)) - std::max(left, static_cast<double>(s));
        taps.weights.push_back(static_cast<float>(covered / (right - left)));
      }
    }
    taps.offset.push_back(static_cast<int64_t>(taps.weights.size()));
  }
  return taps;
}

Result<RgbImage> make_resized(const RgbFrame& frame, int64_t width, int64_t height) {
  UF_TRY(check_frame(frame, "resize"));
  UF_TRY(check_video_format({width, height, 1, 1}, "resize"));
  const Taps across = make_taps(frame.width, width);
  const Taps down = make_taps(frame.height, height);
  RgbImage image = RgbImage::black(width, height);

  // Source rows reduced to the target width, kept in a ring as tall as the tallest vertical filter.
  int64_t ring_rows = 1;
  for (int64_t y = 0; y < height; ++y) {
    ring_rows = std::max(ring_rows, down.offset[y + 1] - down.offset[y]);
  }
  const int64_t row_values = 3 * width;
  std::vector<float> ring(static_cast<size_t>(ring_rows * row_values));
  std::vector<float> sum(static_cast<size_t>(row_values));
  const auto ring_row = [&](int64_t y) { return ring.data() + (y % ring_rows) * row_values; };
  int64_t ready = 0;  // source rows [0, ready) have been reduced
  for (int64_t y = 0; y < height; ++y) {
    const int64_t first = down.begin[y];
    const int64_t count = down.offset[y + 1] - down.offset[y];
    for (ready = std::max(ready, first); ready < first + count; ++ready) {
      const uint8_t* source = frame.row(ready);
      float* out = ring_row(ready);
      for (int64_t x = 0; x < width; ++x) {
        float rgb[3] = {0.0F, 0.0F, 0.0F};
        const uint8_t* pixel = source + 3 * across.begin[x];
        for (int64_t k = across.offset[x]; k < across.offset[x + 1]; ++k, pixel += 3) {
          for (int c = 0; c < 3; ++c) rgb[c] += across.weights[k] * static_cast<float>(pixel[c]);
        }
        std::copy_n(rgb, 3, out + 3 * x);
      }
    }
    std::fill(sum.begin(), sum.end(), 0.5F);
    for (int64_t k = 0; k < count; ++k) {
      const float weight = down.weights[down.offset[y] + k];
      const float* source = ring_row(first + k);
      for (int64_t i = 0; i < row_values; ++i) sum[i] += weight * source[i];
    }
    uint8_t* out = image.row(y);
    for (int64_t i = 0; i < row_values; ++i) {
      out[i] = static_cast<uint8_t>(std::clamp(static_cast<int32_t>(sum[i]), 0, 255));
    }
  }
  return image;
}

Result<RgbImage> make_contact_sheet(std::span<const RgbFrame> frames, const SheetOptions& options) {
  const auto count = static_cast<int64_t>(frames.size());
  if (count == 0) return Status(StatusCode::kInvalidArgument, "contact sheet: there are no frames");
  if (options.columns < 0 || options.margin < 0 || options.max_width < 0 ||
      options.margin > kMaxFrameSide) {
    return make_status(StatusCode::kInvalidArgument,
                       "contact sheet: {} columns, margin {}, width {}; none may be negative",
                       options.columns, options.margin, options.max_width);
  }
  for (const RgbFrame& frame : frames) {
    UF_TRY(check_frame(frame, "contact sheet"));
    if (frame.width != frames[0].width || frame.height != frames[0].height) {
      return make_status(StatusCode::kInvalidArgument,
                         "contact sheet: frames of {}x{} and {}x{}; all must have one size",
                         frames[0].width, frames[0].height, frame.width, frame.height);
    }
  }
  const auto square = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
  const int64_t columns = std::min(options.columns == 0 ? square : options.columns, count);
  const int64_t rows = (count + columns - 1) / columns;
  const int64_t margins = options.margin * (columns + 1);
  int64_t width = frames[0].width;
  int64_t height = frames[0].height;
  if (options.max_width > 0 && columns * width + margins > options.max_width) {
    width = (options.max_width - margins) / columns;
    if (width < 1) {
      return make_status(StatusCode::kInvalidArgument,
                         "contact sheet: {} columns with margins of {} do not fit into {} pixels; "
                         "use fewer columns",
                         columns, options.margin, options.max_width);
    }
    height =
        std::max<int64_t>(1, (frames[0].height * width + frames[0].width / 2) / frames[0].width);
  }
  const int64_t sheet_width = columns * width + margins;
  const int64_t sheet_height = rows * height + options.margin * (rows + 1);
  UF_TRY(check_video_format({sheet_width, sheet_height, 1, 1}, "contact sheet"));

  RgbImage sheet = RgbImage::black(sheet_width, sheet_height);
  std::fill(sheet.pixels.begin(), sheet.pixels.end(), options.background);
  for (int64_t i = 0; i < count; ++i) {
    RgbImage reduced;
    RgbFrame frame = frames[i];
    if (frame.width != width || frame.height != height) {
      UF_ASSIGN(reduced, make_resized(frame, width, height));
      frame = reduced.view();
    }
    const int64_t left = options.margin + i % columns * (width + options.margin);
    const int64_t top = options.margin + i / columns * (height + options.margin);
    for (int64_t y = 0; y < height; ++y) {
      std::memcpy(sheet.row(top + y) + 3 * left, frame.row(y), static_cast<size_t>(3 * width));
    }
  }
  return sheet;
}

}  // namespace

Status write_png(const std::string& path, const RgbFrame& frame, int level) {
  return without_exceptions(
      [&]() -> Status {
        UF_ASSIGN(const std::vector<uint8_t> bytes, encode_png(frame, level));
        UF_ASSIGN(OutputFile file, OutputFile::create(path, kPictureFile));
        UF_TRY(file.write(bytes));
        return file.commit();
      },
      [&] {
        return fmt::format("{}: no memory for a picture of {}x{}", path, frame.width, frame.height);
      });
}

Result<RgbImage> read_png(const std::string& path, const ImageLimits& limits) {
  return without_exceptions(
      [&]() -> Result<RgbImage> {
        // A PNG is hardly ever larger than its pixels; this bounds what a device or a pipe can
        // deliver.
        constexpr int64_t kMaxFileBytes = int64_t{1} << 30;
        const int64_t allowed = std::min(kMaxFileBytes, 8 * limits.max_pixels + (int64_t{1} << 20));
        UF_ASSIGN(InputFile file, InputFile::open(path));
        UF_ASSIGN(const std::vector<uint8_t> bytes, file.read_rest(allowed));
        return decode_png(bytes, path, limits);
      },
      [&] { return fmt::format("{}: no memory to read this picture", path); });
}

Result<RgbImage> resize(const RgbFrame& frame, int64_t width, int64_t height) {
  return without_exceptions([&] { return make_resized(frame, width, height); });
}

Result<RgbImage> contact_sheet(std::span<const RgbFrame> frames, const SheetOptions& options) {
  return without_exceptions([&] { return make_contact_sheet(frames, options); });
}

}  // namespace ultraflash
