#include "media/av_common.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/dict.h>
#include <libavutil/error.h>
#include <libavutil/log.h>
#include <libavutil/mem.h>
#include <libswscale/swscale.h>
}

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <new>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"

namespace ultraflash::av {
namespace {

constexpr int kBufferBytes = 1 << 16;
// A fragment's boxes are patched while they are in the buffer.
constexpr int kWriteBufferBytes = 1 << 20;

// Containers and decoders that are let near hostile bytes. libavformat knows some three hundred
// formats; among them are playlists that open other files and addresses.
constexpr const char* kDemuxers = "mov,matroska,webm,avi";
constexpr const char* kDecoders =
    "h264,hevc,vp8,vp9,libdav1d,mpeg4,mpeg2video,mjpeg,ffv1,prores,png,rawvideo";

// libavformat builds one index entry for every sample that a table announces, and a table of a few
// bytes can announce 2^32 samples. This bounds such an index to 14 million entries (some 0.8 GB
// with all that belongs to it), and still holds the largest plane of a 16384x16384 picture.
constexpr size_t kMaxAllocation = size_t{320} << 20;

thread_local char last_message[200] = {};

__attribute__((format(printf, 3, 0))) void keep_message(void*, int level, const char* format,
                                                        va_list arguments) {
  if (level > AV_LOG_ERROR) return;
  char text[sizeof(last_message)];
  std::vsnprintf(text, sizeof(text), format, arguments);
  size_t length = 0;
  for (const char c : text) {
    if (c == '\0' || c == '\n') break;
    last_message[length++] = c >= ' ' && c <= '~' ? c : '?';
  }
  if (length > 0) last_message[length] = '\0';
}

// Nested opens: data references, playlists, segments.
int refuse_open(AVFormatContext*, AVIOContext**, const char*, int, AVDictionary**) {
  return AVERROR(EPERM);
}

AVIOContext* require(AVIOContext* context) {
  if (context == nullptr) throw std::bad_alloc();
  return context;
}

void free_io(AVIOContext*& context) {
  if (context != nullptr) av_freep(&context->buffer);
  avio_context_free(&context);
}

}  // namespace

void Free::operator()(AVCodecContext* context) const { avcodec_free_context(&context); }
void Free::operator()(AVCodecParameters* parameters) const { avcodec_parameters_free(&parameters); }
void Free::operator()(AVFrame* frame) const { av_frame_free(&frame); }
void Free::operator()(AVPacket* packet) const { av_packet_free(&packet); }
void Free::operator()(SwsContext* context) const { sws_freeContext(context); }
void FreeInput::operator()(AVFormatContext* context) const { avformat_close_input(&context); }
void FreeOutput::operator()(AVFormatContext* context) const { avformat_free_context(context); }

Dictionary::~Dictionary() { av_dict_free(&dictionary_); }

void Dictionary::set(const char* key, const std::string& value) {
  if (av_dict_set(&dictionary_, key, value.c_str(), 0) < 0) throw std::bad_alloc();
}

void enter() {
  static std::once_flag once;
  std::call_once(once, [] {
    av_log_set_callback(keep_message);
    av_max_alloc(kMaxAllocation);
  });
  last_message[0] = '\0';
}

std::string error_text(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof(text));
  if (last_message[0] == '\0') return text;
  return fmt::format("{} ({})", text, last_message);
}

ReadStream::ReadStream(InputFile file) : file_(std::move(file)) {
  enter();
  auto* buffer = static_cast<unsigned char*>(av_malloc(kBufferBytes));
  context_ = require(
      avio_alloc_context(buffer, kBufferBytes, /*write_flag=*/0, this, read, nullptr, seek));
}

ReadStream::~ReadStream() { free_io(context_); }

int ReadStream::read(void* self, uint8_t* data, int size) {
  auto& stream = *static_cast<ReadStream*>(self);
  if (stream.deadline_.passed()) return AVERROR_EXIT;
  int64_t got = 0;
  const auto read_some = [&]() -> Status {
    UF_ASSIGN(got, stream.file_.read_some({data, static_cast<size_t>(size)}));
    return {};
  };
  if (!stream.note(without_exceptions(read_some))) return AVERROR(EIO);
  return got == 0 ? AVERROR_EOF : static_cast<int>(got);
}

int64_t ReadStream::seek(void* self, int64_t offset, int whence) {
  auto& stream = *static_cast<ReadStream*>(self);
  InputFile& file = stream.file_;
  whence &= ~AVSEEK_FORCE;
  if (whence == AVSEEK_SIZE) return file.size();
  const int64_t base = whence == SEEK_CUR ? file.position() : whence == SEEK_END ? file.size() : 0;
  int64_t target = 0;
  if (__builtin_add_overflow(base, offset, &target) || target < 0) return AVERROR(EINVAL);
  return stream.note(without_exceptions([&] { return file.seek(target); })) ? target : AVERROR(EIO);
}

