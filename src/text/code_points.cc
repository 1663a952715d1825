#include "text/code_points.h"

#include <bit>
#include <cstdint>

#include "core/check.h"
#include "core/utf8.h"

namespace ultraflash {
char32_t next_code_point(std::string_view text, size_t& offset) {
  const auto byte_at = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte_at(offset);
  if (lead < 0x80) {
    ++offset;
    return lead;
  }
  const auto length = static_cast<size_t>(std::countl_one(lead));
  char32_t code_point = lead & (0xffU >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    code_point = (code_point << 6) | (byte_at(offset + i) & 0x3fU);
  }
  offset += length;
  return code_point;
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto put = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
    return;
  }
  if (code_point < 0x800) {
    put(0xc0 | (code_point >> 6));
  } else {
    if (code_point < 0x10000) {
      put(0xe0 | (code_point >> 12));
    } else {
      put(0xf0 | (code_point >> 18));
      put(0x80 | ((code_point >> 12) & 0x3f));
    }
    put(0x80 | ((code_point >> 6) & 0x3f));
  }
  put(0x80 | (code_point & 0x3f));
}

Result<std::u32string> decode_utf8(std::string_view text, std::string_view what) {
  UF_TRY(validate_utf8(text, what));
  std::u32string result;
  result.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) result.push_back(next_code_point(text, offset));
  return result;
}

std::string encode_utf8(std::u32string_view text) {
  std::string result;
  result.reserve(text.size());
  for (const char32_t code_point : text) append_utf8(result, code_point);
  return result;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

}  // namespace ultraflash
