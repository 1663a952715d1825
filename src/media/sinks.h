// The sinks behind open_sink(). Each gets options and a format that open_sink() has checked.
// Internal to the media layer.
#pragma once

#include <memory>
#include <string>

#include "core/output_file.h"
#include "media/frame_sink.h"

namespace ultraflash {

/// Of the files that videos go to: what is left of one that failed can be played. Frames come in
/// writes large enough.
inline constexpr OutputFileOptions kVideoFile{
    .abandoned = OutputFileOptions::Abandoned::kKeep, .allow_streams = true, .buffer_bytes = 0};

Result<std::unique_ptr<FrameSink>> open_mp4_sink(const SinkOptions& options,
                                                 const VideoFormat& format);
Result<std::unique_ptr<FrameSink>> open_y4m_sink(const SinkOptions& options,
                                                 const VideoFormat& format);
Result<std::unique_ptr<FrameSink>> open_raw_sink(const SinkOptions& options,
                                                 const VideoFormat& format);
Result<std::unique_ptr<FrameSink>> open_png_sink(const SinkOptions& options,
                                                 const VideoFormat& format);

/// What all sinks do alike: check every frame, count, and stay failed after a failure.
class CheckedSink : public FrameSink {
 public:
  Status write(const RgbFrame& frame) final;
  Status finish() final;

 protected:
  /// `name` begins messages: the path, or "standard output".
  CheckedSink(std::string name, const VideoFormat& format);

  virtual Status write_frame(const RgbFrame& frame) = 0;
  virtual Status finish_frames() = 0;

  /// Frames that write_frame() has accepted.
  [[nodiscard]] int64_t frames() const { return frames_; }
  [[nodiscard]] const VideoFormat& format() const { return format_; }
  [[nodiscard]] const std::string& sink_name() const { return name_; }

 private:
  Status write_checked(const RgbFrame& frame);
  Status finish_checked();

  std::string name_;
  VideoFormat format_;
  int64_t frames_ = 0;
  bool finished_ = false;
  Status failure_;
};

}  // namespace ultraflash
