#include "media/video_reader.h"

#include <sys/stat.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "media/picture_names.h"
#include "media/readers.h"

namespace ultraflash {

struct VideoReader::Impl {
  Result<std::optional<VideoFrame>> next();

  std::unique_ptr<FrameSource> source;
  std::string name;
  ReaderLimits limits;
  int64_t index = 0;
  bool ended = false;
  Status failure;
};

namespace {

bool is_folder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

bool exists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

Status check_reader_limits(const ReaderLimits& limits) {
  constexpr int64_t kMostPixels = int64_t{1} << 26;
  if (limits.max_side < 1 || limits.max_pixels < 1 || limits.max_frames < 1 ||
      limits.timeout_ms < 1 || limits.threads < 1 || limits.threads > 64 ||
      limits.max_side > 65'536 || limits.max_pixels > kMostPixels) {
    return make_status(StatusCode::kInvalidArgument,
                       "reader limits: side {}, pixels {}, frames {}, timeout {} ms, threads {}; "
                       "all start at 1, and end at 65536, {}, any, any and 64",
                       limits.max_side, limits.max_pixels, limits.max_frames, limits.timeout_ms,
                       limits.threads, kMostPixels);
  }
  return {};
}

Result<std::unique_ptr<FrameSource>> open_source(InputFile file, const ReaderLimits& limits) {
  constexpr std::string_view kY4m = "YUV4MPEG2";
  UF_ASSIGN(const auto start, file.peek(static_cast<int64_t>(kY4m.size())));
  if (start.empty()) {
    return make_status(StatusCode::kMalformed, "{}: is empty, expected a video", file.name());
  }
  if (std::equal(start.begin(), start.end(), kY4m.begin(), kY4m.end())) {
    return open_y4m_source(std::move(file), limits);
  }
  return open_av_source(std::move(file), limits);
}

std::string no_memory(const std::string& name) {
  return fmt::format("{}: no memory to read this video", name);
}

}  // namespace

Status check_limits(int64_t width, int64_t height, const ReaderLimits& limits,
                    const std::string& name) {
  if (width > limits.max_side || height > limits.max_side || width > limits.max_pixels / height) {
    return make_status(StatusCode::kUnsupported,
                       "{}: frames of {}x{} pass the limits of {} pixels a side and {} in all",
                       name, width, height, limits.max_side, limits.max_pixels);
  }
  return {};
}

VideoReader::VideoReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
VideoReader::VideoReader(VideoReader&&) noexcept = default;
VideoReader& VideoReader::operator=(VideoReader&&) noexcept = default;
VideoReader::~VideoReader() = default;

Result<VideoReader> VideoReader::open(const std::string& path, const ReaderLimits& limits) {
  const auto open_path = [&]() -> Result<VideoReader> {
    UF_TRY(check_reader_limits(limits));
    if (path.empty()) {
      return Status(StatusCode::kInvalidArgument, "the input path is empty; name a video");
    }
    auto impl = std::make_unique<Impl>();
    impl->name = path;
    impl->limits = limits;
    // A file may have a percent sign in its name.
    if (is_folder(path) || (is_picture_pattern(path) && !exists(path))) {
      UF_ASSIGN(impl->source, open_png_source(path, limits));
    } else {
      UF_ASSIGN(InputFile file, InputFile::open(path));
      UF_ASSIGN(impl->source, open_source(std::move(file), limits));
    }
    return VideoReader(std::move(impl));
  };
  return without_exceptions(open_path, [&] { return no_memory(path); });
}

Result<VideoReader> VideoReader::open_memory(std::span<const uint8_t> bytes,
                                             const std::string& name, const ReaderLimits& limits) {
  const auto open_bytes = [&]() -> Result<VideoReader> {
    UF_TRY(check_reader_limits(limits));
    auto impl = std::make_unique<Impl>();
    impl->name = name;
    impl->limits = limits;
    UF_ASSIGN(impl->source, open_source(InputFile::over(bytes, name), limits));
    return VideoReader(std::move(impl));
  };
  return without_exceptions(open_bytes, [&] { return no_memory(name); });
}

const VideoInfo& VideoReader::info() const { return impl_->source->info(); }

Result<std::optional<VideoFrame>> VideoReader::next() {
  return without_exceptions([&] { return impl_->next(); });
}

Result<std::optional<VideoFrame>> VideoReader::Impl::next() {
  if (!failure.ok()) return failure;
  if (ended) return std::optional<VideoFrame>();
  const auto read_next = [&]() -> Result<std::optional<VideoFrame>> {
    UF_ASSIGN(std::optional<VideoFrame> frame, source->next());
    if (!frame) {
      ended = true;
      return frame;
    }
    if (index == limits.max_frames) {
      return make_status(StatusCode::kUnsupported, "{}: has more frames than the limit of {}", name,
                         limits.max_frames);
    }
    frame->index = index++;
    return frame;
  };
  Result<std::optional<VideoFrame>> frame = without_exceptions(
      read_next, [&] { return fmt::format("{}: no memory for frame {}", name, index); });
  if (!frame.ok()) {
    failure = Status(frame.status().code(), {});  // stays when there is no memory for the sentence
    failure = frame.status();
  }
  return frame;
}

Result<Metadata> read_metadata(const std::string& path) {
  return without_exceptions(
      [&]() -> Result<Metadata> {
        UF_ASSIGN(InputFile file, InputFile::open(path));
        return read_av_metadata(std::move(file));
      },
      [&] { return fmt::format("{}: no memory to read the metadata", path); });
}

}  // namespace ultraflash
