// Any bytes as a y4m file. Besides not crashing: what a header says survives writing and parsing
// it again, and the frames that are read are those that the bytes hold.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "media/colour.h"
#include "media/video_reader.h"
#include "media/y4m.h"

namespace ultraflash {
volatile uint32_t fuzz_checksum = 0;  // keeps the compiler from leaving out the reading of pixels
}  // namespace ultraflash

namespace {

using ultraflash::ChromaLayout;
using ultraflash::ChromaSiting;
using ultraflash::ColourMatrix;
using ultraflash::ColourRange;

void require(bool condition) {
  if (!condition) std::abort();
}

void check_header(std::string_view line) {
  const auto header = ultraflash::parse_y4m_header(line, "fuzz");
  if (!header.ok()) {
    require(!header.status().message().empty());
    return;
  }
  require(header->format.width >= 1 && header->format.height >= 1 && header->format.fps_den >= 1);
  const auto& yuv = header->yuv;
  const bool ours = yuv.matrix == ColourMatrix::kBt709 && yuv.range == ColourRange::kLimited &&
                    (yuv.layout == ChromaLayout::k444 ||
                     (yuv.layout == ChromaLayout::k420 && yuv.siting == ChromaSiting::kLeft));
  if (!ours) return;
  std::string written = ultraflash::y4m_header(*header);
  require(!written.empty() && written.back() == '\n');
  written.pop_back();
  const auto again = ultraflash::parse_y4m_header(written, "fuzz");
  if (header->format.fps_num == 0) return;  // files that we write always have a rate
  require(again.ok());
  require(again->format.width == header->format.width &&
          again->format.height == header->format.height &&
          again->format.fps_num == header->format.fps_num &&
          again->format.fps_den == header->format.fps_den &&
          again->yuv.layout == header->yuv.layout && again->yuv.siting == header->yuv.siting &&
          again->yuv.matrix == header->yuv.matrix && again->yuv.range == header->yuv.range);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check_header(text.substr(0, text.find('\n')));

  // The reader only comes to this parser with the right beginning: spare the fuzzer the search.
  std::string file = "YUV4MPEG2";
  file += text.starts_with(file) ? text.substr(file.size()) : text;
  ultraflash::ReaderLimits limits;
  limits.max_side = 4096;
  limits.max_pixels = 1 << 18;
  limits.max_frames = 64;
  auto reader = ultraflash::VideoReader::open_memory(
      {reinterpret_cast<const uint8_t*>(file.data()), file.size()}, "fuzz", limits);
  if (!reader.ok()) return 0;
  const ultraflash::VideoFormat format = reader->info().format;
  int64_t frames = 0;
  uint32_t sum = 0;
  while (true) {
    const auto frame = reader->next();
    if (!frame.ok() || !frame->has_value()) break;
    const ultraflash::RgbFrame& rgb = (*frame)->rgb;
    require((*frame)->index == frames++);
    require(rgb.width == format.width && rgb.height == format.height);
    for (int64_t y = 0; y < rgb.height; ++y) {
      for (int64_t i = 0; i < 3 * rgb.width; ++i) sum += rgb.row(y)[i];
    }
  }
  // Every frame takes at least a luma plane and the six bytes of its line.
  require(frames <= limits.max_frames);
  require(frames * (format.width * format.height + 6) <= static_cast<int64_t>(file.size()));
  ultraflash::fuzz_checksum = sum;
  return 0;
}
