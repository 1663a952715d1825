// MappedFile: a whole file as read-only memory, so that a checkpoint of any size costs no copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "core/bytes.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Thread-safe: nothing changes after open().
///
/// The file must not be shortened while it is mapped: the system answers a read of a page that is
/// no longer there with SIGBUS, which ends the process. Replace a checkpoint by renaming a new file
/// over it, as everything in this folder that writes files does; the old contents then stay
/// readable through the mapping.
class MappedFile {
 public:
  enum class Advice : uint8_t {
    kSequential,  // read ahead far, drop pages behind the reader
    kWillNeed,    // start reading now
    kDontNeed,    // drop the pages from this process; a later read fetches them again
  };

  /// kNotFound when there is no such file; kInvalidArgument for a folder, pipe or device;
  /// kMalformed for an empty file; kIo or kOutOfMemory when the system refuses.
  static Result<std::shared_ptr<MappedFile>> open(const std::filesystem::path& path);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] ByteSpan bytes() const { return bytes_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Tells the system how `range`, a part of bytes(), will be used. Only ever a hint.
  void advise(Advice advice, ByteSpan range) const;

 private:
  MappedFile(std::filesystem::path path, ByteSpan bytes);

  std::filesystem::path path_;
  ByteSpan bytes_;
};

}  // namespace ultraflash
