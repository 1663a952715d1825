#include "core/output_file.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <utility>

#include "core/check.h"
#include "core/system_error.h"

namespace ultraflash {
namespace {

// Keeps SIGPIPE (the reader is gone) and SIGXFSZ (ulimit -f) away from this thread during a write,
// so that write() returns an error instead of ending the program. Both signals are sent to the
// writing thread itself; one that the write caused is taken back before the mask is restored.
class SignalGuard {
 public:
  SignalGuard() {
    sigemptyset(&guarded_);
    sigaddset(&guarded_, SIGPIPE);
    sigaddset(&guarded_, SIGXFSZ);
    sigpending(&pending_before_);
    pthread_sigmask(SIG_BLOCK, &guarded_, &mask_before_);
  }
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
  ~SignalGuard() {
    const int saved_errno = errno;
    for (const int signal : {SIGPIPE, SIGXFSZ}) {
      if (sigismember(&pending_before_, signal) == 1) continue;
      sigset_t pending;
      sigpending(&pending);
      if (sigismember(&pending, signal) != 1) continue;
      sigset_t one;
      sigemptyset(&one);
      sigaddset(&one, signal);
      const timespec no_wait{};
      while (sigtimedwait(&one, nullptr, &no_wait) < 0 && errno == EINTR) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
    errno = saved_errno;
  }

 private:
  sigset_t guarded_{};
  sigset_t pending_before_{};
  sigset_t mask_before_{};
};

// Linux takes at most 2 GiB in one call.
constexpr size_t kLargestWrite = size_t{1} << 30;

// The file that `path` leads to, so that a commit replaces it and not a link to it.
std::string follow_links(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr),
                                                         &std::free);
  return real ? std::string(real.get()) : path;
}

// True when `path` still names the file that is open.
bool is_named(int descriptor, const std::string& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(descriptor, &open) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

// Brings the name of a file in the folder of `path` to the disk. Some file systems cannot; the
// file itself is safe all the same.
void sync_folder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder =
      slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  const FileDescriptor file(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (file.valid()) static_cast<void>(::fsync(file.get()));
}

}  // namespace

bool is_standard_output(const std::string& path) { return path == "-" || path == "/dev/stdout"; }

OutputFile::OutputFile(const OutputFileOptions& options)
    : abandoned_(options.abandoned), buffer_bytes_(static_cast<size_t>(options.buffer_bytes)) {
  buffer_.reserve(buffer_bytes_);
}

Result<OutputFile> OutputFile::create(const std::string& path, const OutputFileOptions& options) {
  OutputFile file(options);
  file.name_ = is_standard_output(path) ? "standard output" : path;
  file.part_ = file.name_;
  file.target_ = path;
  struct stat info {};
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) {
    return make_status(StatusCode::kInvalidArgument, "{}: is a folder; name a file inside it",
                       path);
  }
  const bool is_stream = is_standard_output(path) || (exists && !S_ISREG(info.st_mode));
  if (is_stream && !options.allow_streams) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: is a pipe or a device, and this needs a regular file", file.name_);
  }
  if (is_standard_output(path)) {
    file.file_ = FileDescriptor::borrowed(STDOUT_FILENO);
    return file;
  }
  if (is_stream) {
    file.file_ = FileDescriptor(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file.file_.valid()) return system_error(errno, path, "cannot be opened for writing");
    return file;
  }
  if (exists) file.target_ = follow_links(path);
  UF_TRY(file.open_part(options.suffix));
  return file;
}

Status OutputFile::open_part(std::string_view suffix) {
  part_ = target_ + std::string(suffix);
  // Who held the part file when it was opened here may have given it its name or deleted it before
  // the lock was free: then another try finds the file that has the name now.
  constexpr int kTries = 10;
  for (int i = 0; i < kTries; ++i) {
    // O_NOFOLLOW: a link left under the part name must not choose what is overwritten.
    file_ = FileDescriptor(::open(part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666));
    if (!file_.valid()) return system_error(errno, part_, "cannot be created");
    if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) break;
    if (!is_named(file_.get(), part_)) continue;
    if (::ftruncate(file_.get(), 0) != 0) return system_error(errno, part_, "cannot be emptied");
    has_part_ = true;
    return {};
  }
  return make_status(StatusCode::kBusy,
                     "{}: another program is writing this file; choose another name or wait",
                     part_);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : file_(std::move(other.file_)),
      abandoned_(other.abandoned_),
      has_part_(std::exchange(other.has_part_, false)),
      name_(std::move(other.name_)),
      target_(std::move(other.target_)),
      part_(std::move(other.part_)),
      position_(other.position_),
      bytes_written_(other.bytes_written_),
      buffer_(std::move(other.buffer_)),
      buffer_bytes_(other.buffer_bytes_),
      failure_(std::move(other.failure_)) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  if (this == &other) return *this;
  abandon();
  file_ = std::move(other.file_);
  abandoned_ = other.abandoned_;
  has_part_ = std::exchange(other.has_part_, false);
  name_ = std::move(other.name_);
  target_ = std::move(other.target_);
  part_ = std::move(other.part_);
  position_ = other.position_;
  bytes_written_ = other.bytes_written_;
  buffer_ = std::move(other.buffer_);
  buffer_bytes_ = other.buffer_bytes_;
  failure_ = std::move(other.failure_);
  return *this;
}

