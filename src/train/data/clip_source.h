// ClipSource: clips of video with captions by index. What an index gives depends on the data, the
// seed and the index alone, so a run that stops goes on exactly where it was.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/world/scene.h"
#include "ultraflash/log.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// What a clip is to look like.
struct ClipShape {
  int64_t frames = 84;
  int64_t width = 160;
  int64_t height = 96;
  /// Frames a second. A video with another rate gives, for every moment, the frame shown then: a
  /// faster one loses frames, a slower one shows some twice. 0: frame by frame as stored.
  double fps = 0.0;
  /// Of the sides of the largest middle part with these proportions: a clip shows a part of the
  /// picture, at a place that its index gives. 1: all of it.
  double part = 1.0;
};

struct Clip {
  std::vector<uint8_t> pixels;  // sRGB [frames, height, width, 3]
  std::string caption;
  std::string name;  // where it came from, for messages
};

/// May be used from several threads at once.
class ClipSource {
 public:
  virtual ~ClipSource() = default;
  /// Clips before they repeat in another order; -1: endless.
  [[nodiscard]] virtual int64_t size() const = 0;
  /// Clip `index`, any number from 0 on.
  [[nodiscard]] virtual Result<Clip> clip(int64_t index, const ClipShape& shape) const = 0;
  /// One of the captions of what clip() gives for the same index and shape; any variant from 0 on.
  [[nodiscard]] virtual Result<std::string> caption(int64_t index, const ClipShape& shape,
                                                    int64_t variant) const = 0;
  /// The damaged small clip that was prepared for clip `index` of `large` (see train/prepare.h),
  /// 1/scale its size; nothing where there is none. kMalformed when it does not fit.
  [[nodiscard]] virtual Result<std::optional<Clip>> damaged(int64_t /*index*/,
                                                            const ClipShape& /*large*/,
                                                            int64_t /*scale*/) const {
    return std::optional<Clip>();
  }
};

/// The pocket world at one of its three sizes (others: kInvalidArgument).
std::unique_ptr<ClipSource> make_world_clips(uint64_t seed, world::Split split);

struct FileClipOptions {
  uint64_t seed = 0;
  /// Share of the videos that is held out, by a hash of their names below `path` and so the same
  /// for every seed, order and number of files. At least one is, if there are two. Where some lie
  /// in a folder called held-out, they are those, whatever the share.
  double hold_out = 0.0;
  bool unseen = false;  // gives the held-out videos instead of the others
  Logger log{};         // told of every file that cannot be used
};

/// Videos from files. `path` is a folder or a .tar file. A folder is read with all folders and .tar
/// files in it; links are not followed. A video (mp4 m4v mov mkv webm avi y4m) counts if a file
/// with the same name and the ending .txt or .json lies next to it, in the same folder or archive:
/// plain text, or an object with a "caption", which is a text or a list of texts to choose from.
/// Beside NAME.y4m, NAME.2x.y4m is its damaged small clip at half the size, NAME.3x.y4m at a third.
/// Every epoch has another order. From each video a stretch is taken, cut at the sides (or top and
/// bottom) to the shape's proportions and resized. Only the first 4096 frames of a video are used.
///
/// A video is read through once before its first use. One that is damaged, has too few frames or no
/// caption is passed over with a warning, and the next of the epoch takes its place; clip() fails
/// when no video is left, with the last one's reason.
///
/// kNotFound, kIo, kMalformed for an archive, kInvalidArgument when there is no video with a
/// caption.
Result<std::unique_ptr<ClipSource>> open_file_clips(const std::string& path,
                                                    const FileClipOptions& options);

}  // namespace ultraflash
