// OutputFile: where a sink's bytes go. A regular file grows as "<path>.part" and takes its name
// only when it is complete; pipes, terminals and devices are written directly. Internal to the
// media layer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "ultraflash/status.h"

namespace ultraflash {

class OutputFile {
 public:
  /// "-" and "/dev/stdout" are standard output. The part file of a regular file is the path with
  /// `suffix`; an existing one is started anew, unless another writer holds it (kBusy). Fails with
  /// kNotFound, kInvalidArgument or kIo otherwise.
  static Result<OutputFile> create(const std::string& path, std::string_view suffix = ".part");

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  /// Closes; a part file that was not committed or removed stays.
  ~OutputFile();

  /// The path as given, "standard output" for "-".
  [[nodiscard]] const std::string& name() const { return name_; }
  /// What the bytes are written to now: "<path>.part", or name() when there is no part file.
  [[nodiscard]] const std::string& part_path() const { return part_; }
  /// True for a regular file: it can be positioned, truncated and committed.
  [[nodiscard]] bool has_part() const { return has_part_; }
  [[nodiscard]] int64_t bytes_written() const { return bytes_written_; }

  /// Writes all of `bytes` at the current position. A closed pipe is kIo, never SIGPIPE.
  Status write(std::span<const uint8_t> bytes);
  /// Part files only.
  Status seek(int64_t position);
  Result<int64_t> position() const;
  Result<int64_t> size() const;
  /// Part files only: cuts off what follows `size` bytes. Works on a full disk.
  Status truncate(int64_t size);
  /// Part file: gives it its name in one step, replacing what was there. `durable`: waits until the
  /// bytes are on the disk, so that a power cut cannot leave an empty file under that name. Others:
  /// nothing to do.
  Status commit(bool durable = true);
  /// Deletes the part file, if there is one.
  void remove_part() noexcept;

 private:
  OutputFile() = default;
  void close() noexcept;

  int fd_ = -1;
  bool owned_ = false;
  bool has_part_ = false;
  std::string name_;
  std::string target_;  // name_ with symbolic links followed: what commit() replaces
  std::string part_;
  int64_t bytes_written_ = 0;
};

/// True for "-" and "/dev/stdout".
bool is_standard_output(const std::string& path);

}  // namespace ultraflash
