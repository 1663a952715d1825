// The kinds of sources behind VideoReader. Internal to the media layer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/input_file.h"
#include "media/video_reader.h"

namespace ultraflash {

class FrameSource {
 public:
  virtual ~FrameSource() = default;
  [[nodiscard]] virtual const VideoInfo& info() const = 0;
  /// The next frame but for its index, which VideoReader counts; nothing at the end.
  virtual Result<std::optional<VideoFrame>> next() = 0;
};

/// `file` begins with "YUV4MPEG2".
Result<std::unique_ptr<FrameSource>> open_y4m_source(InputFile file, const ReaderLimits& limits);

/// A folder, or a pattern of PNG files.
Result<std::unique_ptr<FrameSource>> open_png_source(const std::string& path,
                                                     const ReaderLimits& limits);

/// Anything that libavformat reads of the short list in av_source.cc.
Result<std::unique_ptr<FrameSource>> open_av_source(InputFile file, const ReaderLimits& limits);

Result<Metadata> read_av_metadata(InputFile file);

/// kUnsupported when a frame of this size passes the limits. Sizes must be above zero.
Status check_limits(int64_t width, int64_t height, const ReaderLimits& limits,
                    const std::string& name);

}  // namespace ultraflash
