#include "media/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "media/system_error.h"

namespace ultraflash {

Result<InputFile> InputFile::open(const std::string& path) {
  InputFile file;
  if (path == "-") {
    file.fd_ = STDIN_FILENO;
    file.name_ = "standard input";
  } else {
    file.name_ = path;
    file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    file.owned_ = true;
    if (file.fd_ < 0) return system_error(errno, path, "cannot be opened for reading");
  }
  struct stat info {};
  if (::fstat(file.fd_, &info) != 0) return system_error(errno, file.name_, "cannot be examined");
  if (S_ISDIR(info.st_mode)) {
    return make_status(StatusCode::kInvalidArgument, "{}: is a folder, expected a file",
                       file.name_);
  }
  if (S_ISREG(info.st_mode)) {
    file.size_ = info.st_size;
    // Standard input may be a file that somebody has read a part of.
    if (!file.owned_) file.position_ = std::max<int64_t>(::lseek(file.fd_, 0, SEEK_CUR), 0);
  }
  return file;
}

InputFile InputFile::over(std::span<const uint8_t> bytes, std::string name) {
  InputFile file;
  file.bytes_ = bytes;
  file.name_ = std::move(name);
  file.size_ = static_cast<int64_t>(bytes.size());
  return file;
}

InputFile::InputFile(InputFile&& other) noexcept { *this = std::move(other); }

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  if (this == &other) return *this;
  if (owned_ && fd_ >= 0) ::close(fd_);
  fd_ = std::exchange(other.fd_, -1);
  owned_ = std::exchange(other.owned_, false);
  bytes_ = other.bytes_;
  name_ = std::move(other.name_);
  size_ = other.size_;
  position_ = other.position_;
  buffer_ = std::move(other.buffer_);
  buffer_begin_ = other.buffer_begin_;
  return *this;
}

InputFile::~InputFile() {
  if (owned_ && fd_ >= 0) ::close(fd_);
}

Result<int64_t> InputFile::read_system(uint8_t* data, int64_t size) {
  while (true) {
    const ssize_t got = ::read(fd_, data, static_cast<size_t>(size));
    if (got >= 0) return static_cast<int64_t>(got);
    if (errno != EINTR) return system_error(errno, name_, "cannot be read");
  }
}

Result<int64_t> InputFile::read_some(std::span<uint8_t> out) {
  if (out.empty()) return 0;
  int64_t got = 0;
  if (fd_ < 0) {
    got = std::clamp<int64_t>(size_ - position_, 0, static_cast<int64_t>(out.size()));
    if (got > 0) std::memcpy(out.data(), bytes_.data() + position_, static_cast<size_t>(got));
  } else if (buffer_begin_ < static_cast<int64_t>(buffer_.size())) {
    got = std::min(static_cast<int64_t>(buffer_.size()) - buffer_begin_,
                   static_cast<int64_t>(out.size()));
    std::memcpy(out.data(), buffer_.data() + buffer_begin_, static_cast<size_t>(got));
    buffer_begin_ += got;
  } else {
    UF_ASSIGN(got, read_system(out.data(), static_cast<int64_t>(out.size())));
  }
  position_ += got;
  return got;
}

Result<int64_t> InputFile::read(std::span<uint8_t> out) {
  size_t done = 0;
  while (done < out.size()) {
    UF_ASSIGN(const int64_t got, read_some(out.subspan(done)));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return static_cast<int64_t>(done);
}

Result<std::span<const uint8_t>> InputFile::peek(int64_t count) {
  constexpr int64_t kMaxPeek = 4096;
  UF_CHECK(count >= 0 && count <= kMaxPeek, "peek of {} bytes, at most {}", count, kMaxPeek);
  if (fd_ < 0) {
    const int64_t left = std::clamp<int64_t>(size_ - position_, 0, count);
    return bytes_.subspan(static_cast<size_t>(std::min(position_, size_)),
                          static_cast<size_t>(left));
  }
  int64_t have = static_cast<int64_t>(buffer_.size()) - buffer_begin_;
  if (have < count) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + buffer_begin_);
    buffer_begin_ = 0;
    buffer_.resize(static_cast<size_t>(kMaxPeek));
    while (have < count) {
      Result<int64_t> got = read_system(buffer_.data() + have, kMaxPeek - have);
      if (!got.ok()) {
        buffer_.resize(static_cast<size_t>(have));
        return got.status();
      }
      if (*got == 0) break;
      have += *got;
    }
    buffer_.resize(static_cast<size_t>(have));
  }
  return std::span<const uint8_t>(buffer_.data() + buffer_begin_,
                                  static_cast<size_t>(std::min(have, count)));
}

Status InputFile::seek(int64_t position) {
  UF_CHECK(seekable() && position >= 0, "seek to {} in {}", position, name_);
  if (fd_ >= 0) {
    buffer_.clear();
    buffer_begin_ = 0;
    if (::lseek(fd_, position, SEEK_SET) < 0) {
      return system_error(errno, name_, "cannot be positioned");
    }
  }
  position_ = position;
  return {};
}

}  // namespace ultraflash
