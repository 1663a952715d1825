#include "media/metadata.h"

#include <algorithm>
#include <array>
#include <set>
#include <string>

#include "core/check.h"
#include "media/frame_sink.h"
#include "media/text.h"

namespace ultraflash {
bool is_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead == 0) return false;
    const size_t length = lead < 0x80   ? 1
                          : lead < 0xc2 ? 0
                          : lead < 0xe0 ? 2
                          : lead < 0xf0 ? 3
                          : lead < 0xf5 ? 4
                                        : 0;
    if (length == 0 || i + length > text.size()) return false;
    for (size_t k = 1; k < length; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0U) != 0x80) return false;
    }
    if (length > 2) {
      const auto second = static_cast<unsigned char>(text[i + 1]);
      if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second >= 0xa0) ||
          (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second >= 0x90)) {
        return false;
      }
    }
    i += length;
  }
  return true;
}

bool is_container_key(std::string_view key) {
  constexpr std::array<std::string_view, 5> kKeys = {"encoder", "creation_time", "major_brand",
                                                     "minor_version", "compatible_brands"};
  return std::find(kKeys.begin(), kKeys.end(), to_lower(key)) != kKeys.end();
}

Status check_metadata(const Metadata& metadata, const std::string& what) {
  constexpr size_t kMaxPairs = 256;
  constexpr size_t kMaxKey = 128;
  constexpr size_t kMaxValue = size_t{1} << 20;
  if (metadata.size() > kMaxPairs) {
    return make_status(StatusCode::kInvalidArgument, "{}: {} metadata entries, at most {}", what,
                       metadata.size(), kMaxPairs);
  }
  std::set<std::string> seen;
  for (const auto& [key, value] : metadata) {
    const bool printable =
        std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c <= '~'; });
    if (key.empty() || key.size() > kMaxKey || !printable) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: a metadata key of {} bytes is empty, too long, or holds a space or a "
                         "character outside ASCII; use 1 to {} of the characters ! to ~",
                         what, key.size(), kMaxKey);
    }
    if (is_container_key(key)) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: the container writes the metadata key '{}' itself; choose another",
                         what, key);
    }
    if (!seen.insert(to_lower(key)).second) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: the metadata key '{}' is given twice (upper and lower case are the "
                         "same key in MP4)",
                         what, key);
    }
    if (value.size() > kMaxValue || !is_utf8(value)) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: the metadata value of '{}' ({} bytes) is longer than {} bytes or not "
                         "UTF-8 text",
                         what, key, value.size(), kMaxValue);
    }
  }
  return {};
}

}  // namespace ultraflash
