// Stands in for the av_*.cc and mp4_*.cc files in a build without FFmpeg.
#include "core/check.h"
#include "media/frame_sink.h"
#include "media/readers.h"
#include "media/recode.h"
#include "media/sinks.h"

namespace ultraflash {
namespace {

Status missing(const std::string& name, const char* instead) {
  return make_status(StatusCode::kUnsupported,
                     "{}: this build has no FFmpeg; install libavformat-dev, libavcodec-dev and "
                     "libswscale-dev and build again, or {}",
                     name, instead);
}

}  // namespace

Result<std::unique_ptr<FrameSink>> open_mp4_sink(const SinkOptions& options, const VideoFormat&) {
  return missing(options.path, "write y4m (a path that ends in .y4m)");
}

Result<std::unique_ptr<FrameSource>> open_av_source(InputFile file, const ReaderLimits&) {
  return missing(file.name(), "give a y4m file or a folder of PNG files");
}

Result<Metadata> read_av_metadata(InputFile file) {
  return missing(file.name(), "read the file with another program");
}

std::vector<std::string> available_video_encoders() { return {}; }

bool can_recode() { return false; }

Status recode_h264(std::span<uint8_t>, const VideoFormat&, const RecodeOptions&) {
  return missing("H.264 in memory", "do without it");
}

}  // namespace ultraflash
