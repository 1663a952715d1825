// Any bytes as a video in memory: the reader must end with frames or a sentence, within its limits.
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

#include "media/video_reader.h"

namespace ultraflash {
volatile uint32_t fuzz_checksum = 0;  // keeps the compiler from leaving out the reading of pixels
}  // namespace ultraflash

namespace {

using ultraflash::ReaderLimits;
using ultraflash::Result;
using ultraflash::VideoFrame;
using ultraflash::VideoReader;

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ReaderLimits limits;
  limits.max_side = 1024;
  limits.max_pixels = 1 << 18;
  limits.max_frames = 48;
  limits.timeout_ms = 5000;
  Result<VideoReader> reader = VideoReader::open_memory({data, size}, "fuzz", limits);
  if (!reader.ok()) {
    require(!reader.status().message().empty());
    return 0;
  }
  const ultraflash::VideoFormat& format = reader->info().format;
  require(format.width >= 1 && format.width <= 1024 && format.height >= 1 &&
          format.height <= 1024 && format.fps_num >= 0 && format.fps_den >= 1);
  int64_t frames = 0;
  uint32_t sum = 0;
  while (true) {
    const Result<std::optional<VideoFrame>> frame = reader->next();
    if (!frame.ok()) {
      require(!frame.status().message().empty());
      require(reader->next().status().message() == frame.status().message());
      break;
    }
    if (!frame->has_value()) break;
    const ultraflash::RgbFrame& rgb = (*frame)->rgb;
    require((*frame)->index == frames++);
    require(rgb.width == format.width && rgb.height == format.height);
    for (int64_t y = 0; y < rgb.height; ++y) {  // every pixel must be there to read
      for (int64_t i = 0; i < 3 * rgb.width; ++i) sum += rgb.row(y)[i];
    }
  }
  require(frames <= limits.max_frames);
  ultraflash::fuzz_checksum = sum;
  return 0;
}
