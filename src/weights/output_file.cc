#include "weights/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr size_t kLargestWrite = size_t{1} << 30;  // Linux takes at most 2 GiB in one call

}  // namespace

CheckpointFile::CheckpointFile(const std::filesystem::path& path) : path_(path), part_(path) {
  part_ += ".part";
}

Result<CheckpointFile> CheckpointFile::create(const std::filesystem::path& path) {
  CheckpointFile file(path);
  // O_NOFOLLOW: a link left under the part name must not choose what is overwritten.
  file.descriptor_ =
      ::open(file.part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (file.descriptor_ < 0) return file.failure("create");
  file.pending_ = true;
  file.buffer_.reserve(kBufferBytes);
  return file;
}

CheckpointFile::CheckpointFile(CheckpointFile&& other) noexcept
    : path_(std::move(other.path_)),
      part_(std::move(other.part_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      pending_(std::exchange(other.pending_, false)),
      position_(other.position_),
      buffer_(std::move(other.buffer_)) {}

CheckpointFile& CheckpointFile::operator=(CheckpointFile&& other) noexcept {
  if (this != &other) {
    abandon();
    path_ = std::move(other.path_);
    part_ = std::move(other.part_);
    descriptor_ = std::exchange(other.descriptor_, -1);
    pending_ = std::exchange(other.pending_, false);
    position_ = other.position_;
    buffer_ = std::move(other.buffer_);
  }
  return *this;
}

CheckpointFile::~CheckpointFile() { abandon(); }

void CheckpointFile::abandon() noexcept {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (pending_) ::unlink(part_.c_str());
  descriptor_ = -1;
  pending_ = false;
}

Status CheckpointFile::failure(const char* action) const {
  const int error = errno;
  return make_status(StatusCode::kIo, "{}: cannot {} the file after {} bytes: {}", path_.string(),
                     action, position_, std::generic_category().message(error));
}

Status CheckpointFile::write(ByteSpan bytes) {
  UF_CHECK(descriptor_ >= 0, "{} is closed", path_.string());
  if (bytes.size() > kBufferBytes - buffer_.size()) {
    UF_TRY(flush());
  }
  if (bytes.size() > kBufferBytes) {
    UF_TRY(write_through(bytes));
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
  position_ += static_cast<int64_t>(bytes.size());
  return {};
}

Status CheckpointFile::flush() {
  UF_TRY(write_through(buffer_));
  buffer_.clear();
  return {};
}

Status CheckpointFile::write_through(ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        ::write(descriptor_, bytes.data(), std::min(bytes.size(), kLargestWrite));
    if (written < 0) {
      if (errno == EINTR) continue;
      return failure("write");
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

Status CheckpointFile::close() {
  if (descriptor_ < 0) return {};
  UF_TRY(flush());
  // A full disk may only show here, and the name must not point at data that a crash could lose.
  if (::fdatasync(descriptor_) != 0 && errno != EINVAL && errno != EROFS) return failure("write");
  if (::close(std::exchange(descriptor_, -1)) != 0) return failure("close");
  return {};
}

Status CheckpointFile::commit() {
  UF_TRY(close());
  UF_CHECK(pending_, "{} was committed twice", path_.string());
  if (std::rename(part_.c_str(), path_.c_str()) != 0) return failure("rename");
  pending_ = false;
  return {};
}

}  // namespace ultraflash
