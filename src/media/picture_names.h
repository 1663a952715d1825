// Names of numbered pictures: "out_%05d.png", and the order of files in a folder. Internal to the
// media layer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

/// A path with one number in its last part. Written by hand, because a pattern from a user must
/// never reach printf.
class PicturePattern {
 public:
  /// Takes "%d", "%4d" (read as "%04d") and "%0Nd" with N up to 18; "%%" is a percent sign.
  /// kInvalidArgument when there is no number, more than one, or another conversion.
  static Result<PicturePattern> parse(const std::string& pattern);
  /// "<folder>/frame_%05d.png"
  static PicturePattern in_folder(const std::string& folder);

  [[nodiscard]] std::string path(int64_t index) const;
  /// The folder of the pattern, "." when it names none.
  [[nodiscard]] std::string folder() const;

 private:
  std::string before_;
  std::string after_;
  int64_t digits_ = 0;
};

/// True when `path` holds a conversion such as %d or %05d.
bool is_picture_pattern(std::string_view path);

/// The files of `folder` that end in ".png" (any case), names with numbers in the order of the
/// numbers: frame_9 before frame_10. kNotFound, kIo; kUnsupported past `max_files`.
Result<std::vector<std::string>> list_pictures(const std::string& folder, int64_t max_files);

}  // namespace ultraflash
