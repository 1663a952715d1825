// The two MP4 files of the MP4 sink: the fragmented one that grows, and the ordinary one that it
// becomes. Internal to the media layer; exists only in builds with FFmpeg.
#pragma once

#include <cstdint>
#include <string>

#include "media/av_common.h"
#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// What both files have in common.
struct Mp4Track {
  VideoFormat format;
  Metadata metadata;
};

enum class Mp4Kind : uint8_t {
  kFragmented,  // a fragment a second, each complete in itself
  kFastStart,   // one index, in front
};

/// A muxer with one video stream that writes to `stream`, header done. `stream` outlives it.
/// `codec` tells how packets are written: an encoder's and those of an MP4 file differ for H.264.
Result<av::OutputPtr> open_mp4_muxer(av::WriteStream& stream, const Mp4Track& track,
                                     const AVCodecParameters& codec, Mp4Kind kind);

/// Writes `packet`, whose timestamps count frames, as one frame long. Takes its contents.
/// Returns libav's code.
int write_mp4_packet(AVFormatContext* muxer, const VideoFormat& format, AVPacket* packet);

/// Copies the video of the fragmented file `source`, which must hold `frames` frames, into an
/// ordinary file at `path`, without decoding. It grows as "<path>.tmp"; on failure that is gone and
/// `path` is as it was.
Status remux_mp4(const std::string& source, const std::string& path, const Mp4Track& track,
                 int64_t frames);

}  // namespace ultraflash
