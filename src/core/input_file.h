// InputFile: bytes of a file, a pipe or memory behind one reading interface, with errors as
// sentences. (A checkpoint is mapped instead: weights/mapped_file.h.)
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/file_descriptor.h"
#include "ultraflash/status.h"

namespace ultraflash {

class InputFile {
 public:
  /// A regular file, a pipe or a device; "-" is standard input. Fails with kNotFound,
  /// kInvalidArgument (a folder) or kIo.
  static Result<InputFile> open(const std::string& path);
  /// As open(), but only regular files: a pipe or a device is kInvalidArgument, and nobody waits
  /// for it. "-" is a file of that name.
  static Result<InputFile> open_regular(const std::string& path);
  /// Bytes that the caller keeps alive; `name` stands for the path in messages.
  static InputFile over(std::span<const uint8_t> bytes, std::string name);

  /// The path, "standard input" for "-".
  [[nodiscard]] const std::string& name() const { return name_; }
  /// -1 when it cannot be known (a pipe).
  [[nodiscard]] int64_t size() const { return size_; }
  [[nodiscard]] bool seekable() const { return size_ >= 0; }
  /// Offset of the next byte that read() returns.
  [[nodiscard]] int64_t position() const { return position_; }

  /// Fills `out` as far as there are bytes; fewer than asked means the end. kIo on failure.
  Result<int64_t> read(std::span<uint8_t> out);
  /// As read(), but returns what one call to the system gives: at least one byte before the end.
  Result<int64_t> read_some(std::span<uint8_t> out);
  /// The next bytes, at most `count`, without moving on. At most 4096.
  Result<std::span<const uint8_t>> peek(int64_t count);
  /// What is left. kUnsupported when that is more than `max_bytes`: a size that the system knows is
  /// refused before memory is asked for, and a pipe is read no further.
  Result<std::vector<uint8_t>> read_rest(int64_t max_bytes);
  /// Seekable inputs only. Past the end is allowed; reading there gives nothing.
  Status seek(int64_t position);
  /// Of the system; -1 for memory.
  [[nodiscard]] int descriptor() const { return file_.get(); }

 private:
  InputFile() = default;
  Status open_path(const std::string& path, int more_flags);
  Status examine();
  Result<int64_t> read_system(uint8_t* data, int64_t size);

  FileDescriptor file_;  // none: memory
  std::span<const uint8_t> bytes_;
  std::string name_;
  int64_t size_ = -1;
  int64_t position_ = 0;
  // Bytes [buffer_begin_, buffer_.size()) come before what the system returns next.
  std::vector<uint8_t> buffer_;
  int64_t buffer_begin_ = 0;
};

}  // namespace ultraflash
