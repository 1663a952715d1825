#include "text/character_map.h"

#include <utf8proc.h>

#include "core/check.h"
#include "core/utf8.h"
#include "text/code_points.h"

namespace ultraflash {
namespace {

/// Longest grapheme cluster that is looked up as a whole, in bytes.
constexpr size_t kMaxClusterBytes = 5;

// A unit of the trie: bit 31 marks a value (the other bits hold it), bits 0-7 are the label, bit 8
// says that a value follows, bits 10-30 the offset, shifted by 8 if bit 9 is set.
bool has_value(uint32_t unit) { return ((unit >> 8) & 1) != 0; }
uint32_t value_of(uint32_t unit) { return unit & 0x7fffffffU; }
uint32_t label_of(uint32_t unit) { return unit & 0x800000ffU; }
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }

uint32_t read_u32(std::string_view bytes, size_t offset) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value |= uint32_t{static_cast<uint8_t>(bytes[offset + i])} << (8 * i);
  }
  return value;
}

}  // namespace

Result<CharacterMap> CharacterMap::parse(std::string_view bytes, std::string_view name) {
  CharacterMap map;
  if (bytes.empty()) return map;
  const uint64_t table_bytes = bytes.size() < 4 ? 0 : read_u32(bytes, 0);
  if (table_bytes == 0 || table_bytes % 4 != 0 || table_bytes > bytes.size() - 4) {
    return make_status(StatusCode::kMalformed,
                       "{}: the character map has {} bytes and says that its table takes {}", name,
                       bytes.size(), table_bytes);
  }
  map.replacements_ = bytes.substr(4 + static_cast<size_t>(table_bytes));
  if (!validate_utf8(map.replacements_).ok() || map.replacements_.empty() ||
      map.replacements_.back() != '\0') {
    return make_status(
        StatusCode::kMalformed,
        "{}: the replacements of the character map are not UTF-8 that ends in a zero", name);
  }
  map.units_.resize(static_cast<size_t>(table_bytes / 4));
  for (size_t i = 0; i < map.units_.size(); ++i) map.units_[i] = read_u32(bytes, 4 + 4 * i);
  return map;
}

std::optional<std::string_view> CharacterMap::find(std::string_view key) const {
  if (units_.empty()) return std::nullopt;
  size_t node = offset_of(units_[0]);
  for (const char c : key) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte == 0) return std::nullopt;
    node ^= byte;
    if (node >= units_.size() || label_of(units_[node]) != byte) return std::nullopt;
    const uint32_t unit = units_[node];
    node ^= offset_of(unit);
    if (!has_value(unit)) continue;
    if (node >= units_.size()) return std::nullopt;
    const size_t begin = value_of(units_[node]);
    if (begin >= replacements_.size()) return std::nullopt;
    // The zero at the end was checked. A value that points into the middle of a character is wrong.
    if ((static_cast<uint8_t>(replacements_[begin]) & 0xc0) == 0x80) return std::nullopt;
    return std::string_view(replacements_).substr(begin, replacements_.find('\0', begin) - begin);
  }
  return std::nullopt;
}

std::string CharacterMap::normalise(std::string_view text) const {
  if (empty()) return std::string(text);
  std::string out;
  out.reserve(text.size());
  for (size_t begin = 0; begin < text.size();) {
    // The grapheme cluster at `begin`.
    size_t end = begin;
    char32_t previous = next_code_point(text, end);
    utf8proc_int32_t state = 0;
    while (end < text.size()) {
      size_t next = end;
      const char32_t c = next_code_point(text, next);
      if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(previous),
                                           static_cast<utf8proc_int32_t>(c), &state)) {
        break;
      }
      previous = c;
      end = next;
    }
    const std::string_view cluster = text.substr(begin, end - begin);
    begin = end;
    if (cluster.size() <= kMaxClusterBytes) {
      if (const auto replacement = find(cluster); replacement.has_value()) {
        out += *replacement;
        continue;
      }
    }
    for (size_t i = 0; i < cluster.size();) {
      size_t next = i;
      next_code_point(cluster, next);
      const std::string_view character = cluster.substr(i, next - i);
      out += find(character).value_or(character);
      i = next;
    }
  }
  return out;
}

}  // namespace ultraflash
