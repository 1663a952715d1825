#include <sys/stat.h>

#include <utility>
#include <vector>

#include "core/check.h"
#include "media/image.h"
#include "media/picture_names.h"
#include "media/readers.h"

namespace ultraflash {
namespace {

class PngSource final : public FrameSource {
 public:
  PngSource(std::vector<std::string> paths, const ReaderLimits& limits)
      : paths_(std::move(paths)), limits_{limits.max_side, limits.max_pixels} {}

  Status start() {
    UF_ASSIGN(image_, read_png(paths_[0], limits_));
    info_.format = {image_.width, image_.height, 0, 1};
    info_.frames = static_cast<int64_t>(paths_.size());
    info_.container = "png sequence";
    info_.codec = "png";
    info_.pixels = "rgb";
    return {};
  }

  [[nodiscard]] const VideoInfo& info() const override { return info_; }

  Result<std::optional<VideoFrame>> next() override {
    if (index_ == paths_.size()) return std::optional<VideoFrame>();
    if (index_ > 0) {
      UF_ASSIGN(image_, read_png(paths_[index_], limits_));
      if (image_.width != info_.format.width || image_.height != info_.format.height) {
        return make_status(
            StatusCode::kUnsupported, "{}: the picture is {}x{}, but the sequence began as {}x{}",
            paths_[index_], image_.width, image_.height, info_.format.width, info_.format.height);
      }
    }
    ++index_;
    VideoFrame frame;
    frame.rgb = image_.view();
    frame.time_s = -1.0;
    return std::optional<VideoFrame>(frame);
  }

 private:
  std::vector<std::string> paths_;
  ImageLimits limits_;
  VideoInfo info_;
  RgbImage image_;
  size_t index_ = 0;
};

// The files of a pattern, which may begin at any number from 0 to 4, as ffmpeg has it.
Result<std::vector<std::string>> expand_pattern(const std::string& path, int64_t max_files) {
  UF_ASSIGN(const PicturePattern pattern, PicturePattern::parse(path));
  const auto exists = [&](int64_t index) {
    struct stat info {};
    return ::stat(pattern.path(index).c_str(), &info) == 0;
  };
  std::vector<std::string> paths;
  int64_t index = 0;
  while (index < 5 && !exists(index)) ++index;
  for (; exists(index); ++index) {
    if (static_cast<int64_t>(paths.size()) >= max_files) {
      return make_status(StatusCode::kUnsupported,
                         "{}: there are more pictures than the limit of {} frames", path,
                         max_files);
    }
    paths.push_back(pattern.path(index));
  }
  if (paths.empty()) {
    return make_status(StatusCode::kNotFound, "{}: there is no {} and no later number up to 4",
                       path, pattern.path(0));
  }
  return paths;
}

}  // namespace

Result<std::unique_ptr<FrameSource>> open_png_source(const std::string& path,
                                                     const ReaderLimits& limits) {
  std::vector<std::string> paths;
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    UF_ASSIGN(paths, list_pictures(path, limits.max_frames));
    if (paths.empty()) {
      return make_status(StatusCode::kNotFound,
                         "{}: the folder holds no .png file; name a video or a folder of pictures",
                         path);
    }
  } else {
    UF_ASSIGN(paths, expand_pattern(path, limits.max_frames));
  }
  auto source = std::make_unique<PngSource>(std::move(paths), limits);
  UF_TRY(source->start());
  return std::unique_ptr<FrameSource>(std::move(source));
}

}  // namespace ultraflash