bool ReadStream::note(Status status) noexcept {
  const bool ok = status.ok();
  if (!ok && error_.ok()) error_ = std::move(status);
  return ok;
}

int ReadStream::interrupted(void* self) {
  return static_cast<ReadStream*>(self)->deadline_.passed() ? 1 : 0;
}

Result<InputPtr> ReadStream::open_container() {
  if (!file_.seekable()) {
    return make_status(StatusCode::kUnsupported,
                       "{}: is a pipe or a device; only y4m is read from there, other videos need "
                       "a file",
                       file_.name());
  }
  Dictionary options;
  options.set("format_whitelist", kDemuxers);
  options.set("codec_whitelist", kDecoders);
  options.set("protocol_whitelist", "none");
  // Until libavformat has taken it, nothing below may throw.
  AVFormatContext* context = avformat_alloc_context();
  if (context == nullptr) throw std::bad_alloc();
  context->pb = context_;
  context->interrupt_callback = {interrupted, this};
  context->io_open = refuse_open;
  context->max_streams = 64;
  // No name: formats are told by their bytes, not by the ending of the path.
  const int code = avformat_open_input(&context, "", nullptr, options.get());
  if (code >= 0) return InputPtr(context);
  if (code == AVERROR(EINVAL) || code == AVERROR_INVALIDDATA) {
    return make_status(StatusCode::kMalformed,
                       "{}: is not a video that can be read: {}; known are MP4, MOV, MKV, WebM, "
                       "AVI and y4m",
                       file_.name(), error_text(code));
  }
  return status_of(code, "cannot be read");
}

Status ReadStream::status_of(int code, const std::string& what) const {
  if (!error_.ok()) return error_;
  if (deadline_.passed()) {
    return make_status(StatusCode::kDeadline,
                       "{}: {}: it took longer than the time limit; the file is damaged, or the "
                       "machine too slow",
                       file_.name(), what);
  }
  if (code == AVERROR(ENOMEM)) {
    return make_status(StatusCode::kOutOfMemory, "{}: {}: no memory", file_.name(), what);
  }
  if (code == AVERROR_PATCHWELCOME) {
    return make_status(StatusCode::kUnsupported,
                       "{}: {}: the installed libavcodec cannot decode this kind of stream: {}; "
                       "convert the file to H.264",
                       file_.name(), what, error_text(code));
  }
  return make_status(StatusCode::kMalformed, "{}: {}: {}", file_.name(), what, error_text(code));
}

#if LIBAVFORMAT_VERSION_MAJOR >= 61
using WrittenByte = const uint8_t;
#else
using WrittenByte = uint8_t;
#endif

int write_to_stream(void* self, const uint8_t* data, int size) {
  auto& stream = *static_cast<WriteStream*>(self);
  // After one failure nothing more is written, or holes would pass for a sound file.
  if (!stream.error_.ok()) return AVERROR(EIO);
  stream.error_ = without_exceptions(
      [&] { return stream.file_.write(std::span(data, static_cast<size_t>(size))); });
  return stream.error_.ok() ? size : AVERROR(EIO);
}

WriteStream::WriteStream(OutputFile file) : file_(std::move(file)) {
  enter();
  const auto write = [](void* self, WrittenByte* data, int size) {
    return write_to_stream(self, data, size);
  };
  auto* buffer = static_cast<unsigned char*>(av_malloc(kWriteBufferBytes));
  context_ = require(
      avio_alloc_context(buffer, kWriteBufferBytes, /*write_flag=*/1, this, nullptr, write, seek));
}

WriteStream::~WriteStream() { free_io(context_); }

int64_t WriteStream::position() const { return avio_tell(context_); }

void WriteStream::flush() { avio_flush(context_); }

int64_t WriteStream::seek(void* self, int64_t offset, int whence) {
  auto& stream = *static_cast<WriteStream*>(self);
  whence &= ~AVSEEK_FORCE;
  int64_t position = whence == SEEK_CUR ? stream.file_.position() + offset : offset;
  const auto seek = [&]() -> Status {
    if (whence == AVSEEK_SIZE || whence == SEEK_END) {
      UF_ASSIGN(const int64_t size, stream.file_.size());
      position = whence == AVSEEK_SIZE ? size : size + offset;
    }
    return whence == AVSEEK_SIZE ? Status() : stream.file_.seek(position);
  };
  return without_exceptions(seek).ok() ? position : AVERROR(EIO);
}

Status WriteStream::status_of(int code, const std::string& what) const {
  if (!error_.ok()) return error_;
  if (code == AVERROR(ENOMEM)) {
    return make_status(StatusCode::kOutOfMemory, "{}: {}: no memory", file_.name(), what);
  }
  return make_status(StatusCode::kInternal, "{}: {}: {}", file_.name(), what, error_text(code));
}

}  // namespace ultraflash::av
