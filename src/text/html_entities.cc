#include "text/html_entities.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "text/code_points.h"

namespace ultraflash {
namespace {

constexpr uint8_t kBare = 1;    // recognised without a semicolon too
constexpr uint8_t kFolded = 2;  // capitals of a name, see tools/make_html_entities.py

struct Entity {
  std::string_view name;
  std::array<char32_t, 3> value;  // zeros at the end
  uint8_t flags;
};

constexpr Entity kEntities[] = {
#include "text/html_entities.inc"
};

constexpr size_t kLongestName = 31;
constexpr size_t kLongestBareName = 6;

const Entity* find_entity(std::string_view name) {
  const auto* found = std::lower_bound(
      std::begin(kEntities), std::end(kEntities), name,
      [](const Entity& entity, std::string_view value) { return entity.name < value; });
  return found != std::end(kEntities) && found->name == name ? found : nullptr;
}

void append_value(std::u32string& out, const Entity& entity) {
  for (const char32_t code_point : entity.value) {
    if (code_point != 0) out.push_back(code_point);
  }
}

bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }
bool is_alphanumeric(char32_t c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
int hex_value(char32_t c) {
  if (is_digit(c)) return static_cast<int>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<int>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<int>(c - 'A' + 10);
  return -1;
}

// HTML reads references to the C1 controls as Windows-1252, where those bytes are printable.
constexpr std::array<char32_t, 32> kWindows1252 = {
    0x20ac, 0x81,   0x201a, 0x192,  0x201e, 0x2026, 0x2020, 0x2021, 0x2c6,  0x2030, 0x160,
    0x2039, 0x152,  0x8d,   0x17d,  0x8f,   0x90,   0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
    0x2013, 0x2014, 0x2dc,  0x2122, 0x161,  0x203a, 0x153,  0x9d,   0x17e,  0x178};

/// Appends what the numeric reference `value` stands for: nothing for what HTML calls invalid.
void append_numeric(std::u32string& out, char32_t value) {
  if (value == 0 || value > kLastCodePoint || (value >= 0xd800 && value <= 0xdfff)) {
    out.push_back(0xfffd);
    return;
  }
  if (value >= 0x80 && value <= 0x9f) {
    out.push_back(kWindows1252[value - 0x80]);
    return;
  }
  const bool control =
      value < 0x20 && value != '\t' && value != '\n' && value != '\f' && value != '\r';
  const bool noncharacter = (value >= 0xfdd0 && value <= 0xfdef) || (value & 0xfffe) == 0xfffe;
  if (!control && value != 0x7f && !noncharacter) out.push_back(value);
}

struct Numeric {
  size_t end = 0;      // after the last digit; 0 when there is no digit
  char32_t value = 0;  // stays above kLastCodePoint once it got there
};

/// The number that starts at `begin`, just after "&#".
Numeric parse_numeric(std::u32string_view text, size_t begin) {
  size_t i = begin;
  const bool hexadecimal = i < text.size() && (text[i] == 'x' || text[i] == 'X');
  if (hexadecimal) ++i;
  Numeric result;
  for (; i < text.size(); ++i) {
    const int digit = hex_value(text[i]);
    if (digit < 0 || (!hexadecimal && digit > 9)) break;
    result.value = std::min<char32_t>(
        result.value * (hexadecimal ? 16 : 10) + static_cast<char32_t>(digit), kLastCodePoint + 1);
    result.end = i + 1;
  }
  return result;
}

/// The ASCII characters of text[begin, end), as a key for the table; empty when one is not ASCII.
std::string_view ascii_name(std::u32string_view text, size_t begin, size_t end,
                            std::array<char, kLongestName>& buffer) {
  if (end - begin > buffer.size()) return {};
  for (size_t i = begin; i < end; ++i) {
    if (text[i] >= 0x80) return {};
    buffer[i - begin] = static_cast<char>(text[i]);
  }
  return {buffer.data(), end - begin};
}

/// Length of the longest name without a semicolon that text[begin, end) starts with; 0 for none.
size_t longest_bare_prefix(std::u32string_view text, size_t begin, size_t end,
                           const Entity** entity) {
  std::array<char, kLongestName> buffer;
  for (size_t length = std::min(end - begin, kLongestBareName); length >= 2; --length) {
    const std::string_view name = ascii_name(text, begin, begin + length, buffer);
    const Entity* found = name.empty() ? nullptr : find_entity(name);
    if (found != nullptr && (found->flags & kBare) != 0) {
      *entity = found;
      return length;
    }
  }
  return 0;
}

/// Appends what the name text[begin, end) with its semicolon stands for; false when nothing.
bool append_strict_name(std::u32string& out, std::u32string_view text, size_t begin, size_t end) {
  std::array<char, kLongestName> buffer;
  const std::string_view name = ascii_name(text, begin, end, buffer);
  if (name.empty()) return false;
  if (const Entity* found = find_entity(name); found != nullptr) {
    append_value(out, *found);
    return true;
  }
  // Capitals of a name in lower case, unless HTML would read the beginning of the capitals.
  std::array<char, kLongestName> lower;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] >= 'a' && name[i] <= 'z') return false;
    lower[i] = name[i] >= 'A' && name[i] <= 'Z' ? static_cast<char>(name[i] + 32) : name[i];
  }
  const Entity* found = find_entity({lower.data(), name.size()});
  const Entity* prefix = nullptr;
  if (found == nullptr || longest_bare_prefix(text, begin, end, &prefix) > 0) return false;
  for (const char32_t code_point : found->value) {
    if (code_point == 0) break;
    out.push_back(
        static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code_point))));
  }
  return true;
}

