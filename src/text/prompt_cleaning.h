// Prompt cleaning: what the reference does to a prompt before it is tokenised.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "ultraflash/status.h"

namespace ultraflash {

/// Longest prompt in bytes. 512 tokens are some 2 KB of English; the limit only keeps a hostile
/// prompt from costing more than a moment. It also stays below the million characters at which ftfy
/// would begin to cut a line.
inline constexpr size_t kMaxPromptBytes = 1'000'000;

/// Repairs and normalises a prompt: the same as ftfy.fix_text (6.3.1, default settings), then
/// html.unescape twice, then every run of white space made one space, none at the ends. That is,
/// line by line and until nothing changes: HTML references unescaped (not after a '<', which means
/// the text is HTML), mojibake undone, ligatures split, full-width forms made ASCII and half-width
/// katakana made full, quotes straightened, line ends made '\n', terminal colours and control
/// characters removed, NFC.
///
/// The case of letters stays. A text that holds "&amp;lt;" or a mixture of lines may change again
/// when cleaned twice, as in the reference; without '&' and mojibake it does not.
///
/// Known differences: Unicode 15 (of utf8proc) rather than 14 decides on characters that were new
/// in it. A numeric reference of more than 4300 digits is U+FFFD here and an exception in Python.
///
/// Fails with kInvalidArgument on bytes that are not UTF-8 (naming the offset), on more than
/// kMaxPromptBytes, and on text nested in so many levels of escapes that undoing them would take
/// too long. Never quotes the prompt.
Result<std::string> clean_prompt(std::string_view prompt);

}  // namespace ultraflash
