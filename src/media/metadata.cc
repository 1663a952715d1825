#include "media/metadata.h"

#include <algorithm>
#include <array>
#include <set>
#include <string>

#include "core/check.h"
#include "core/utf8.h"
#include "media/frame_sink.h"
#include "media/text.h"

namespace ultraflash {

bool is_metadata_text(std::string_view text) {
  return is_utf8(text) && text.find('\0') == std::string_view::npos;
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
    if (value.size() > kMaxValue || !is_metadata_text(value)) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: the metadata value of '{}' ({} bytes) is longer than {} bytes or not "
                         "UTF-8 text",
                         what, key, value.size(), kMaxValue);
    }
  }
  return {};
}

}  // namespace ultraflash
