#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "media/colour.h"
#include "media/readers.h"
#include "media/y4m.h"

namespace ultraflash {
namespace {

// A line without its break; nothing at the end of the file. Looks no further ahead than it must: on
// a pipe the bytes after the line may be a minute away.
Result<std::optional<std::string>> read_line(InputFile& file, const std::string& what) {
  for (int64_t ahead = 16; ahead <= kMaxY4mLine; ahead *= 2) {
    UF_ASSIGN(const auto bytes, file.peek(ahead));
    if (bytes.empty()) return std::optional<std::string>();
    const auto end = std::find(bytes.begin(), bytes.end(), static_cast<uint8_t>('\n'));
    if (end != bytes.end()) {
      std::string line(bytes.begin(), end);
      std::vector<uint8_t> skipped(line.size() + 1);
      UF_TRY(file.read(skipped).status());
      return std::optional<std::string>(std::move(line));
    }
    if (static_cast<int64_t>(bytes.size()) < ahead) break;
  }
  return make_status(StatusCode::kMalformed,
                     "{}: {} has no end within {} bytes; the file is damaged or cut short",
                     file.name(), what, kMaxY4mLine);
}

class Y4mSource final : public FrameSource {
 public:
  Y4mSource(InputFile file, Y4mHeader header, const ReaderLimits& limits)
      : file_(std::move(file)), header_(std::move(header)) {
    info_.format = header_.format;
    info_.container = "y4m";
    info_.codec = "rawvideo";
    info_.pixels = fmt::format("yuv {}, {}, {} range", header_.colour_space,
                               header_.yuv.matrix == ColourMatrix::kBt709 ? "bt709" : "bt601",
                               header_.yuv.range == ColourRange::kLimited ? "limited" : "full");
    frame_bytes_ = y4m_frame_bytes(header_);
    if (file_.seekable()) {
      constexpr int64_t kFrameLine = 6;  // "FRAME\n"; longer lines make fewer frames
      const int64_t count = (file_.size() - file_.position()) / (frame_bytes_ + kFrameLine);
      info_.frames = std::min(count, limits.max_frames);
      if (count > limits.max_frames) info_.frames = -1;
      if (info_.format.fps_num > 0 && info_.frames >= 0) {
        info_.duration_s = static_cast<double>(info_.frames) / info_.format.fps();
      }
    }
  }

  [[nodiscard]] const VideoInfo& info() const override { return info_; }

  Result<std::optional<VideoFrame>> next() override {
    const std::string where = fmt::format("the line of frame {}", index_);
    UF_ASSIGN(const std::optional<std::string> line, read_line(file_, where));
    if (!line) return std::optional<VideoFrame>();
    constexpr std::string_view kFrame = "FRAME";
    if (!line->starts_with(kFrame) || (line->size() > kFrame.size() && (*line)[5] != ' ')) {
      return make_status(StatusCode::kMalformed,
                         "{}: frame {} does not begin with FRAME; the file is damaged",
                         file_.name(), index_);
    }
    const VideoFormat& format = info_.format;
    // A seekable file says what it holds, so that a header with a huge size costs nothing.
    if (file_.seekable() && file_.size() - file_.position() < frame_bytes_) {
      return cut_short(file_.size() - file_.position());
    }
    planes_.resize(static_cast<size_t>(frame_bytes_));
    UF_ASSIGN(const int64_t got, file_.read(planes_));
    if (got < frame_bytes_) return cut_short(got);
    rgb_.resize(static_cast<size_t>(3 * format.width * format.height));

    const int64_t uv_stride = chroma_width(header_.yuv.layout, format.width);
    const uint8_t* y = planes_.data();
    const uint8_t* u = y + format.width * format.height;
    const uint8_t* v = u + uv_stride * chroma_height(header_.yuv.layout, format.height);
    yuv_to_rgb({y, u, v, format.width, uv_stride}, header_.yuv, format.width, format.height,
               rgb_.data(), 3 * format.width);
    VideoFrame frame;
    frame.rgb = RgbFrame::contiguous(rgb_.data(), format.width, format.height);
    frame.time_s = format.fps_num > 0 ? static_cast<double>(index_ * format.fps_den) /
                                            static_cast<double>(format.fps_num)
                                      : -1.0;
    ++index_;
    return std::optional<VideoFrame>(frame);
  }

 private:
  Status cut_short(int64_t bytes) const {
    return make_status(StatusCode::kMalformed,
                       "{}: frame {} has {} of {} bytes; the file is cut short", file_.name(),
                       index_, bytes, frame_bytes_);
  }

  InputFile file_;
  Y4mHeader header_;
  VideoInfo info_;
  int64_t frame_bytes_ = 0;
  int64_t index_ = 0;
  std::vector<uint8_t> planes_;
  std::vector<uint8_t> rgb_;
};

}  // namespace

Result<std::unique_ptr<FrameSource>> open_y4m_source(InputFile file, const ReaderLimits& limits) {
  UF_ASSIGN(const std::optional<std::string> line, read_line(file, "the y4m header"));
  UF_ASSIGN(Y4mHeader header, parse_y4m_header(line.value_or(""), file.name()));
  UF_TRY(check_limits(header.format.width, header.format.height, limits, file.name()));
  return std::unique_ptr<FrameSource>(
      std::make_unique<Y4mSource>(std::move(file), std::move(header), limits));
}

}  // namespace ultraflash
