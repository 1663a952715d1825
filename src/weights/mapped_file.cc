#include "weights/mapped_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/check.h"
#include "core/input_file.h"
#include "core/system_error.h"

namespace ultraflash {

Result<std::shared_ptr<MappedFile>> MappedFile::open(const std::filesystem::path& path) {
  UF_ASSIGN(const InputFile file, InputFile::open_regular(path.string()));
  if (file.size() == 0) {
    return make_status(StatusCode::kMalformed,
                       "{}: is empty (0 bytes); the download or copy was interrupted",
                       path.string());
  }
  const auto size = static_cast<size_t>(file.size());
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (data == MAP_FAILED) return system_error(errno, path.string(), "cannot be mapped");
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
