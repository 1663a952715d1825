// Sinks for y4m and raw RGB: frames one after the other, to a file, a pipe or a device.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/output_file.h"
#include "media/colour.h"
#include "media/sinks.h"
#include "media/y4m.h"

namespace ultraflash {
namespace {

/// Leaves whole frames in a part file: what a failed write left of a frame is cut off.
Status write_whole(OutputFile& file, std::span<const uint8_t> bytes) {
  const int64_t before = file.bytes_written();
  const Status written = file.write(bytes);
  if (written.ok() || !file.has_part()) return written;
  if (!file.truncate(before).ok()) return written;
  return make_status(written.code(), "{}; the frames before are in {}", written.message(),
                     file.part_path());
}

class Y4mSink final : public CheckedSink {
 public:
  Y4mSink(OutputFile file, const VideoFormat& format, ChromaLayout layout)
      : CheckedSink(file.name(), format), file_(std::move(file)) {
    header_.format = format;
    header_.yuv.layout = layout;
    buffer_.resize(kFrameLine.size() + static_cast<size_t>(y4m_frame_bytes(header_)));
    std::memcpy(buffer_.data(), kFrameLine.data(), kFrameLine.size());
  }

  Status write_header() {
    const std::string line = y4m_header(header_);
    return file_.write(line);
  }
  [[nodiscard]] SinkStats stats() const override { return {frames(), file_.bytes_written()}; }
  [[nodiscard]] std::string name() const override {
    return header_.yuv.layout == ChromaLayout::k420 ? "y4m (4:2:0)" : "y4m (4:4:4)";
  }

 private:
  static constexpr std::string_view kFrameLine = "FRAME\n";

  Status write_frame(const RgbFrame& frame) override {
    const ChromaLayout layout = header_.yuv.layout;
    const int64_t uv_stride = chroma_width(layout, frame.width);
    uint8_t* y = buffer_.data() + kFrameLine.size();
    uint8_t* u = y + frame.width * frame.height;
    uint8_t* v = u + uv_stride * chroma_height(layout, frame.height);
    rgb_to_yuv(frame, layout, {y, u, v, frame.width, uv_stride});
    return write_whole(file_, buffer_);
  }
  Status finish_frames() override { return file_.commit(); }

  OutputFile file_;
  Y4mHeader header_;
  std::vector<uint8_t> buffer_;  // one frame with its line
};

class RawSink final : public CheckedSink {
 public:
  RawSink(OutputFile file, const VideoFormat& format)
      : CheckedSink(file.name(), format), file_(std::move(file)) {}

  [[nodiscard]] SinkStats stats() const override { return {frames(), file_.bytes_written()}; }
  [[nodiscard]] std::string name() const override { return "rgb24"; }

 private:
  Status write_frame(const RgbFrame& frame) override {
    const auto row_bytes = static_cast<size_t>(3 * frame.width);
    const size_t frame_bytes = row_bytes * static_cast<size_t>(frame.height);
    if (frame.row_stride == 3 * frame.width) {
      return write_whole(file_, {frame.pixels, frame_bytes});
    }
    packed_.resize(frame_bytes);
    for (int64_t y = 0; y < frame.height; ++y) {
      std::memcpy(packed_.data() + static_cast<size_t>(y) * row_bytes, frame.row(y), row_bytes);
    }
    return write_whole(file_, packed_);
  }
  Status finish_frames() override { return file_.commit(); }

  OutputFile file_;
  std::vector<uint8_t> packed_;  // used when rows have gaps
};

}  // namespace

Result<std::unique_ptr<FrameSink>> open_y4m_sink(const SinkOptions& options,
                                                 const VideoFormat& format) {
  UF_ASSIGN(OutputFile file, OutputFile::create(options.path, kVideoFile));
  const ChromaLayout layout = options.chroma == "420" ? ChromaLayout::k420 : ChromaLayout::k444;
  auto sink = std::make_unique<Y4mSink>(std::move(file), format, layout);
  UF_TRY(sink->write_header());
  return std::unique_ptr<FrameSink>(std::move(sink));
}

Result<std::unique_ptr<FrameSink>> open_raw_sink(const SinkOptions& options,
                                                 const VideoFormat& format) {
  UF_ASSIGN(OutputFile file, OutputFile::create(options.path, kVideoFile));
  return std::unique_ptr<FrameSink>(std::make_unique<RawSink>(std::move(file), format));
}

}  // namespace ultraflash
