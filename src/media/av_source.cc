// Frames through libavformat, libavcodec and, where our own colour conversion does not apply,
// libswscale.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/imgutils.h>
#include <libavutil/mathematics.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "core/check.h"
#include "media/av_common.h"
#include "media/colour.h"
#include "media/metadata.h"
#include "media/readers.h"
#include "media/y4m.h"

namespace ultraflash {
namespace {

Metadata metadata_of(const AVFormatContext* context) {
  constexpr size_t kMaxPairs = 1024;
  Metadata metadata;
  const AVDictionaryEntry* entry = nullptr;
  while ((entry = av_dict_get(context->metadata, "", entry, AV_DICT_IGNORE_SUFFIX)) != nullptr) {
    if (is_container_key(entry->key) || !is_metadata_text(entry->key) ||
        !is_metadata_text(entry->value))
      continue;
    if (metadata.size() == kMaxPairs) break;
    metadata.emplace_back(entry->key, entry->value);
  }
  return metadata;
}

// The number in an enumeration that libav filled from a file: decoders store values that are not in
// the enumeration, which C++ must not load as such.
template <typename Enum>
int number_of(const Enum& field) {
  static_assert(sizeof(Enum) == sizeof(int));
  int value = 0;
  std::memcpy(&value, &field, sizeof(value));
  return value;
}

// What our own conversion makes of a frame; nothing when it is swscale's turn.
std::optional<YuvFormat> own_format(const AVFrame& frame) {
  YuvFormat format;
  bool full = number_of(frame.color_range) == AVCOL_RANGE_JPEG;
  switch (frame.format) {
    case AV_PIX_FMT_YUVJ420P:
      full = true;
      [[fallthrough]];
    case AV_PIX_FMT_YUV420P:
      format.layout = ChromaLayout::k420;
      break;
    case AV_PIX_FMT_YUVJ422P:
      full = true;
      [[fallthrough]];
    case AV_PIX_FMT_YUV422P:
      format.layout = ChromaLayout::k422;
      break;
    case AV_PIX_FMT_YUVJ444P:
      full = true;
      [[fallthrough]];
    case AV_PIX_FMT_YUV444P:
      format.layout = ChromaLayout::k444;
      break;
    case AV_PIX_FMT_GRAY8:
      // Grey is full range unless the stream says otherwise, as swscale has it.
      full = number_of(frame.color_range) != AVCOL_RANGE_MPEG;
      format.layout = ChromaLayout::k400;
      break;
    default:
      return std::nullopt;
  }
  switch (number_of(frame.colorspace)) {
    case AVCOL_SPC_BT709:
      format.matrix = ColourMatrix::kBt709;
      break;
    case AVCOL_SPC_BT470BG:
    case AVCOL_SPC_SMPTE170M:
      format.matrix = ColourMatrix::kBt601;
      break;
    case AVCOL_SPC_BT2020_NCL:
      format.matrix = ColourMatrix::kBt2020;
      break;
    case AVCOL_SPC_UNSPECIFIED:
      format.matrix = guess_matrix(frame.width, frame.height);
      break;
    default:
      return std::nullopt;
  }
  format.range = full ? ColourRange::kFull : ColourRange::kLimited;
  format.siting = number_of(frame.chroma_location) == AVCHROMA_LOC_CENTER ? ChromaSiting::kCentre
                                                                          : ChromaSiting::kLeft;
  if (format.layout != ChromaLayout::k400 && frame.linesize[1] != frame.linesize[2]) {
    return std::nullopt;
  }
  return format;
}

// Clockwise quarter turns that the container asks players for; 0 for any other transformation.
int quarter_turns(const AVStream* stream) {
  const uint8_t* data = nullptr;
  size_t size = 0;
#if LIBAVFORMAT_VERSION_INT >= AV_VERSION_INT(60, 15, 100)
  const AVPacketSideData* side =
      av_packet_side_data_get(stream->codecpar->coded_side_data,
                              stream->codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
  if (side != nullptr) {
    data = side->data;
    size = side->size;
  }
#else
  data = av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
#endif
  int32_t matrix[9];
  if (data == nullptr || size < sizeof(matrix)) return 0;
  std::memcpy(matrix, data, sizeof(matrix));
  const double turns = -av_display_rotation_get(matrix) / 90.0;
  if (!std::isfinite(turns) || std::abs(turns - std::round(turns)) > 0.01) return 0;
  return static_cast<int>(std::lround(turns) % 4 + 4) % 4;
}

// `turns` is 1, 2 or 3. `out` is as large as `in`, without gaps.
void rotate(const RgbFrame& in, int turns, uint8_t* out) {
  const int64_t out_width = turns == 2 ? in.width : in.height;
  for (int64_t y = 0; y < in.height; ++y) {
    const uint8_t* pixel = in.row(y);
    for (int64_t x = 0; x < in.width; ++x, pixel += 3) {
      const int64_t out_x = turns == 1 ? in.height - 1 - y : turns == 2 ? in.width - 1 - x : y;
      const int64_t out_y = turns == 1 ? x : turns == 2 ? in.height - 1 - y : in.width - 1 - x;
      std::copy_n(pixel, 3, out + 3 * (out_y * out_width + out_x));
    }
  }
}

class AvSource final : public FrameSource {
 public:
  AvSource(InputFile file, const ReaderLimits& limits)
      : stream_(std::move(file)),
        limits_(limits),
        frame_(av_frame_alloc()),
        packet_(av_packet_alloc()) {
    if (!frame_ || !packet_) throw std::bad_alloc();
  }

  Status start() {
    stream_.deadline().start(limits_.timeout_ms);
    UF_ASSIGN(container_, stream_.open_container());
    UF_TRY(find_video());
    UF_TRY(open_decoder());
    UF_ASSIGN(have_frame_, decode());
    if (!have_frame_) {
      return make_status(StatusCode::kMalformed, "{}: holds no frame that can be decoded", name());
    }
    UF_TRY(describe());
    return {};
  }

  [[nodiscard]] const VideoInfo& info() const override { return info_; }

  Result<std::optional<VideoFrame>> next() override {
    av::enter();
    stream_.deadline().start(limits_.timeout_ms);
    if (!have_frame_) {
      UF_ASSIGN(have_frame_, decode());
      if (!have_frame_) return std::optional<VideoFrame>();
    }
    have_frame_ = false;
    VideoFrame frame;
    frame.time_s = time_of_frame();
    UF_ASSIGN(frame.rgb, convert());
    av_frame_unref(frame_.get());
    ++index_;
    return std::optional<VideoFrame>(frame);
  }

 private:
  [[nodiscard]] const std::string& name() const { return stream_.file().name(); }
  [[nodiscard]] const AVStream* video() const { return container_->streams[video_index_]; }
  [[nodiscard]] std::string where() const { return fmt::format("frame {}", index_); }

  Status find_video() {
    const int found =
        av_find_best_stream(container_.get(), AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, /*flags=*/0);
    if (found < 0) {
      return make_status(StatusCode::kMalformed, "{}: holds no video stream", name());
    }
    video_index_ = found;
    // Sound, subtitles and cover pictures are not even looked at.
    for (unsigned i = 0; i < container_->nb_streams; ++i) {
      if (static_cast<int>(i) != found) container_->streams[i]->discard = AVDISCARD_ALL;
    }
    if (video()->nb_frames > limits_.max_frames) {
      return make_status(StatusCode::kUnsupported, "{}: lists {} frames, more than the limit of {}",
                         name(), video()->nb_frames, limits_.max_frames);
    }
    const AVCodecParameters* parameters = video()->codecpar;
    if (parameters->width > 0 && parameters->height > 0) {
      UF_TRY(check_limits(parameters->width, parameters->height, limits_, name()));
    }
    // libavformat decodes some frames to learn how they are reordered.
    std::vector<AVDictionary*> options(container_->nb_streams, nullptr);
    for (AVDictionary*& option : options) {
      av_dict_set_int(&option, "max_pixels", coded_pixel_limit(), 0);
    }
    const int code = avformat_find_stream_info(container_.get(), options.data());
    for (AVDictionary*& option : options) av_dict_free(&option);
    if (code < 0) return stream_.status_of(code, "the streams cannot be examined");
    return {};
  }

  // Codecs work on whole blocks of up to 128 pixels, so that a frame within the limit may take more
  // memory than it shows; the exact limit is checked on the decoded frame.
  [[nodiscard]] int64_t coded_pixel_limit() const {
    return limits_.max_pixels + 256 * (2 * std::min(limits_.max_side, limits_.max_pixels) + 256);
  }

  Status open_decoder() {
    const AVCodecParameters* parameters = video()->codecpar;
    if (parameters->codec_id == AV_CODEC_ID_NONE) {
      return make_status(StatusCode::kMalformed,
                         "{}: the video stream does not say how it is compressed; the file is "
                         "damaged, or of a kind that libavformat does not know",
                         name());
    }
    const AVCodec* decoder = avcodec_find_decoder(parameters->codec_id);
    if (decoder == nullptr) {
      return make_status(StatusCode::kUnsupported,
                         "{}: the installed libavcodec has no decoder for {}; convert the file to "
                         "H.264",
                         name(), avcodec_get_name(parameters->codec_id));
    }
    decoder_.reset(avcodec_alloc_context3(decoder));
    if (!decoder_) throw std::bad_alloc();
    if (avcodec_parameters_to_context(decoder_.get(), parameters) < 0) throw std::bad_alloc();
    decoder_->pkt_timebase = video()->time_base;
    decoder_->thread_count = limits_.threads;
    decoder_->max_pixels = coded_pixel_limit();
    av::Dictionary options;
    if (container_->codec_whitelist != nullptr) {
      options.set("codec_whitelist", container_->codec_whitelist);
    }
    const int code = avcodec_open2(decoder_.get(), decoder, options.get());
    if (code == AVERROR(EINVAL)) {
      return make_status(StatusCode::kUnsupported,
                         "{}: {} video is not read, or its header is damaged: {}; convert the file "
                         "to H.264",
                         name(), decoder->name, av::error_text(code));
    }
    if (code < 0) return stream_.status_of(code, "the decoder cannot be started");
    return {};
  }

  // The next frame into frame_; false at the end.
  Result<bool> decode() {
    while (true) {
      if (stream_.deadline().passed()) return stream_.status_of(AVERROR_EXIT, where());
      int code = avcodec_receive_frame(decoder_.get(), frame_.get());
      if (code >= 0) {
        UF_TRY(check_frame_is_sound());
        return true;
      }
      if (code == AVERROR_EOF) {
        UF_TRY(check_complete());
        return false;
      }
      if (code != AVERROR(EAGAIN)) return stream_.status_of(code, where());
      UF_TRY(feed_decoder());
    }
  }

  // One packet, or the end, into the decoder.
  Status feed_decoder() {
    while (true) {
      const int code = av_read_frame(container_.get(), packet_.get());
      if (code == AVERROR_EOF) {
        UF_TRY(stream_.error());
        const int sent = avcodec_send_packet(decoder_.get(), nullptr);
        return sent < 0 ? stream_.status_of(sent, where()) : Status();
      }
      if (code < 0) return stream_.status_of(code, where());
      if (packet_->stream_index == video_index_) break;
      av_packet_unref(packet_.get());
      if (stream_.deadline().passed()) return stream_.status_of(AVERROR_EXIT, where());
    }
    if ((packet_->flags & AV_PKT_FLAG_CORRUPT) != 0) {
      av_packet_unref(packet_.get());
      return make_status(StatusCode::kMalformed, "{}: {}: the stored data is damaged or cut short",
                         name(), where());
    }
    const int sent = avcodec_send_packet(decoder_.get(), packet_.get());
    av_packet_unref(packet_.get());
    return sent < 0 ? stream_.status_of(sent, where()) : Status();
  }

  Status check_frame_is_sound() {
    const AVFrame& frame = *frame_;
    if ((frame.flags & AV_FRAME_FLAG_CORRUPT) != 0 || frame.decode_error_flags != 0) {
      return make_status(StatusCode::kMalformed, "{}: {}: the stored picture is damaged: {}",
                         name(), where(), av::error_text(AVERROR_INVALIDDATA));
    }
    if (frame.width < 1 || frame.height < 1 || frame.data[0] == nullptr) {
      return make_status(StatusCode::kMalformed, "{}: {}: the picture is {}x{}", name(), where(),
                         frame.width, frame.height);
    }
    UF_TRY(check_limits(frame.width, frame.height, limits_, name()));
    if (index_ > 0 && (frame.width != stored_width_ || frame.height != stored_height_)) {
      return make_status(StatusCode::kUnsupported,
                         "{}: {} is {}x{}, but the video began as {}x{}; videos that change their "
                         "size are not read",
                         name(), where(), frame.width, frame.height, stored_width_, stored_height_);
    }
    stored_width_ = frame.width;
    stored_height_ = frame.height;
    return {};
  }

  // MP4 and AVI list their frames; a file that was cut lists some that it does not hold, and
  // libavformat takes that for an ordinary end.
  Status check_complete() {
    AVStream* stream = container_->streams[video_index_];
    const int count = avformat_index_get_entries_count(stream);
    for (int i = std::max(0, count - 1000); i < count; ++i) {
      const AVIndexEntry* entry = avformat_index_get_entry(stream, i);
      if (entry == nullptr || entry->pos <= stream_.file().size() - entry->size) continue;
      return make_status(StatusCode::kMalformed,
                         "{}: ends after frame {}, but lists {} frames; it is cut short", name(),
                         index_, count);
    }
    return {};
  }

  Status describe() {
    const AVFrame& frame = *frame_;
    turns_ = quarter_turns(video());
    info_.format.width = turns_ % 2 == 0 ? frame.width : frame.height;
    info_.format.height = turns_ % 2 == 0 ? frame.height : frame.width;
    AVRational rate = av_guess_frame_rate(container_.get(), container_->streams[video_index_],
                                          /*frame=*/nullptr);
    if (rate.num < 1 || rate.den < 1) rate = {0, 1};
    info_.format.fps_num = rate.num;
    info_.format.fps_den = rate.den;
    if (rate.num > 0) {
      const int64_t divisor = std::gcd<int64_t, int64_t>(rate.num, rate.den);
      info_.format.fps_num /= divisor;
      info_.format.fps_den /= divisor;
      if (!check_video_format({1, 1, info_.format.fps_num, info_.format.fps_den}, "").ok()) {
        info_.format.fps_num = 0;
        info_.format.fps_den = 1;
      }
    }
    const AVStream* stream = video();
    if (stream->nb_frames > 0) info_.frames = stream->nb_frames;
    if (stream->duration > 0) {
      info_.duration_s = static_cast<double>(stream->duration) *
                         static_cast<double>(stream->time_base.num) /
                         static_cast<double>(stream->time_base.den);
    } else if (container_->duration > 0) {
      info_.duration_s = static_cast<double>(container_->duration) / AV_TIME_BASE;
    }
    const std::string container = container_->iformat->name;
    info_.container =
        container.starts_with("mov") ? "mp4" : container.substr(0, container.find(','));
    info_.codec = avcodec_get_name(stream->codecpar->codec_id);
    const auto format = static_cast<AVPixelFormat>(frame.format);
    const char* pixel_format = av_get_pix_fmt_name(format);
    const int space = number_of(frame.colorspace);
    const char* matrix = space >= 0 && space < AVCOL_SPC_NB
                             ? av_color_space_name(static_cast<AVColorSpace>(space))
                             : nullptr;
    info_.pixels =
        fmt::format("{}, {}, {} range", pixel_format == nullptr ? "unknown" : pixel_format,
                    matrix == nullptr ? "unknown" : matrix,
                    number_of(frame.color_range) == AVCOL_RANGE_JPEG ? "full" : "limited");
    info_.metadata = metadata_of(container_.get());
    if (frame.best_effort_timestamp != AV_NOPTS_VALUE) first_pts_ = frame.best_effort_timestamp;
    return {};
  }

  // A division of whole numbers, so that frame 3 of 16 per second is 0.1875 and not near it.
  [[nodiscard]] double time_of_frame() const {
    const int64_t pts = frame_->best_effort_timestamp;
    if (pts == AV_NOPTS_VALUE || first_pts_ == AV_NOPTS_VALUE) {
      if (info_.format.fps_num == 0) return -1.0;
      return static_cast<double>(index_) * static_cast<double>(info_.format.fps_den) /
             static_cast<double>(info_.format.fps_num);
    }
    const AVRational unit = video()->time_base;
    return (static_cast<double>(pts) - static_cast<double>(first_pts_)) *
           static_cast<double>(unit.num) / static_cast<double>(unit.den);
  }

  Result<RgbFrame> convert() {
    const AVFrame& frame = *frame_;
    // swscale writes whole vectors, past the end of a row if need be.
    constexpr int64_t kSlack = 64;
    const int64_t stride = (3 * int64_t{frame.width} + kSlack - 1) / kSlack * kSlack;
    rgb_.resize(static_cast<size_t>(stride * frame.height + kSlack));
    const std::optional<YuvFormat> own = own_format(frame);
    if (own) {
      yuv_to_rgb(
          {frame.data[0], frame.data[1], frame.data[2], frame.linesize[0], frame.linesize[1]}, *own,
          frame.width, frame.height, rgb_.data(), stride);
    } else {
      UF_TRY(scale(stride));
    }
    const RgbFrame upright{rgb_.data(), frame.width, frame.height, stride};
    if (turns_ == 0) return upright;
    rotated_.resize(static_cast<size_t>(3 * upright.width * upright.height));
    rotate(upright, turns_, rotated_.data());
    return RgbFrame::contiguous(rotated_.data(), info_.format.width, info_.format.height);
  }

  Status scale(int64_t stride) {
    const AVFrame& frame = *frame_;
    const auto format = static_cast<AVPixelFormat>(frame.format);
    const char* format_name = av_get_pix_fmt_name(format);
    if (format_name == nullptr || sws_isSupportedInput(format) == 0) {
      return make_status(StatusCode::kUnsupported, "{}: {}: samples of kind {} are not read",
                         name(), where(), format_name == nullptr ? "unknown" : format_name);
    }
    scaler_.reset(sws_getCachedContext(scaler_.release(), frame.width, frame.height, format,
                                       frame.width, frame.height, AV_PIX_FMT_RGB24,
                                       SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, nullptr,
                                       nullptr, nullptr));
    if (!scaler_) {
      return make_status(StatusCode::kUnsupported, "{}: {}: {} frames of {}x{} cannot be converted",
                         name(), where(), format_name, frame.width, frame.height);
    }
    int space = number_of(frame.colorspace);
    if (space == AVCOL_SPC_UNSPECIFIED) {
      space = guess_matrix(frame.width, frame.height) == ColourMatrix::kBt709 ? SWS_CS_ITU709
                                                                              : SWS_CS_ITU601;
    }
    const int* matrix = sws_getCoefficients(space);
    const AVPixFmtDescriptor* descriptor = av_pix_fmt_desc_get(format);
    const bool rgb = descriptor != nullptr && (descriptor->flags & AV_PIX_FMT_FLAG_RGB) != 0;
    const bool full = rgb || number_of(frame.color_range) == AVCOL_RANGE_JPEG;
    // A refusal means a source without matrix (RGB, palettes), for which nothing needs to be set.
    (void)sws_setColorspaceDetails(scaler_.get(), matrix, full ? 1 : 0, matrix, /*dstRange=*/1,
                                   /*brightness=*/0, /*contrast=*/1 << 16,
                                   /*saturation=*/1 << 16);
    uint8_t* planes[4] = {rgb_.data(), nullptr, nullptr, nullptr};
    const int strides[4] = {static_cast<int>(stride), 0, 0, 0};
    const int rows =
        sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, planes, strides);
    if (rows != frame.height) {
      return make_status(StatusCode::kInternal, "{}: {}: libswscale gave {} of {} rows", name(),
                         where(), rows, frame.height);
    }
    return {};
  }

  // Order matters: what comes later uses what comes before, and goes first.
  av::ReadStream stream_;
  ReaderLimits limits_;
  av::InputPtr container_;
  av::CodecPtr decoder_;
  av::FramePtr frame_;
  av::PacketPtr packet_;
  av::ScalerPtr scaler_;
  VideoInfo info_;
  int video_index_ = 0;
  int turns_ = 0;
  bool have_frame_ = false;  // frame_ is decoded and not yet handed out
  int64_t index_ = 0;        // frames handed out
  int stored_width_ = 0;
  int stored_height_ = 0;
  int64_t first_pts_ = AV_NOPTS_VALUE;
  std::vector<uint8_t> rgb_;
  std::vector<uint8_t> rotated_;
};

}  // namespace

Result<std::unique_ptr<FrameSource>> open_av_source(InputFile file, const ReaderLimits& limits) {
  auto source = std::make_unique<AvSource>(std::move(file), limits);
  UF_TRY(source->start());
  return std::unique_ptr<FrameSource>(std::move(source));
}

Result<Metadata> read_av_metadata(InputFile file) {
  av::ReadStream stream(std::move(file));
  stream.deadline().start(ReaderLimits{}.timeout_ms);
  UF_ASSIGN(const av::InputPtr container, stream.open_container());
  return metadata_of(container.get());
}

}  // namespace ultraflash
