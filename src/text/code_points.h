// Code points of text: between UTF-8 (core/utf8.h) and UTF-32, and what kind of character one is.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "ultraflash/status.h"

namespace ultraflash {

/// The largest Unicode code point.
inline constexpr char32_t kLastCodePoint = 0x10ffff;

/// The code point at byte `offset` of text that validate_utf8() accepted; moves `offset` past it.
char32_t next_code_point(std::string_view text, size_t& offset);

/// Appends a Unicode scalar value (no surrogate, at most kLastCodePoint).
void append_utf8(std::string& text, char32_t code_point);

/// Checks and decodes; fails like validate_utf8().
Result<std::u32string> decode_utf8(std::string_view text, std::string_view what = "text");

/// Encodes Unicode scalar values.
std::string encode_utf8(std::u32string_view text);

/// The White_Space property of Unicode: all spaces and line ends, the no-break space among them.
bool is_white_space(char32_t code_point);

}  // namespace ultraflash
