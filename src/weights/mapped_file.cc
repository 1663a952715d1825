#include "weights/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/check.h"

namespace ultraflash {
namespace {

Status system_error(const std::filesystem::path& path, const char* action) {
  const int error = errno;
  const StatusCode code = error == ENOENT || error == ENOTDIR ? StatusCode::kNotFound
                          : error == ENOMEM                   ? StatusCode::kOutOfMemory
                                                              : StatusCode::kIo;
  return make_status(code, "{}: cannot {} the file: {}", path.string(), action,
                     std::generic_category().message(error));
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int value) : value_(value) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (value_ >= 0) ::close(value_);
  }
  [[nodiscard]] int get() const { return value_; }

 private:
  int value_;
};

}  // namespace

Result<std::shared_ptr<MappedFile>> MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) return system_error(path, "open");
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return system_error(path, "inspect");
  if (S_ISDIR(info.st_mode)) {
    return make_status(StatusCode::kInvalidArgument, "{}: is a folder, not a file", path.string());
  }
  if (!S_ISREG(info.st_mode)) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: is a pipe or device, not a regular file; copy it to a file first",
                       path.string());
  }
  if (info.st_size == 0) {
    return make_status(StatusCode::kMalformed,
                       "{}: is empty (0 bytes); the download or copy was interrupted",
                       path.string());
  }
  const auto size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) return system_error(path, "map");
  return std::shared_ptr<MappedFile>(
      new MappedFile(path, ByteSpan(static_cast<const std::byte*>(data), size)));
}

MappedFile::MappedFile(std::filesystem::path path, ByteSpan bytes)
    : path_(std::move(path)), bytes_(bytes) {}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

void MappedFile::advise(Advice advice, ByteSpan range) const {
  if (range.empty()) return;
  UF_CHECK(
      range.data() >= bytes_.data() && range.data() + range.size() <= bytes_.data() + bytes_.size(),
      "advice for bytes outside of {}", path_.string());
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  auto begin = static_cast<size_t>(range.data() - bytes_.data());
  size_t end = begin + range.size();
  begin = begin / page * page;
  if (advice == Advice::kDontNeed) {
    // Pages shared with neighbours stay: they may be in use.
    begin = static_cast<size_t>(range.data() - bytes_.data() + static_cast<ptrdiff_t>(page) - 1) /
            page * page;
    end = end == bytes_.size() ? end : end / page * page;
  }
  if (begin >= end) return;
  const int value = advice == Advice::kSequential ? MADV_SEQUENTIAL
                    : advice == Advice::kWillNeed ? MADV_WILLNEED
                                                  : MADV_DONTNEED;
  // The result is of no interest: a refused hint changes nothing.
  static_cast<void>(::madvise(const_cast<std::byte*>(bytes_.data() + begin), end - begin, value));
}

}  // namespace ultraflash
