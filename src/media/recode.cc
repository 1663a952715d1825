#include "media/recode.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavutil/frame.h>
}

#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/exceptions.h"
#include "media/av_common.h"
#include "media/colour.h"
#include "media/video_encoder.h"

namespace ultraflash {
namespace {

constexpr const char* kName = "H.264 in memory";

Status failed(const char* what, int code) {
  return make_status(StatusCode::kInternal, "{}: {}: {}", kName, what, av::error_text(code));
}

// The picture with its last row or column repeated, so that both sides are even.
void copy_even(const RgbFrame& from, RgbImage& to) {
  for (int64_t y = 0; y < to.height; ++y) {
    const uint8_t* row = from.row(std::min(y, from.height - 1));
    std::memcpy(to.row(y), row, static_cast<size_t>(3 * from.width));
    if (to.width > from.width) {
      std::memcpy(to.row(y) + 3 * from.width, row + 3 * (from.width - 1), 3);
    }
  }
}

// Decodes packets into frames one after the other.
class Decoder {
 public:
  Decoder(std::span<uint8_t> pixels, const VideoFormat& format)
      : pixels_(pixels), format_(format), frame_(av_frame_alloc()) {
    if (!frame_) throw std::bad_alloc();
  }

  Status open(const AVCodecParameters& parameters) {
    const AVCodec* decoder = avcodec_find_decoder(parameters.codec_id);
    if (decoder == nullptr) {
      return make_status(StatusCode::kUnsupported,
                         "{}: the installed libavcodec does not decode it", kName);
    }
    codec_.reset(avcodec_alloc_context3(decoder));
    if (!codec_ || avcodec_parameters_to_context(codec_.get(), &parameters) < 0) {
      throw std::bad_alloc();
    }
    codec_->thread_count = 1;
    const int code = avcodec_open2(codec_.get(), decoder, nullptr);
    return code < 0 ? failed("the decoder cannot be started", code) : Status();
  }

  /// Null: no packet follows.
  Status send(const AVPacket* packet) {
    av::enter();
    const int code = avcodec_send_packet(codec_.get(), packet);
    if (code < 0) return failed("the decoder refuses a packet", code);
    while (true) {
      const int received = avcodec_receive_frame(codec_.get(), frame_.get());
      if (received == AVERROR(EAGAIN) || received == AVERROR_EOF) return {};
      if (received < 0) return failed("decoding", received);
      UF_TRY(keep());
    }
  }
  [[nodiscard]] int64_t frames() const { return frames_; }

 private:
  Status keep() {
    const AVFrame& frame = *frame_;
    const auto bytes = static_cast<size_t>(3 * format_.width * format_.height);
    if (frame.format != AV_PIX_FMT_YUV420P || frame.width < format_.width ||
        frame.height < format_.height ||
        (static_cast<size_t>(frames_) + 1) * bytes > pixels_.size()) {
      return make_status(StatusCode::kInternal, "{}: frame {} came back as {}x{} of kind {}", kName,
                         frames_, frame.width, frame.height, frame.format);
    }
    yuv_to_rgb({frame.data[0], frame.data[1], frame.data[2], frame.linesize[0], frame.linesize[1]},
               YuvFormat{}, format_.width, format_.height,
               pixels_.data() + static_cast<size_t>(frames_) * bytes, 3 * format_.width);
    ++frames_;
    av_frame_unref(frame_.get());
    return {};
  }

  std::span<uint8_t> pixels_;
  VideoFormat format_;
  av::CodecPtr codec_;
  av::FramePtr frame_;
  int64_t frames_ = 0;
};

Status recode(std::span<uint8_t> pixels, const VideoFormat& format, const RecodeOptions& options) {
  UF_TRY(check_video_format(format, kName));
  const int64_t bytes = 3 * format.width * format.height;
  const int64_t frames = std::ssize(pixels) / bytes;
  if (frames < 1 || std::ssize(pixels) % bytes != 0) {
    return make_status(StatusCode::kInvalidArgument, "{}: {} bytes are no frames of {}x{}", kName,
                       pixels.size(), format.width, format.height);
  }
  VideoFormat even = format;
  even.width += even.width % 2;
  even.height += even.height % 2;
  SinkOptions sink;
  sink.path = kName;
  sink.codec = "x264";
  sink.crf = options.crf;
  sink.gop = options.gop;
  sink.preset = options.preset;
  UF_ASSIGN(VideoEncoder encoder, VideoEncoder::open(sink, even));
  Decoder decoder(pixels, format);
  UF_TRY(decoder.open(*encoder.parameters()));
  const av::PacketPtr packet(av_packet_alloc());
  if (!packet) throw std::bad_alloc();
  const auto pass_packets = [&]() -> Status {
    while (true) {
      UF_ASSIGN(const bool received, encoder.receive(packet.get()));
      if (!received) return {};
      const Status status = decoder.send(packet.get());
      av_packet_unref(packet.get());
      UF_TRY(status);
    }
  };
  RgbImage image = RgbImage::black(even.width, even.height);
  for (int64_t i = 0; i < frames; ++i) {
    // A frame comes back after it went in, so its place is free by then.
    copy_even(RgbFrame::contiguous(pixels.data() + i * bytes, format.width, format.height), image);
    UF_TRY(encoder.send(image.view(), i));
    UF_TRY(pass_packets());
  }
  UF_TRY(encoder.send_end());
  UF_TRY(pass_packets());
  UF_TRY(decoder.send(nullptr));
  if (decoder.frames() != frames) {
    return make_status(StatusCode::kInternal, "{}: {} of {} frames came back", kName,
                       decoder.frames(), frames);
  }
  return {};
}

}  // namespace

bool can_recode() {
  return avcodec_find_encoder_by_name("libx264") != nullptr &&
         avcodec_find_decoder(AV_CODEC_ID_H264) != nullptr;
}

Status recode_h264(std::span<uint8_t> pixels, const VideoFormat& format,
                   const RecodeOptions& options) {
  return without_exceptions([&] { return recode(pixels, format, options); });
}

}  // namespace ultraflash
