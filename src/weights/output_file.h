// CheckpointFile: a file that appears under its name complete, or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"
#include "weights/bytes.h"

namespace ultraflash {

/// Writes go to `<path>.part`; commit() renames it over `path`. Until then `path` is untouched, and
/// an CheckpointFile that goes away uncommitted removes its part file.
class CheckpointFile {
 public:
  /// kIo when the file cannot be created (no such folder, no permission).
  static Result<CheckpointFile> create(const std::filesystem::path& path);

  CheckpointFile(CheckpointFile&& other) noexcept;
  CheckpointFile& operator=(CheckpointFile&& other) noexcept;
  CheckpointFile(const CheckpointFile&) = delete;
  CheckpointFile& operator=(const CheckpointFile&) = delete;
  ~CheckpointFile();

  /// Appends `bytes`. kIo with the system's reason when the disk is full or fails.
  Status write(ByteSpan bytes);
  Status write(std::string_view text) { return write(as_byte_span(text)); }
  /// Bytes accepted so far.
  [[nodiscard]] int64_t position() const { return position_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Hands everything to the disk and closes, still under the part name. May be called twice.
  Status close();
  /// close(), then gives the file its name.
  Status commit();

 private:
  explicit CheckpointFile(const std::filesystem::path& path);
  Status write_through(ByteSpan bytes);
  Status flush();
  Status failure(const char* action) const;
  void abandon() noexcept;

  std::filesystem::path path_;
  std::filesystem::path part_;
  int descriptor_ = -1;
  bool pending_ = false;  // the part file exists and is ours
  int64_t position_ = 0;
  std::vector<std::byte> buffer_;
};

}  // namespace ultraflash
