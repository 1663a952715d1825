#include "core/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/system_error.h"

namespace ultraflash {

Result<InputFile> InputFile::open(const std::string& path) {
  InputFile file;
  if (path != "-") {
    UF_TRY(file.open_path(path, /*more_flags=*/0));
    return file;
  }
  file.file_ = FileDescriptor::borrowed(STDIN_FILENO);
  file.name_ = "standard input";
  UF_TRY(file.examine());
  // It may be a file that somebody has read a part of.
  if (file.seekable()) {
    file.position_ = std::max<int64_t>(::lseek(file.file_.get(), 0, SEEK_CUR), 0);
  }
  return file;
}

Result<InputFile> InputFile::open_regular(const std::string& path) {
  InputFile file;
  // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
  UF_TRY(file.open_path(path, O_NONBLOCK));
  if (!file.seekable()) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: is a pipe or device, not a regular file; copy it to a file first",
                       path);
  }
  return file;
}

Status InputFile::open_path(const std::string& path, int more_flags) {
  name_ = path;
  file_ = FileDescriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | more_flags));
  if (!file_.valid()) return system_error(errno, path, "cannot be opened for reading");
  return examine();
}

Status InputFile::examine() {
  struct stat info {};
  if (::fstat(file_.get(), &info) != 0) return system_error(errno, name_, "cannot be examined");
  if (S_ISDIR(info.st_mode)) {
    return make_status(StatusCode::kInvalidArgument, "{}: is a folder, expected a file", name_);
  }
  if (S_ISREG(info.st_mode)) size_ = info.st_size;
  return {};
}

InputFile InputFile::over(std::span<const uint8_t> bytes, std::string name) {
  InputFile file;
  file.bytes_ = bytes;
  file.name_ = std::move(name);
  file.size_ = static_cast<int64_t>(bytes.size());
  return file;
}

Result<int64_t> InputFile::read_system(uint8_t* data, int64_t size) {
  while (true) {
    const ssize_t got = ::read(file_.get(), data, static_cast<size_t>(size));
    if (got >= 0) return static_cast<int64_t>(got);
    if (errno != EINTR) return system_error(errno, name_, "cannot be read");
  }
}

Result<int64_t> InputFile::read_some(std::span<uint8_t> out) {
  if (out.empty()) return 0;
  int64_t got = 0;
  if (!file_.valid()) {
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
  if (!file_.valid()) {
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
  if (file_.valid()) {
    buffer_.clear();
    buffer_begin_ = 0;
    if (::lseek(file_.get(), position, SEEK_SET) < 0) {
      return system_error(errno, name_, "cannot be positioned");
    }
  }
  position_ = position;
  return {};
}

Result<std::vector<uint8_t>> InputFile::read_rest(int64_t max_bytes) {
  const int64_t known = seekable() ? std::max<int64_t>(size_ - position_, 0) : 0;
  if (known > max_bytes) {
    return make_status(StatusCode::kUnsupported, "{}: {} bytes, more than the {} that are read",
                       name_, known, max_bytes);
  }
  // What is known is only a guess: files of /proc say 0, and others grow.
  constexpr int64_t kPiece = int64_t{1} << 20;
  std::vector<uint8_t> bytes;
  while (true) {
    const auto have = static_cast<int64_t>(bytes.size());
    if (have > max_bytes) {
      return make_status(StatusCode::kUnsupported, "{}: goes on past the {} bytes that are read",
                         name_, max_bytes);
    }
    const int64_t wanted = have < known ? known - have + 1 : kPiece;
    bytes.resize(static_cast<size_t>(have + wanted));
    UF_ASSIGN(const int64_t got, read(std::span(bytes).subspan(static_cast<size_t>(have))));
    bytes.resize(static_cast<size_t>(have + got));
    if (got < wanted) return bytes;
  }
}

}  // namespace ultraflash
