// FrameSink: where finished frames go: a video file, a pipe, a folder of pictures.
//
// One sink belongs to one thread at a time. After a failed write to the disk or the encoder a sink
// takes no more frames and repeats that error; a frame that is refused (kInvalidArgument) changes
// nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct SinkStats {
  int64_t frames = 0;         // accepted by write()
  int64_t bytes_written = 0;  // handed to the system so far; an encoder holds some frames back
};

class FrameSink {
 public:
  virtual ~FrameSink() = default;

  /// Takes one frame of the size the sink was opened with; the pixels are not kept. Fails with
  /// kInvalidArgument on another size and after finish(), and with kIo.
  virtual Status write(const RgbFrame& frame) = 0;
  /// Writes what is held back and gives the file its name. Call it once; without it a file sink
  /// leaves "<path>.part". On kIo the sentence says what is left on the disk.
  virtual Status finish() = 0;
  [[nodiscard]] virtual SinkStats stats() const = 0;
  /// Container and encoder in use: "mp4 (libx264)", "y4m (4:4:4)", "png", "rgb24".
  [[nodiscard]] virtual std::string name() const = 0;
};

/// How to write. An option that the chosen container has no use for is an error when it was set;
/// threads and metadata apart, which only MP4 uses and stores.
struct SinkOptions {
  /// A file; "-" or "/dev/stdout" for standard output (y4m and raw); for pictures a folder (frames
  /// become frame_00000.png, ...) or a pattern with one %d or %0Nd, such as out_%05d.png. Pictures
  /// of an earlier, longer sequence in that folder stay.
  std::string path;
  /// "mp4", "y4m", "png", "raw"; empty: by the ending of the path (.mp4 .m4v, .y4m, .png or a
  /// folder, .rgb .raw), and y4m for standard output.
  std::string format;
  /// MP4: "auto" takes the first that the installed libavcodec has of "x264", "openh264", "mpeg4".
  /// Any other value is required: it is an error if that encoder is missing.
  std::string codec = "auto";
  /// MP4: constant quality, 1 (best) to 51, the scale of x264. 0: the default, 18.
  int crf = 0;
  /// MP4: bits per second; when above zero it replaces the constant quality.
  int64_t bitrate = 0;
  /// MP4 with x264: "ultrafast" to "veryslow". Empty: "veryfast".
  std::string preset;
  /// MP4: frames from one key frame to the next. 0: two seconds, at least 12.
  int64_t gop = 0;
  /// MP4: encoder threads.
  int threads = 1;
  /// y4m: "444" (default: nothing is lost to subsampling) or "420" (MPEG-2 siting). MP4 is 4:2:0.
  std::string chroma;
  /// Stored in MP4 files, in this order. Keys: printable ASCII, unique (ignoring case), at most 128
  /// characters, not one of those that containers write themselves (see check_metadata). Values:
  /// UTF-8 without zero bytes, at most 1 MiB.
  Metadata metadata;
};

/// Opens a sink and writes its header. Fails with kInvalidArgument (options, size, a path that is
/// a folder), kUnsupported (not in this build, encoder missing), kNotFound (the folder does not
/// exist), kBusy (another program writes this file) or kIo.
///
/// MP4 is written as a fragmented file "<path>.part", which plays even if the program is killed or
/// the disk fills up; finish() turns it into an ordinary file at the path, with its index in front,
/// and deletes the part file. A file at the path is replaced only then. (libavformat's index of the
/// finished file holds a few million frames, some days at 16 per second; what is longer stays a
/// part file, and the error says so.) Frame i is shown at i * fps_den / fps_num seconds, exactly.
/// The other files are written to "<path>.part" as well and renamed. Colours: BT.709, limited
/// range, for mp4 and y4m; sRGB for pictures and raw frames.
Result<std::unique_ptr<FrameSink>> open_sink(const SinkOptions& options, const VideoFormat& format);

/// What open_sink() asks of SinkOptions::metadata; `what` begins the message.
Status check_metadata(const Metadata& metadata, const std::string& what);

/// The encoders that "auto" would find, best first: names for SinkOptions::codec. Empty without
/// FFmpeg.
std::vector<std::string> available_video_encoders();

}  // namespace ultraflash
