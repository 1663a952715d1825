// Any bytes as a tar archive of clips. What is found lies inside of the archive, in order and
// apart.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>

#include "train/data/tar_index.h"

namespace {

/// Ends the run: what should hold for every input does not.
void require(bool condition) {
  if (!condition) std::abort();
}

// The fuzzer does not guess sums: the checksum of every block that could be a header is put right.
std::string with_checksums(std::string bytes) {
  for (size_t begin = 0; begin + 512 <= bytes.size(); begin += 512) {
    if (bytes[begin] == '\0') continue;
    unsigned sum = 0;
    for (size_t i = 0; i < 512; ++i) {
      sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(bytes[begin + i]);
    }
    for (size_t i = 0; i < 6; ++i) {
      bytes[begin + 153 - i] = static_cast<char>('0' + (sum >> (3 * i)) % 8);
    }
    bytes[begin + 154] = '\0';
    bytes[begin + 155] = ' ';
  }
  return bytes;
}

void check(const std::string& bytes) {
  std::istringstream stream(bytes);
  const auto members = ultraflash::read_tar_index(stream, "fuzz");
  if (!members.ok()) {
    require(!members.status().message().empty());
    return;
  }
  int64_t end = 0;
  for (const ultraflash::TarMember& member : *members) {
    require(member.size >= 0 && member.offset >= end + 512 && member.offset % 512 == 0);
    end = member.offset + member.size;
    require(end <= static_cast<int64_t>(bytes.size()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  check(bytes);
  check(with_checksums(bytes));
  return 0;
}
