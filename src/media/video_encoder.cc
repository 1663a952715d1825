#include "media/video_encoder.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavutil/frame.h>
#include <libavutil/opt.h>
}

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "core/check.h"
#include "media/colour.h"

namespace ultraflash {
namespace {

struct KnownEncoder {
  const char* option;  // SinkOptions::codec
  const char* name;    // libavcodec's
  const char* package;
};

// Best first: H.264 plays everywhere, and libx264 needs the fewest bits for it.
constexpr KnownEncoder kEncoders[] = {
    {"x264", "libx264", "an FFmpeg with libx264"},
    {"openh264", "libopenh264", "an FFmpeg with libopenh264"},
    {"mpeg4", "mpeg4", "an FFmpeg with the mpeg4 encoder"},
};

constexpr int kDefaultCrf = 18;

Result<const KnownEncoder*> choose_encoder(const SinkOptions& options) {
  const bool any = options.codec.empty() || options.codec == "auto";
  for (const KnownEncoder& known : kEncoders) {
    if (!any && options.codec != known.option && options.codec != known.name) continue;
    if (avcodec_find_encoder_by_name(known.name) != nullptr) return &known;
    if (!any) {
      return make_status(StatusCode::kUnsupported,
                         "{}: the installed libavcodec has no {} encoder; install {}, or use codec "
                         "auto",
                         options.path, known.name, known.package);
    }
  }
  if (!any) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: no codec is called '{}'; there are auto, x264, openh264 and mpeg4",
                       options.path, options.codec);
  }
  return make_status(StatusCode::kUnsupported,
                     "{}: the installed libavcodec has none of libx264, libopenh264 and mpeg4; "
                     "install a complete FFmpeg, or write y4m",
                     options.path);
}

// Bits per second that look like `crf` in an encoder without constant quality: 0.2 bits a pixel at
// 18, and half as many for every six steps, the slope of H.264's quantiser.
int64_t bitrate_of_crf(int crf, const VideoFormat& format) {
  const double bits_per_pixel = 0.2 * std::exp2((kDefaultCrf - crf) / 6.0);
  const double pixels = static_cast<double>(format.width * format.height) * format.fps();
  return std::clamp<int64_t>(std::llround(pixels * bits_per_pixel), 200'000, 2'000'000'000);
}

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") != 0;
#else
  return false;
#endif
}

void set_quality(AVCodecContext* codec, const KnownEncoder& known, const SinkOptions& options,
                 const VideoFormat& format, av::Dictionary& settings) {
  const int crf = options.crf == 0 ? kDefaultCrf : options.crf;
  const std::string name = known.option;
  if (name == "x264") {
    settings.set("preset", options.preset.empty() ? "veryfast" : options.preset);
    if (options.bitrate == 0) settings.set("crf", fmt::format("{}", crf));
    // With AVX-512, libx264 (core 164) lets memory that nobody wrote decide on quantisers, so that
    // the same frames give another file each time. AVX2 is as fast here.
    if (has_avx512()) settings.set("x264-params", "asm=AVX2");
  }
  if (options.bitrate > 0) {
    codec->bit_rate = options.bitrate;
  } else if (name == "openh264") {
    codec->bit_rate = bitrate_of_crf(crf, format);
  } else if (name == "mpeg4") {
    // Quantiser 2 is as fine as x264's 18; both scales double their step at about these rates.
    const double quantiser = std::clamp(2.0 * std::exp2((crf - kDefaultCrf) / 8.25), 1.0, 31.0);
    codec->flags |= AV_CODEC_FLAG_QSCALE;
    codec->qmin = 1;
    codec->global_quality = static_cast<int>(std::lround(quantiser * FF_QP2LAMBDA));
  }
}

}  // namespace

std::vector<std::string> available_video_encoders() {
  std::vector<std::string> names;
  for (const KnownEncoder& known : kEncoders) {
    if (avcodec_find_encoder_by_name(known.name) != nullptr) names.emplace_back(known.option);
  }
  return names;
}

VideoEncoder::VideoEncoder(std::string path, av::CodecPtr codec, av::FramePtr frame)
    : path_(std::move(path)), codec_(std::move(codec)), frame_(std::move(frame)) {}

