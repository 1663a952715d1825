#include "media/output_file.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <utility>

#include "core/check.h"
#include "media/system_error.h"

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

// The file that `path` leads to, so that a commit replaces it and not a link to it.
std::string follow_links(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr),
                                                         &std::free);
  return real ? std::string(real.get()) : path;
}

}  // namespace

bool is_standard_output(const std::string& path) { return path == "-" || path == "/dev/stdout"; }

Result<OutputFile> OutputFile::create(const std::string& path, std::string_view suffix) {
  OutputFile file;
  if (is_standard_output(path)) {
    file.fd_ = STDOUT_FILENO;
    file.name_ = "standard output";
    file.part_ = file.name_;
    return file;
  }
  file.name_ = path;
  file.target_ = path;
  file.owned_ = true;
  struct stat info {};
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: is a folder; name a file inside it, such as {}{}video.mp4", path, path,
                       path.ends_with('/') ? "" : "/");
  }
  if (exists && !S_ISREG(info.st_mode)) {
    file.part_ = path;
    file.fd_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (file.fd_ < 0) return system_error(errno, path, "cannot be opened for writing");
    return file;
  }
  if (exists) file.target_ = follow_links(path);
  file.has_part_ = true;
  file.part_ = file.target_ + std::string(suffix);
  file.fd_ = ::open(file.part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (file.fd_ < 0) return system_error(errno, file.part_, "cannot be created");
  if (::flock(file.fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return make_status(StatusCode::kBusy,
                       "{}: another program is writing this file; choose another name or wait",
                       file.part_);
  }
  if (::ftruncate(file.fd_, 0) != 0) {
    return system_error(errno, file.part_, "cannot be emptied");
  }
  return file;
}

OutputFile::OutputFile(OutputFile&& other) noexcept { *this = std::move(other); }

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  if (this == &other) return *this;
  close();
  fd_ = std::exchange(other.fd_, -1);
  owned_ = other.owned_;
  has_part_ = other.has_part_;
  name_ = std::move(other.name_);
  target_ = std::move(other.target_);
  part_ = std::move(other.part_);
  bytes_written_ = other.bytes_written_;
  return *this;
}

OutputFile::~OutputFile() { close(); }

void OutputFile::close() noexcept {
  if (owned_ && fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Status OutputFile::write(std::span<const uint8_t> bytes) {
  const SignalGuard guard;
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {  // somebody made the pipe non-blocking
        pollfd wait{fd_, POLLOUT, 0};
        ::poll(&wait, 1, /*timeout=*/-1);
        continue;
      }
      const Status reason = system_error(errno, part_, "cannot be written");
      return make_status(reason.code(), "{} (after {} bytes)", reason.message(), bytes_written_);
    }
    bytes_written_ += written;
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

Status OutputFile::seek(int64_t position) {
  UF_CHECK(has_part_, "{} cannot be positioned", name_);
  if (::lseek(fd_, position, SEEK_SET) < 0) {
    return system_error(errno, part_, "cannot be positioned");
  }
  return {};
}

Result<int64_t> OutputFile::position() const {
  const off_t at = ::lseek(fd_, 0, SEEK_CUR);
  if (at < 0) return system_error(errno, part_, "cannot be positioned");
  return static_cast<int64_t>(at);
}

Result<int64_t> OutputFile::size() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) return system_error(errno, part_, "cannot be examined");
  return static_cast<int64_t>(info.st_size);
}

Status OutputFile::truncate(int64_t size) {
  UF_CHECK(has_part_, "{} cannot be cut", name_);
  while (::ftruncate(fd_, size) != 0) {
    if (errno != EINTR) return system_error(errno, part_, "cannot be cut");
  }
  return {};
}

Status OutputFile::commit(bool durable) {
  if (!has_part_) return {};
  while (durable && ::fsync(fd_) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == ENOSYS) break;  // a file system that cannot; the rename stands
    return system_error(errno, part_, "cannot be brought to the disk");
  }
  if (std::rename(part_.c_str(), target_.c_str()) != 0) {
    return system_error(errno, target_, "cannot be given its name");
  }
  has_part_ = false;
  part_ = target_;
  close();
  return {};
}

void OutputFile::remove_part() noexcept {
  if (!has_part_) return;
  ::unlink(part_.c_str());
  has_part_ = false;
  close();
}

}  // namespace ultraflash
