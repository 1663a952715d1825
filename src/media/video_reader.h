// VideoReader: frames of a video file, a y4m stream or a folder of PNG files, as 8-bit RGB.
//
// Everything read is taken for hostile: sizes are checked before memory is asked for, time is
// bounded, and a video file cannot make the reader open another file or the network. One reader
// belongs to one thread at a time.
//
// Builds with FFmpeg change two settings of libav* for the whole process: the log callback
// (messages become parts of our sentences instead of going to stderr), and the largest single
// allocation (320 MiB).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Passing a size or count limit is kUnsupported, passing the time limit kDeadline.
struct ReaderLimits {
  int64_t max_side = kMaxFrameSide;
  int64_t max_pixels = 8192 * 4320;  // of one frame; at most 2^26
  int64_t max_frames = 1'000'000;
  /// Longest time that one open(), or one next(), may take. Waiting for a pipe counts, but the wait
  /// itself is not interrupted.
  int64_t timeout_ms = 30'000;
  /// Decoder threads.
  int threads = 1;
};

struct VideoInfo {
  /// fps_num is 0 when the source does not state a rate (a folder of pictures).
  VideoFormat format;
  /// Frames that the container promises; -1 when it does not say. The stream decides.
  int64_t frames = -1;
  /// Seconds, -1 when unknown.
  double duration_s = -1.0;
  std::string container;  // "mp4", "matroska", "avi", "y4m", "png sequence"
  std::string codec;      // "h264", "rawvideo", "png", ...
  /// How the stored samples were read, for people: "yuv420p, bt709, limited range".
  std::string pixels;
  Metadata metadata;
};

struct VideoFrame {
  RgbFrame rgb;       // valid until the next call to next(), and while the reader lives
  int64_t index = 0;  // 0 for the first frame
  /// When it is shown, in seconds from the first frame; negative when the source does not say.
  double time_s = 0.0;
};

class VideoReader {
 public:
  /// A video file (MP4, MOV, MKV, WebM, AVI: these need FFmpeg), a y4m file, a folder with PNG
  /// files, a pattern such as out_%05d.png, or "-" for y4m on standard input. The first frame is
  /// decoded here, so that info() is what the decoder found. Fails with kNotFound, kMalformed,
  /// kUnsupported, kDeadline, kOutOfMemory, kInvalidArgument or kIo.
  static Result<VideoReader> open(const std::string& path, const ReaderLimits& limits = {});
  /// A video file in memory, which the caller keeps alive; `name` begins messages.
  static Result<VideoReader> open_memory(std::span<const uint8_t> bytes, const std::string& name,
                                         const ReaderLimits& limits = {});

  VideoReader(VideoReader&&) noexcept;
  VideoReader& operator=(VideoReader&&) noexcept;
  ~VideoReader();

  [[nodiscard]] const VideoInfo& info() const;
  /// The next frame, nothing at the end. All frames have the size of info(): pictures that a file
  /// wants shown rotated by quarter turns are rotated. A damaged or cut stream is kMalformed, with
  /// the file and the frame; the frames before it were good, and the error repeats.
  Result<std::optional<VideoFrame>> next();

 private:
  struct Impl;
  explicit VideoReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The key and value pairs of a video file, in its order, without those that the container writes
/// for itself. Decodes nothing. Needs FFmpeg (kUnsupported without).
Result<Metadata> read_metadata(const std::string& path);

}  // namespace ultraflash
