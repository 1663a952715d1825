// UTF-8, the only encoding of text inside the library: is a text from outside UTF-8, and how is it
// shown in a message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "ultraflash/status.h"

namespace ultraflash {

/// Bytes of the sequence at the start of `text`: 1 to 4, and 0 when there is none, or none that is
/// well-formed (cut off, overlong, a surrogate, past U+10FFFF).
size_t utf8_length(std::string_view text);

/// True when all of `text` is well-formed. Zero bytes are.
bool is_utf8(std::string_view text);

/// Ok, or kInvalidArgument naming `what`, the offset of the first byte that does not continue valid
/// UTF-8, and why: a stray or missing continuation byte, an overlong form, a surrogate, or a code
/// point past U+10FFFF.
Status validate_utf8(std::string_view text, std::string_view what = "text");

/// True for a text that begins with one of the control characters of ASCII.
bool starts_with_control(std::string_view text);

/// `text` fit for a message: control characters, those past ASCII (U+0080 to U+009F) among them,
/// and bytes that are not UTF-8 become \xNN; what passes `max_bytes` is cut and marked with "...".
std::string printable(std::string_view text, size_t max_bytes = 200);

}  // namespace ultraflash
