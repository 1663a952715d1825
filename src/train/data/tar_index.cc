#include "train/data/tar_index.h"

#include <array>
#include <cstring>
#include <fstream>
#include <istream>
#include <optional>
#include <string_view>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr int64_t kBlock = 512;
constexpr size_t kMaxMembers = 10'000'000;
constexpr int64_t kMaxNameBytes = 64 << 10;  // of the members that carry long names

using Block = std::array<char, kBlock>;

std::string_view field(const Block& block, size_t offset, size_t size) {
  const std::string_view text(block.data() + offset, size);
  return text.substr(0, text.find('\0'));
}

// Octal digits, or the GNU form: a first byte of 0x80 and a big-endian number.
std::optional<int64_t> number(const Block& block, size_t offset, size_t size) {
  int64_t value = 0;
  if ((static_cast<unsigned char>(block[offset]) & 0x80U) != 0) {
    if (static_cast<unsigned char>(block[offset]) != 0x80U) return std::nullopt;
    for (size_t i = 1; i < size; ++i) {
      if (value > (INT64_MAX >> 9)) return std::nullopt;
      value = value * 256 + static_cast<unsigned char>(block[offset + i]);
    }
    return value;
  }
  std::string_view text = field(block, offset, size);
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  if (text.empty()) return std::nullopt;
  for (const char c : text) {
    if (c < '0' || c > '7') return std::nullopt;
    value = value * 8 + (c - '0');  // at most 12 digits
  }
  return value;
}

bool checksum_right(const Block& block) {
  int64_t sum = 0;
  for (size_t i = 0; i < block.size(); ++i) {
    sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(block[i]);
  }
  return number(block, 148, 8) == sum;
}

// The value of "path" among the "<length> <key>=<value>\n" records of a pax header.
std::string pax_path(std::string_view records) {
  std::string path;
  while (!records.empty()) {
    size_t length = 0;
    size_t digits = 0;
    while (digits < records.size() && digits < 8 && records[digits] >= '0' &&
           records[digits] <= '9') {
      length = length * 10 + static_cast<size_t>(records[digits++] - '0');
    }
    if (length <= digits + 1 || length > records.size()) break;
    const std::string_view record = records.substr(digits + 1, length - digits - 2);
    if (record.starts_with("path=")) path = record.substr(5);
    records.remove_prefix(length);
  }
  return path;
}

}  // namespace

Result<std::vector<TarMember>> read_tar_index(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return make_status(StatusCode::kNotFound, "{}: cannot be opened", path);
  return read_tar_index(stream, path);
}

Result<std::vector<TarMember>> read_tar_index(std::istream& stream, const std::string& path) {
  stream.seekg(0, std::ios::end);
  const auto file_size = static_cast<int64_t>(stream.tellg());
  std::vector<TarMember> members;
  std::string long_name;
  for (int64_t offset = 0; offset + kBlock <= file_size;) {
    Block block;
    stream.seekg(offset);
    if (!stream.read(block.data(), kBlock)) {
      return make_status(StatusCode::kIo, "{}: reading at byte {} failed", path, offset);
    }
    if (block[0] == '\0' &&
        std::string_view(block.data(), kBlock).find_first_not_of('\0') == std::string_view::npos) {
      return members;
    }
    const std::optional<int64_t> size = number(block, 124, 12);
    if (!checksum_right(block) || !size.has_value()) {
      return make_status(StatusCode::kMalformed, "{}: byte {} begins no tar header", path, offset);
    }
    const int64_t begin = offset + kBlock;
    if (*size > file_size - begin) {
      return make_status(StatusCode::kMalformed,
                         "{}: the member at byte {} has {} bytes, the file ends after {}", path,
                         offset, *size, file_size - begin);
    }
    const char type = block[156];
    if (type == 'L' || type == 'x') {
      if (*size > kMaxNameBytes) {
        return make_status(StatusCode::kUnsupported, "{}: the name at byte {} has {} bytes", path,
                           offset, *size);
      }
      std::string text(static_cast<size_t>(*size), '\0');
      if (!stream.read(text.data(), *size)) {
        return make_status(StatusCode::kIo, "{}: reading at byte {} failed", path, begin);
      }
      long_name = type == 'L' ? text.substr(0, text.find('\0')) : pax_path(text);
    } else {
      if (type == '0' || type == '\0') {
        std::string name(field(block, 0, 100));
        const std::string_view prefix = field(block, 345, 155);
        if (std::memcmp(block.data() + 257, "ustar\0", 6) == 0 && !prefix.empty()) {
          name = std::string(prefix) + "/" + name;
        }
        if (members.size() == kMaxMembers) {
          return make_status(StatusCode::kUnsupported, "{}: more than {} members", path,
                             kMaxMembers);
        }
        members.push_back({long_name.empty() ? std::move(name) : long_name, begin, *size});
      }
      long_name.clear();
    }
    offset = begin + (*size + kBlock - 1) / kBlock * kBlock;
  }
  return members;
}

}  // namespace ultraflash
