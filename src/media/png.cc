// PNG through libpng. libpng reports errors by longjmp, so the functions that call setjmp hold
// nothing with a destructor; buffers and messages belong to their callers.
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>

#include "core/check.h"
#include "core/exceptions.h"
#include "media/image.h"

namespace ultraflash {
namespace {

constexpr int kRunsOnly = 3;  // Z_RLE of zlib, whose header is not needed for anything else

// What a callback of libpng needs to see.
struct Messenger {
  char message[160] = {};
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* messenger = static_cast<Messenger*>(png_get_error_ptr(png));
  std::strncpy(messenger->message, message, sizeof(messenger->message) - 1);
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

struct Output {
  std::vector<uint8_t>* bytes;
  bool out_of_memory;
};

void append(png_structp png, png_bytep data, size_t size) {
  auto* output = static_cast<Output*>(png_get_io_ptr(png));
  // No exception may pass through libpng.
  try {
    output->bytes->insert(output->bytes->end(), data, data + size);
    return;
  } catch (...) {
    output->out_of_memory = true;
  }
  png_error(png, "out of memory");
}

// False: see `messenger` and `output`.
bool write_picture(const RgbFrame& frame, int level, Output& output, Messenger& messenger) {
  png_structp png =
      png_create_write_struct(PNG_LIBPNG_VER_STRING, &messenger, on_error, on_warning);
  if (png == nullptr) return false;
  png_infop info = png_create_info_struct(png);
  if (info == nullptr || setjmp(png_jmpbuf(png)) != 0) {
    png_destroy_write_struct(&png, &info);
    return false;
  }
  png_set_write_fn(png, &output, append, nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(frame.width),
               static_cast<png_uint_32>(frame.height), 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_set_sRGB(png, info, PNG_sRGB_INTENT_PERCEPTUAL);
  png_set_compression_level(png, level);
  if (level < 6) {
    // Differences to the left neighbour, of which only runs are matched: a 2496x1440 photograph
    // took 93 ms and 2.8 MB, against 101 ms and 3.3 MB with zlib's default strategy.
    png_set_filter(png, PNG_FILTER_TYPE_BASE, PNG_FILTER_SUB);
    png_set_compression_strategy(png, kRunsOnly);
  } else {
    png_set_filter(png, PNG_FILTER_TYPE_BASE, PNG_ALL_FILTERS);
  }
  png_write_info(png, info);
  for (int64_t y = 0; y < frame.height; ++y) png_write_row(png, frame.row(y));
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return true;
}

struct Input {
  const uint8_t* data;
  size_t size;
};

void take(png_structp png, png_bytep out, size_t size) {
  auto* input = static_cast<Input*>(png_get_io_ptr(png));
  if (size > input->size) png_error(png, "the file ends too early");
  std::memcpy(out, input->data, size);
  input->data += size;
  input->size -= size;
}

enum class ReadOutcome : uint8_t { kOk, kFailed, kTooLarge, kNoMemory };

// Fills `image`. The vectors that it sizes belong to the caller.
ReadOutcome read_picture(Input& input, const ImageLimits& limits, RgbImage& image,
                         std::vector<png_bytep>& rows, Messenger& messenger) {
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &messenger, on_error, on_warning);
  if (png == nullptr) return ReadOutcome::kNoMemory;
  png_infop info = png_create_info_struct(png);
  if (info == nullptr) {
    png_destroy_read_struct(&png, nullptr, nullptr);
    return ReadOutcome::kNoMemory;
  }
  if (setjmp(png_jmpbuf(png)) != 0) {
    png_destroy_read_struct(&png, &info, nullptr);
    return ReadOutcome::kFailed;
  }
  png_set_read_fn(png, &input, take);
  // Sides are checked below; libpng's own limit only keeps its arithmetic small.
  png_set_user_limits(png, 1U << 24, 1U << 24);
  png_set_chunk_malloc_max(png, 8U << 20);
  png_set_chunk_cache_max(png, 64);
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
  png_read_info(png, info);
  image.width = png_get_image_width(png, info);
  image.height = png_get_image_height(png, info);
  if (image.width > limits.max_side || image.height > limits.max_side ||
      image.width * image.height > limits.max_pixels) {
    png_destroy_read_struct(&png, &info, nullptr);
    return ReadOutcome::kTooLarge;
  }
  png_set_expand(png);
  png_set_scale_16(png);
  png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  if (png_get_rowbytes(png, info) != static_cast<size_t>(3 * image.width)) {
    png_error(png, "rows are not RGB after conversion");
  }
  try {
    image.pixels.resize(static_cast<size_t>(3 * image.width * image.height));
    rows.resize(static_cast<size_t>(image.height));
  } catch (...) {
    png_destroy_read_struct(&png, &info, nullptr);
    return ReadOutcome::kNoMemory;
  }
  for (size_t y = 0; y < rows.size(); ++y) rows[y] = image.row(static_cast<int64_t>(y));
  png_read_image(png, rows.data());
  png_read_end(png, nullptr);
  png_destroy_read_struct(&png, &info, nullptr);
  return ReadOutcome::kOk;
}

}  // namespace

Result<std::vector<uint8_t>> encode_png(const RgbFrame& frame, int level) {
  return without_exceptions([&]() -> Result<std::vector<uint8_t>> {
    UF_TRY(check_frame(frame, "png"));
    UF_TRY(check_video_format({frame.width, frame.height, 1, 1}, "png"));
    if (level < 0 || level > 9) {
      return make_status(StatusCode::kInvalidArgument,
                         "png: compression level {}; it goes from 0 to 9", level);
    }
    std::vector<uint8_t> bytes;
    Output output{&bytes, /*out_of_memory=*/false};
    Messenger messenger;
    if (!write_picture(frame, level, output, messenger)) {
      if (output.out_of_memory || messenger.message[0] == '\0') {
        return make_status(StatusCode::kOutOfMemory, "png: no memory for a picture of {}x{}",
                           frame.width, frame.height);
      }
      return make_status(StatusCode::kInternal, "png: libpng says: {}", messenger.message);
    }
    return bytes;
  });
}

Result<RgbImage> decode_png(std::span<const uint8_t> bytes, const std::string& name,
                            const ImageLimits& limits) {
  return without_exceptions([&]() -> Result<RgbImage> {
    RgbImage image;
    std::vector<png_bytep> rows;
    Input input{bytes.data(), bytes.size()};
    Messenger messenger;
    switch (read_picture(input, limits, image, rows, messenger)) {
      case ReadOutcome::kOk:
        return image;
      case ReadOutcome::kTooLarge:
        return make_status(
            StatusCode::kUnsupported,
            "{}: the picture is {}x{}; the limits are {} pixels a side and {} in all", name,
            image.width, image.height, limits.max_side, limits.max_pixels);
      case ReadOutcome::kNoMemory:
        return make_status(StatusCode::kOutOfMemory, "{}: no memory for a picture of {}x{}", name,
                           image.width, image.height);
      case ReadOutcome::kFailed:
        break;
    }
    return make_status(StatusCode::kMalformed, "{}: is not a sound PNG file: {}", name,
                       messenger.message);
  });
}

}  // namespace ultraflash