OutputFile::~OutputFile() { abandon(); }

void OutputFile::abandon() noexcept {
  if (has_part_ && abandoned_ == OutputFileOptions::Abandoned::kRemove) {
    remove_part();
  } else if (file_.valid() && failure_.ok() && !buffer_.empty()) {
    static_cast<void>(send(buffer_));
  }
}

// Returns 0 or the error number.
int OutputFile::send(ByteSpan bytes) noexcept {
  const SignalGuard guard;
  while (!bytes.empty()) {
    const ssize_t written =
        ::write(file_.get(), bytes.data(), std::min(bytes.size(), kLargestWrite));
    if (written >= 0) {
      bytes_written_ += written;
      bytes = bytes.subspan(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {  // somebody made the pipe non-blocking
      pollfd wait{file_.get(), POLLOUT, 0};
      ::poll(&wait, 1, /*timeout=*/-1);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

Status OutputFile::fail(int error_number) {
  failure_ = Status(StatusCode::kIo, {});  // stays when there is no memory for the sentence
  const Status reason = system_error(error_number, part_, "cannot be written");
  failure_ = make_status(reason.code(), "{} (after {} bytes)", reason.message(), bytes_written_);
  return failure_;
}

Status OutputFile::flush() {
  if (!failure_.ok()) return failure_;
  if (const int error = send(buffer_); error != 0) return fail(error);
  buffer_.clear();
  return {};
}

Status OutputFile::write(ByteSpan bytes) {
  UF_CHECK(file_.valid(), "{} is closed", name_);
  if (bytes.size() > buffer_bytes_ - buffer_.size()) UF_TRY(flush());
  if (!failure_.ok()) return failure_;
  if (bytes.size() <= buffer_bytes_) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  } else if (const int error = send(bytes); error != 0) {
    return fail(error);
  }
  position_ += static_cast<int64_t>(bytes.size());
  return {};
}

Status OutputFile::seek(int64_t position) {
  UF_CHECK(has_part_ && file_.valid(), "{} cannot be positioned", name_);
  UF_TRY(flush());
  if (::lseek(file_.get(), position, SEEK_SET) < 0) {
    return system_error(errno, part_, "cannot be positioned");
  }
  position_ = position;
  return {};
}

Result<int64_t> OutputFile::size() const {
  struct stat info {};
  if (::fstat(file_.get(), &info) != 0) return system_error(errno, part_, "cannot be examined");
  return std::max<int64_t>(info.st_size, position_);
}

Status OutputFile::truncate(int64_t size) {
  UF_CHECK(has_part_ && file_.valid(), "{} cannot be cut", name_);
  if (failure_.ok()) UF_TRY(flush());
  buffer_.clear();
  while (::ftruncate(file_.get(), size) != 0) {
    if (errno != EINTR) return system_error(errno, part_, "cannot be cut");
  }
  if (position_ > size && ::lseek(file_.get(), size, SEEK_SET) < 0) {
    return system_error(errno, part_, "cannot be positioned");
  }
  position_ = std::min(position_, size);
  return {};
}

Status OutputFile::sync() {
  // The size goes with the bytes; times do not matter.
  while (::fdatasync(file_.get()) != 0) {
    if (errno == EINTR) continue;
    // A file system that cannot: the name stands all the same.
    if (errno == EINVAL || errno == ENOSYS || errno == EROFS) return {};
    return system_error(errno, part_, "cannot be brought to the disk");
  }
  return {};
}

Status OutputFile::close() {
  if (!file_.valid()) return failure_;
  UF_TRY(flush());
  if (has_part_) UF_TRY(sync());
  if (const int error = file_.close(); error != 0) return fail(error);
  return {};
}

Status OutputFile::commit(bool durable) {
  if (!has_part_) return file_.valid() ? flush() : failure_;
  if (file_.valid()) {
    UF_TRY(flush());
    if (durable) UF_TRY(sync());
  }
  if (!failure_.ok()) return failure_;
  // Network file systems may report a full disk only when a descriptor is closed. Closing a copy
  // asks them, and keeps the lock until the file has its name.
  if (file_.valid()) {
    FileDescriptor copy(::dup(file_.get()));
    if (const int error = copy.close(); error != 0) return fail(error);
  }
  if (std::rename(part_.c_str(), target_.c_str()) != 0) {
    return system_error(errno, target_, "cannot be given its name");
  }
  has_part_ = false;
  part_ = target_;
  if (durable) sync_folder(target_);
  static_cast<void>(file_.close());
  return {};
}

void OutputFile::remove_part() noexcept {
  if (!has_part_) return;
  ::unlink(part_.c_str());
  has_part_ = false;
  buffer_.clear();
  file_.close();
}

}  // namespace ultraflash
