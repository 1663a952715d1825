// FileDescriptor: an open file of the operating system.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <utility>

namespace ultraflash {

/// Closes its file when it goes away, unless the file is borrowed.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  /// Takes over what open() returned; negative: no file.
  explicit FileDescriptor(int value) : value_(value), owned_(true) {}
  /// Somebody else's file, such as standard input: never closed here.
  static FileDescriptor borrowed(int value) {
    FileDescriptor descriptor(value);
    descriptor.owned_ = false;
    return descriptor;
  }
  FileDescriptor(FileDescriptor&& other) noexcept
      : value_(std::exchange(other.value_, -1)), owned_(other.owned_) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this == &other) return *this;
    close();
    value_ = std::exchange(other.value_, -1);
    owned_ = other.owned_;
    return *this;
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() { close(); }

  [[nodiscard]] int get() const { return value_; }
  [[nodiscard]] bool valid() const { return value_ >= 0; }
  [[nodiscard]] bool owned() const { return owned_; }

  /// Lets the file go. Returns 0, or the error number of a failure that closing brought to light.
  int close() noexcept {
    const int value = std::exchange(value_, -1);
    return value >= 0 && owned_ && ::close(value) != 0 ? errno : 0;
  }

 private:
  int value_ = -1;
  bool owned_ = false;
};

}  // namespace ultraflash