Result<VideoEncoder> VideoEncoder::open(const SinkOptions& options, const VideoFormat& format) {
  av::enter();
  UF_ASSIGN(const KnownEncoder* known, choose_encoder(options));
  if (!options.preset.empty() && std::string(known->option) != "x264") {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: preset '{}' is for x264, the encoder is {}; drop it or ask for x264",
                       options.path, options.preset, known->name);
  }
  const AVCodec* encoder = avcodec_find_encoder_by_name(known->name);
  av::CodecPtr codec(avcodec_alloc_context3(encoder));
  av::FramePtr frame(av_frame_alloc());
  if (!codec || !frame) throw std::bad_alloc();

  codec->width = static_cast<int>(format.width);
  codec->height = static_cast<int>(format.height);
  codec->pix_fmt = AV_PIX_FMT_YUV420P;
  codec->time_base = {static_cast<int>(format.fps_den), static_cast<int>(format.fps_num)};
  codec->framerate = av_inv_q(codec->time_base);
  codec->sample_aspect_ratio = {1, 1};
  codec->color_range = AVCOL_RANGE_MPEG;
  codec->color_primaries = AVCOL_PRI_BT709;
  codec->color_trc = AVCOL_TRC_BT709;
  codec->colorspace = AVCOL_SPC_BT709;
  codec->chroma_sample_location = AVCHROMA_LOC_LEFT;
  codec->thread_count = options.threads;
  codec->flags |= AV_CODEC_FLAG_GLOBAL_HEADER | AV_CODEC_FLAG_BITEXACT;
  // A seek lands at most two seconds away.
  const int64_t gop =
      options.gop > 0 ? options.gop : std::max<int64_t>(std::llround(2 * format.fps()), 12);
  codec->gop_size = static_cast<int>(std::min<int64_t>(gop, 250));
  av::Dictionary settings;
  set_quality(codec.get(), *known, options, format, settings);
  int code = avcodec_open2(codec.get(), encoder, settings.get());
  if (code < 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: the encoder {} refuses {}x{} at {}/{} frames per second: {}",
                       options.path, known->name, format.width, format.height, format.fps_num,
                       format.fps_den, av::error_text(code));
  }

  frame->format = codec->pix_fmt;
  frame->width = codec->width;
  frame->height = codec->height;
  frame->color_range = codec->color_range;
  frame->color_primaries = codec->color_primaries;
  frame->color_trc = codec->color_trc;
  frame->colorspace = codec->colorspace;
  frame->chroma_location = codec->chroma_sample_location;
  code = av_frame_get_buffer(frame.get(), /*align=*/0);
  if (code < 0) throw std::bad_alloc();
  return VideoEncoder(options.path, std::move(codec), std::move(frame));
}

std::string VideoEncoder::name() const { return codec_->codec->name; }

av::ParametersPtr VideoEncoder::parameters() const {
  av::ParametersPtr parameters(avcodec_parameters_alloc());
  if (!parameters || avcodec_parameters_from_context(parameters.get(), codec_.get()) < 0) {
    throw std::bad_alloc();
  }
  return parameters;
}

Status VideoEncoder::send(const RgbFrame& frame, int64_t index) {
  av::enter();
  // The encoder may still hold the last picture; then this one goes into new memory.
  if (av_frame_make_writable(frame_.get()) < 0) throw std::bad_alloc();
  const YuvPlanes<uint8_t> planes = {frame_->data[0], frame_->data[1], frame_->data[2],
                                     frame_->linesize[0], frame_->linesize[1]};
  rgb_to_yuv(frame, ChromaLayout::k420, planes);
  frame_->pts = index;
  if (codec_->flags & AV_CODEC_FLAG_QSCALE) frame_->quality = codec_->global_quality;
  const int code = avcodec_send_frame(codec_.get(), frame_.get());
  if (code < 0) {
    return make_status(StatusCode::kInternal, "{}: the encoder {} refuses frame {}: {}", path_,
                       name(), index, av::error_text(code));
  }
  return {};
}

Status VideoEncoder::send_end() {
  av::enter();
  const int code = avcodec_send_frame(codec_.get(), nullptr);
  if (code < 0) {
    return make_status(StatusCode::kInternal, "{}: the encoder {} cannot be ended: {}", path_,
                       name(), av::error_text(code));
  }
  return {};
}

Result<bool> VideoEncoder::receive(AVPacket* packet) {
  const int code = avcodec_receive_packet(codec_.get(), packet);
  if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return false;
  if (code < 0) {
    return make_status(StatusCode::kInternal, "{}: the encoder {} failed: {}", path_, name(),
                       av::error_text(code));
  }
  return true;
}

}  // namespace ultraflash
