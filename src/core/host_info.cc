#include "core/host_info.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace ultraflash {
namespace {

// The first number in a file; 0 when there is none ("max").
uint64_t number_in(const char* path) {
  std::ifstream stream(path);
  uint64_t value = 0;
  return stream >> value ? value : 0;
}

}  // namespace

uint64_t host_memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGESIZE);
  uint64_t bytes = pages > 0 && page > 0
                       ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page)
                       : uint64_t{1} << 34;
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const uint64_t limit = number_in(path);
    if (limit != 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}

}  // namespace ultraflash