/// Appends what the reference at `begin` (its '&') stands for and returns where it ends; 0 when it
/// is none. Follows HTML.
size_t append_reference(std::u32string& out, std::u32string_view text, size_t begin) {
  size_t i = begin + 1;
  if (i < text.size() && text[i] == '#') {
    const Numeric numeric = parse_numeric(text, i + 1);
    if (numeric.end == 0) return 0;
    append_numeric(out, numeric.value);
    return numeric.end + (numeric.end < text.size() && text[numeric.end] == ';' ? 1 : 0);
  }
  const auto ends_name = [](char32_t c) {
    return c == '\t' || c == '\n' || c == '\f' || c == ' ' || c == '<' || c == '&' || c == '#' ||
           c == ';';
  };
  while (i < text.size() && i <= begin + 32 && !ends_name(text[i])) ++i;
  const Entity* entity = nullptr;
  std::array<char, kLongestName> buffer;
  if (i < text.size() && text[i] == ';') {
    const std::string_view name = ascii_name(text, begin + 1, i, buffer);
    entity = name.empty() ? nullptr : find_entity(name);
    if (entity != nullptr && (entity->flags & kFolded) == 0) {
      append_value(out, *entity);
      return i + 1;
    }
  }
  const size_t length = longest_bare_prefix(text, begin + 1, i, &entity);
  if (length == 0) return 0;
  append_value(out, *entity);
  return begin + 1 + length;
}

/// As append_reference(), by the rules of unescape_html_strictly().
size_t append_strict_reference(std::u32string& out, std::u32string_view text, size_t begin) {
  constexpr size_t kMaxCharacters = 24;
  const bool numeric = begin + 1 < text.size() && text[begin + 1] == '#';
  const size_t name = begin + (numeric ? 2 : 1);
  size_t end = name;
  while (end < text.size() && end - name < kMaxCharacters && is_alphanumeric(text[end])) ++end;
  if (end == name || end == text.size() || text[end] != ';') return 0;
  if (!numeric) return append_strict_name(out, text, name, end) ? end + 1 : 0;
  const Numeric number = parse_numeric(text, name);
  if (number.end != end || number.value == ';') return 0;  // "&#59;" would read as its own end
  append_numeric(out, number.value);
  return end + 1;
}

template <typename Append>
std::u32string replace_references(std::u32string_view text, Append append) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t end = text[i] == '&' ? append(out, text, i) : 0;
    if (end == 0) out.push_back(text[i]);
    i = end == 0 ? i + 1 : end;
  }
  return out;
}

}  // namespace

std::u32string unescape_html(std::u32string_view text) {
  return replace_references(text, append_reference);
}

std::u32string unescape_html_strictly(std::u32string_view text) {
  return replace_references(text, append_strict_reference);
}

}  // namespace ultraflash
