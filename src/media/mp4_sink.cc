extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
}

#include <new>
#include <utility>

#include "core/check.h"
#include "media/av_common.h"
#include "media/mp4_mux.h"
#include "media/sinks.h"
#include "media/video_encoder.h"

namespace ultraflash {
namespace {

class Mp4Sink final : public CheckedSink {
 public:
  Mp4Sink(VideoEncoder encoder, OutputFile file, Mp4Track track)
      : CheckedSink(file.name(), track.format),
        encoder_(std::move(encoder)),
        stream_(std::move(file)),
        track_(std::move(track)),
        packet_(av_packet_alloc()) {
    if (!packet_) throw std::bad_alloc();
  }

  Status begin() {
    Result<av::OutputPtr> muxer =
        open_mp4_muxer(stream_, track_, *encoder_.parameters(), Mp4Kind::kFragmented);
    if (!muxer.ok()) {
      stream_.file().remove_part();
      return muxer.status();
    }
    muxer_ = *std::move(muxer);
    return {};
  }

  [[nodiscard]] SinkStats stats() const override {
    return {frames(), stream_.file().bytes_written()};
  }
  [[nodiscard]] std::string name() const override {
    return fmt::format("mp4 ({})", encoder_.name());
  }

 private:
  Status write_frame(const RgbFrame& frame) override {
    UF_TRY(encoder_.send(frame, frames()));
    return write_packets();
  }

  Status finish_frames() override {
    if (frames() == 0) {
      muxer_.reset();
      stream_.file().remove_part();
      return make_status(StatusCode::kInvalidArgument,
                         "{}: no frame came, and a video needs at least one", sink_name());
    }
    UF_TRY(encoder_.send_end());
    UF_TRY(write_packets());
    const int code = av_write_trailer(muxer_.get());
    stream_.flush();
    if (code < 0 || !stream_.error().ok()) return keep_whole_fragments(code);
    muxer_.reset();
    const std::string& part = stream_.file().part_path();
    const Status remuxed = remux_mp4(part, sink_name(), track_, frames());
    if (!remuxed.ok()) {
      return make_status(remuxed.code(), "{}; all {} frames are in {}, which plays as it is",
                         remuxed.message(), frames(), part);
    }
    stream_.file().remove_part();
    return {};
  }

  Status write_packets() {
    while (true) {
      UF_ASSIGN(const bool received, encoder_.receive(packet_.get()));
      if (!received) return {};
      const int code = write_mp4_packet(muxer_.get(), format(), packet_.get());
      // The muxer writes a fragment in one go, so that the file ends with a whole one whenever the
      // position has moved.
      if (code >= 0 && stream_.position() != whole_bytes_) stream_.flush();
      if (code < 0 || !stream_.error().ok()) return keep_whole_fragments(code);
      whole_bytes_ = stream_.position();
    }
  }

  // After a failed write: what is left of a fragment goes, so that the part file plays.
  Status keep_whole_fragments(int code) {
    const Status failure = stream_.status_of(code, "cannot be written");
    const std::string& part = stream_.file().part_path();
    if (whole_bytes_ == 0 || !stream_.file().truncate(whole_bytes_).ok()) return failure;
    return make_status(failure.code(),
                       "{}; what came before is in {} ({} bytes), which plays as it is",
                       failure.message(), part, whole_bytes_);
  }

  VideoEncoder encoder_;
  av::WriteStream stream_;
  Mp4Track track_;
  av::PacketPtr packet_;
  av::OutputPtr muxer_;  // writes to stream_
  int64_t whole_bytes_ = 0;
};

}  // namespace

Result<std::unique_ptr<FrameSink>> open_mp4_sink(const SinkOptions& options,
                                                 const VideoFormat& format) {
  const std::string& path = options.path;
  if (is_standard_output(path)) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: MP4 needs a file that can be positioned; use y4m or raw on standard "
                       "output",
                       path);
  }
  if (format.width % 2 != 0 || format.height % 2 != 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: the frames are {}x{}, but 4:2:0 video needs even sides; use {}x{}, or "
                       "write y4m or pictures",
                       path, format.width, format.height, format.width & ~int64_t{1},
                       format.height & ~int64_t{1});
  }
  UF_ASSIGN(VideoEncoder encoder, VideoEncoder::open(options, format));
  UF_ASSIGN(OutputFile file, OutputFile::create(path, kVideoFile));
  if (!file.has_part()) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: is a pipe or a device; MP4 needs a file that can be positioned", path);
  }
  auto sink = std::make_unique<Mp4Sink>(std::move(encoder), std::move(file),
                                        Mp4Track{format, options.metadata});
  UF_TRY(sink->begin());
  return std::unique_ptr<FrameSink>(std::move(sink));
}

}  // namespace ultraflash
