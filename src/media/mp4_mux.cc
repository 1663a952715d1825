#include "media/mp4_mux.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/mathematics.h>
#include <libavutil/mem.h>
}

#include <new>
#include <utility>

#include "core/check.h"

namespace ultraflash {
namespace {

AVRational frame_time(const VideoFormat& format) {
  return {static_cast<int>(format.fps_den), static_cast<int>(format.fps_num)};
}

// The ticks per second that movenc gives a track: the rate, doubled until it is fine enough.
int64_t track_timescale(const VideoFormat& format) {
  int64_t scale = format.fps_num;
  while (scale < 10'000) scale *= 2;
  return scale;
}

Status copy_packets(AVFormatContext* demuxer, av::ReadStream& source, AVFormatContext* muxer,
                    av::WriteStream& target, const VideoFormat& format, int64_t frames) {
  const av::PacketPtr packet(av_packet_alloc());
  if (!packet) throw std::bad_alloc();
  int64_t copied = 0;
  int64_t first_pts = 0;
  while (true) {
    int code = av_read_frame(demuxer, packet.get());
    if (code == AVERROR_EOF) break;
    if (code < 0) return source.status_of(code, "cannot be read back");
    if (packet->stream_index != 0) {
      av_packet_unref(packet.get());
      continue;
    }
    // The first packet of the stream is the first frame; counting from it in whole frames undoes
    // what the fragmented file did to timestamps.
    if (copied == 0) first_pts = packet->pts;
    packet->pts -= first_pts;
    packet->dts -= first_pts;
    av_packet_rescale_ts(packet.get(), demuxer->streams[0]->time_base, frame_time(format));
    code = write_mp4_packet(muxer, format, packet.get());
    if (code < 0 || !target.error().ok()) return target.status_of(code, "cannot be finished");
    ++copied;
  }
  if (copied != frames) {
    return make_status(StatusCode::kIo, "{}: holds {} of {} frames when read back",
                       source.file().name(), copied, frames);
  }
  return {};
}

}  // namespace

Result<av::OutputPtr> open_mp4_muxer(av::WriteStream& stream, const Mp4Track& track,
                                     const AVCodecParameters& codec, Mp4Kind kind) {
  AVFormatContext* context = nullptr;
  int code = avformat_alloc_output_context2(&context, nullptr, "mp4", nullptr);
  av::OutputPtr muxer(context);
  if (!muxer) return stream.status_of(code, "libavformat cannot write MP4");
  // The second pass of faststart reads the file back by this name; the prefix keeps a colon in the
  // path from being taken for a protocol.
  muxer->url = av_strdup(("file:" + stream.file().part_path()).c_str());
  AVStream* video = avformat_new_stream(muxer.get(), nullptr);
  if (muxer->url == nullptr || video == nullptr) throw std::bad_alloc();
  code = avcodec_parameters_copy(video->codecpar, &codec);
  if (code < 0) return stream.status_of(code, "cannot describe the stream");
  video->codecpar->codec_tag = 0;
  // The demuxer leaves the size of MPEG-4 Part 2 to the decoder.
  video->codecpar->width = static_cast<int>(track.format.width);
  video->codecpar->height = static_cast<int>(track.format.height);
  video->time_base = frame_time(track.format);
  video->avg_frame_rate = av_inv_q(video->time_base);
  muxer->pb = stream.context();
  // Bit-exact leaves out the time of writing: the same frames give the same file.
  muxer->flags |= AVFMT_FLAG_CUSTOM_IO | AVFMT_FLAG_BITEXACT;
  for (const auto& [key, value] : track.metadata) {
    if (av_dict_set(&muxer->metadata, key.c_str(), value.c_str(), 0) < 0) throw std::bad_alloc();
  }
  av::Dictionary options;
  if (kind == Mp4Kind::kFragmented) {
    // The header waits for the first fragment, and then knows where the first frame begins.
    options.set("movflags", "delay_moov+default_base_moof+skip_trailer+use_metadata_tags");
    options.set("frag_duration", "1000000");  // microseconds
  } else {
    options.set("movflags", "faststart+use_metadata_tags");
  }
  // The duration in the header is in these units; older libavformat always takes milliseconds.
  options.set("movie_timescale", fmt::format("{}", track_timescale(track.format)));
  code = avformat_write_header(muxer.get(), options.get());
  if (code < 0 || !stream.error().ok()) return stream.status_of(code, "the header");
  return muxer;
}

int write_mp4_packet(AVFormatContext* muxer, const VideoFormat& format, AVPacket* packet) {
  packet->stream_index = 0;
  packet->duration = 1;
  packet->pos = -1;
  av_packet_rescale_ts(packet, frame_time(format), muxer->streams[0]->time_base);
  const int code = av_write_frame(muxer, packet);
  av_packet_unref(packet);
  return code;
}

Status remux_mp4(const std::string& source_path, const std::string& path, const Mp4Track& track,
                 int64_t frames) {
  UF_ASSIGN(InputFile input, InputFile::open(source_path));
  av::ReadStream source(std::move(input));
  UF_ASSIGN(const av::InputPtr demuxer, source.open_container());
  if (demuxer->nb_streams < 1 || demuxer->streams[0]->codecpar->codec_type != AVMEDIA_TYPE_VIDEO) {
    return make_status(StatusCode::kInternal, "{}: has no video stream when read back",
                       source_path);
  }
  UF_ASSIGN(OutputFile output, OutputFile::create(path, {.buffer_bytes = 0, .suffix = ".tmp"}));
  av::WriteStream target(std::move(output));
  Status status;
  {
    Result<av::OutputPtr> muxer =
        open_mp4_muxer(target, track, *demuxer->streams[0]->codecpar, Mp4Kind::kFastStart);
    status = muxer.status();
    if (status.ok()) {
      status = copy_packets(demuxer.get(), source, muxer->get(), target, track.format, frames);
    }
    if (status.ok()) {
      const int code = av_write_trailer(muxer->get());
      target.flush();
      if (code < 0 || !target.error().ok()) status = target.status_of(code, "cannot be finished");
    }
  }
  if (status.ok()) status = target.file().commit();
  if (!status.ok()) target.file().remove_part();
  return status;
}

}  // namespace ultraflash
