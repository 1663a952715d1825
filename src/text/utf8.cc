#include "text/utf8.h"

#include <cstdint>

#include "core/check.h"

namespace ultraflash {
namespace {

uint8_t byte_at(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool is_continuation(uint8_t byte) { return (byte & 0xc0) == 0x80; }

/// Bytes of the sequence that `lead` starts; 0 when it starts none.
size_t sequence_length(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xc0) return 0;
  if (lead < 0xe0) return 2;
  if (lead < 0xf0) return 3;
  return lead < 0xf8 ? 4 : 0;
}

/// What is wrong with the sequence at `offset`, or null.
const char* sequence_error(std::string_view text, size_t offset) {
  const uint8_t lead = byte_at(text, offset);
  const size_t length = sequence_length(lead);
  if (length == 1) return nullptr;
  if (length == 0) {
    return is_continuation(lead) ? "a continuation byte without a lead byte"
                                 : "a byte that UTF-8 never uses";
  }
  if (lead < 0xc2) return "an overlong form";
  for (size_t i = 1; i < length; ++i) {
    if (offset + i >= text.size()) return "a sequence cut off at the end";
    if (!is_continuation(byte_at(text, offset + i))) return "a missing continuation byte";
  }
  const uint8_t second = byte_at(text, offset + 1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90)) {
    return "an overlong form";
  }
  if (lead == 0xed && second >= 0xa0) return "a surrogate";
  if (lead > 0xf4 || (lead == 0xf4 && second >= 0x90)) return "a code point past U+10FFFF";
  return nullptr;
}

}  // namespace

Status validate_utf8(std::string_view text, std::string_view what) {
  for (size_t offset = 0; offset < text.size();) {
    if (const char* error = sequence_error(text, offset); error != nullptr) {
      return make_status(StatusCode::kInvalidArgument,
                         "{} is not UTF-8: byte {} (0x{:02x}) is {}; save or send it as UTF-8",
                         what, offset, byte_at(text, offset), error);
    }
    offset += sequence_length(byte_at(text, offset));
  }
  return {};
}

char32_t next_code_point(std::string_view text, size_t& offset) {
  const uint8_t lead = byte_at(text, offset);
  const size_t length = sequence_length(lead);
  if (length <= 1) {
    ++offset;
    return lead;
  }
  char32_t code_point = lead & (0xffU >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    code_point = (code_point << 6) | (byte_at(text, offset + i) & 0x3fU);
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
