// What the files that use libav* share: handles that free themselves, and our own reading and
// writing behind libavformat, so that it never opens a file or an address by itself. Internal to
// the media layer; exists only in builds with FFmpeg.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "core/input_file.h"
#include "core/output_file.h"
#include "ultraflash/status.h"

struct AVCodecContext;
struct AVCodecParameters;
struct AVDictionary;
struct AVFormatContext;
struct AVFrame;
struct AVIOContext;
struct AVPacket;
struct SwsContext;

namespace ultraflash::av {

struct Free {
  void operator()(AVCodecContext* context) const;
  void operator()(AVCodecParameters* parameters) const;
  void operator()(AVFrame* frame) const;
  void operator()(AVPacket* packet) const;
  void operator()(SwsContext* context) const;
};
struct FreeInput {
  void operator()(AVFormatContext* context) const;
};
struct FreeOutput {
  void operator()(AVFormatContext* context) const;
};
using CodecPtr = std::unique_ptr<AVCodecContext, Free>;
using ParametersPtr = std::unique_ptr<AVCodecParameters, Free>;
using FramePtr = std::unique_ptr<AVFrame, Free>;
using PacketPtr = std::unique_ptr<AVPacket, Free>;
using ScalerPtr = std::unique_ptr<SwsContext, Free>;
using InputPtr = std::unique_ptr<AVFormatContext, FreeInput>;
using OutputPtr = std::unique_ptr<AVFormatContext, FreeOutput>;

/// Options for libav calls.
class Dictionary {
 public:
  Dictionary() = default;
  Dictionary(const Dictionary&) = delete;
  Dictionary& operator=(const Dictionary&) = delete;
  ~Dictionary();
  void set(const char* key, const std::string& value);
  AVDictionary** get() { return &dictionary_; }

 private:
  AVDictionary* dictionary_ = nullptr;
};

/// Comes first in every function that calls libav. Once in a process it sends libav's messages,
/// which would go to stderr, to a place from which error_text() takes them, and bounds what libav
/// may ask for in one piece; each time it forgets the messages of this thread.
void enter();
/// "Invalid data found" and, when libav has said more on this thread since enter(), that.
std::string error_text(int code);

/// When an operation has to be over.
class Deadline {
 public:
  void start(int64_t timeout_ms) {
    end_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  }
  [[nodiscard]] bool passed() const { return std::chrono::steady_clock::now() > end_; }

 private:
  std::chrono::steady_clock::time_point end_ = std::chrono::steady_clock::time_point::max();
};

/// libavformat reads from an InputFile. Stays where it is made: libav keeps its address.
class ReadStream {
 public:
  explicit ReadStream(InputFile file);
  ReadStream(const ReadStream&) = delete;
  ReadStream& operator=(const ReadStream&) = delete;
  ~ReadStream();

  /// Opens the container, which must be a file or memory. Only the few demuxers and decoders that
  /// this layer reads are let in, and what the file refers to is not opened.
  Result<InputPtr> open_container();
  [[nodiscard]] const InputFile& file() const { return file_; }
  Deadline& deadline() { return deadline_; }
  /// The first failure of the system, ok if there was none.
  [[nodiscard]] const Status& error() const { return error_; }
  /// kIo with the system's reason if reading failed, kDeadline if time ran out, else what libav's
  /// `code` means: kMalformed (or kOutOfMemory, kUnsupported), "<name>: <what>: ...".
  [[nodiscard]] Status status_of(int code, const std::string& what) const;

 private:
  static int read(void* self, uint8_t* data, int size);
  static int64_t seek(void* self, int64_t offset, int whence);
  static int interrupted(void* self);
  /// False for a failure; the first one is kept.
  bool note(Status status) noexcept;

  InputFile file_;
  AVIOContext* context_ = nullptr;
  Deadline deadline_;
  Status error_;
};

/// libavformat writes to an OutputFile that has a part file. Stays where it is made.
class WriteStream {
 public:
  explicit WriteStream(OutputFile file);
  WriteStream(const WriteStream&) = delete;
  WriteStream& operator=(const WriteStream&) = delete;
  ~WriteStream();

  [[nodiscard]] AVIOContext* context() const { return context_; }
  OutputFile& file() { return file_; }
  [[nodiscard]] const OutputFile& file() const { return file_; }
  /// Where the next byte goes, bytes in libav's buffer included.
  [[nodiscard]] int64_t position() const;
  void flush();
  /// The first failure of the system, ok if there was none.
  [[nodiscard]] const Status& error() const { return error_; }
  /// As ReadStream::status_of(), with kInternal for what is not the disk's fault.
  [[nodiscard]] Status status_of(int code, const std::string& what) const;

 private:
  static int64_t seek(void* self, int64_t offset, int whence);

  OutputFile file_;
  AVIOContext* context_ = nullptr;
  Status error_;
  friend int write_to_stream(void* self, const uint8_t* data, int size);
};

}  // namespace ultraflash::av
