// VideoEncoder: RGB frames in, packets of H.264 or MPEG-4 Part 2 out, through libavcodec. Internal
// to the media layer; exists only in builds with FFmpeg.
#pragma once

#include <cstdint>
#include <string>

#include "media/av_common.h"
#include "media/frame.h"
#include "media/frame_sink.h"
#include "ultraflash/status.h"

namespace ultraflash {

class VideoEncoder {
 public:
  /// kUnsupported when the wanted encoder is missing, kInvalidArgument when it refuses the
  /// settings.
  static Result<VideoEncoder> open(const SinkOptions& options, const VideoFormat& format);

  /// libavcodec's name of the encoder: "libx264".
  [[nodiscard]] std::string name() const;
  [[nodiscard]] av::ParametersPtr parameters() const;

  /// Takes one frame, to be shown at `index` frame durations.
  Status send(const RgbFrame& frame, int64_t index);
  /// Says that no frame follows.
  Status send_end();
  /// The next packet into `packet`, timestamps in frames; false when there is none yet, or no more.
  Result<bool> receive(AVPacket* packet);

 private:
  VideoEncoder(std::string path, av::CodecPtr codec, av::FramePtr frame);

  std::string path_;
  av::CodecPtr codec_;
  av::FramePtr frame_;
};

}  // namespace ultraflash
