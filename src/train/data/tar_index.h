// The members of a .tar file: names and places, without reading their contents.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

struct TarMember {
  std::string name;
  int64_t offset = 0;  // of its bytes in the archive
  int64_t size = 0;
};

/// Regular files of an archive in the ustar, GNU or pax format, in its order. Other kinds of
/// members are passed over. kNotFound, kIo, kMalformed (checksums, numbers, an end in the middle),
/// kUnsupported past ten million members.
Result<std::vector<TarMember>> read_tar_index(const std::string& path);
/// Of an archive that is read from `stream`, which can seek; `name` begins messages.
Result<std::vector<TarMember>> read_tar_index(std::istream& stream, const std::string& name);

}  // namespace ultraflash
