// OutputFile: a file that takes its name when it is complete.
//
// A regular file grows as "<path>.part". Until commit() nothing changes under its name; then the
// part file replaces what was there in one step. Pipes, terminals and devices have no part file and
// are written directly.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/bytes.h"
#include "core/file_descriptor.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct OutputFileOptions {
  enum class Abandoned : uint8_t {
    kRemove,
    kKeep,  // half a file is of use: a video that plays
  };
  /// What becomes of a part file that is not committed.
  Abandoned abandoned = Abandoned::kRemove;
  /// Whether the path may be a pipe, a terminal or a device, "-" for standard output among them.
  bool allow_streams = false;
  /// Small writes are collected up to this many bytes; 0: each goes to the system at once.
  int64_t buffer_bytes = int64_t{1} << 20;
  /// What the part file has after the name.
  std::string_view suffix = ".part";
};

class OutputFile {
 public:
  /// Links are followed: commit() replaces the file that `path` leads to. A part file that somebody
  /// left behind is started anew; one that is being written is kBusy. Fails with kNotFound (no such
  /// folder), kInvalidArgument (a folder, or a stream where none is allowed) or kIo otherwise.
  static Result<OutputFile> create(const std::string& path, const OutputFileOptions& options = {});

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  ~OutputFile();

  /// The path as given, "standard output" for "-".
  [[nodiscard]] const std::string& name() const { return name_; }
  /// What the bytes are written to now: "<path>.part", or name() when there is no part file.
  [[nodiscard]] const std::string& part_path() const { return part_; }
  /// True for a regular file until it is committed or removed: it can be positioned and truncated.
  [[nodiscard]] bool has_part() const { return has_part_; }
  /// Offset of the next byte.
  [[nodiscard]] int64_t position() const { return position_; }
  /// What the system has taken so far; without a buffer, everything.
  [[nodiscard]] int64_t bytes_written() const { return bytes_written_; }
  [[nodiscard]] Result<int64_t> size() const;

  /// Writes all of `bytes` at the current position. kIo with the system's reason when the disk is
  /// full or fails; a closed pipe is kIo too, never SIGPIPE. After a failure every write() and
  /// commit() repeats it.
  Status write(ByteSpan bytes);
  Status write(std::span<const uint8_t> bytes) { return write(as_byte_span(bytes)); }
  Status write(std::string_view text) { return write(as_byte_span(text)); }
  /// Part files only.
  Status seek(int64_t position);
  /// Part files only: cuts off what follows `size` bytes. Works on a full disk, after a failure.
  Status truncate(int64_t size);

  /// Brings all bytes to the disk and closes, still under the part name, so that many files can
  /// wait for one commit. From here on another writer of the same path is no longer kept out.
  Status close();
  /// Part file: gives it its name. `durable`: waits until bytes and name are on the disk, so that
  /// neither a power cut nor a crash can leave an empty or an old file there. Others: sends what
  /// the buffer holds.
  Status commit(bool durable = true);
  /// Deletes the part file, if there is one.
  void remove_part() noexcept;

 private:
  explicit OutputFile(const OutputFileOptions& options);
  Status open_part(std::string_view suffix);
  int send(ByteSpan bytes) noexcept;
  Status fail(int error_number);
  Status flush();
  Status sync();
  void abandon() noexcept;

  FileDescriptor file_;
  OutputFileOptions::Abandoned abandoned_;
  bool has_part_ = false;
  std::string name_;
  std::string target_;  // name_ with symbolic links followed: what commit() replaces
  std::string part_;
  int64_t position_ = 0;
  int64_t bytes_written_ = 0;
  std::vector<std::byte> buffer_;
  size_t buffer_bytes_;
  Status failure_;  // of the first write() that failed
};

/// True for "-" and "/dev/stdout".
bool is_standard_output(const std::string& path);

}  // namespace ultraflash
