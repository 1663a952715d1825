#include "core/utf8.h"

#include <algorithm>
#include <cstdint>

#include "core/check.h"

namespace ultraflash {
namespace {

uint8_t byte_at(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool is_continuation(uint8_t byte) { return (byte & 0xc0) == 0x80; }

/// Bytes of the sequence that `lead` announces; 0 when it announces none.
size_t announced_length(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xc0) return 0;
  if (lead < 0xe0) return 2;
  if (lead < 0xf0) return 3;
  return lead < 0xf8 ? 4 : 0;
}

/// What is wrong with the sequence at the start of `text`, which is not empty; or null.
const char* sequence_error(std::string_view text) {
  const uint8_t lead = byte_at(text, 0);
  const size_t length = announced_length(lead);
  if (length == 1) return nullptr;
  if (length == 0) {
    return is_continuation(lead) ? "a continuation byte without a lead byte"
                                 : "a byte that UTF-8 never uses";
  }
  if (lead < 0xc2) return "an overlong form";
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size()) return "a sequence cut off at the end";
    if (!is_continuation(byte_at(text, i))) return "a missing continuation byte";
  }
  const uint8_t second = byte_at(text, 1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90)) {
    return "an overlong form";
  }
  if (lead == 0xed && second >= 0xa0) return "a surrogate";
  if (lead > 0xf4 || (lead == 0xf4 && second >= 0x90)) return "a code point past U+10FFFF";
  return nullptr;
}

}  // namespace

size_t utf8_length(std::string_view text) {
  if (text.empty() || sequence_error(text) != nullptr) return 0;
  return announced_length(byte_at(text, 0));
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

Status validate_utf8(std::string_view text, std::string_view what) {
  for (size_t offset = 0; offset < text.size();) {
    if (const char* error = sequence_error(text.substr(offset)); error != nullptr) {
      return make_status(StatusCode::kInvalidArgument,
                         "{} is not UTF-8: byte {} (0x{:02x}) is {}; save or send it as UTF-8",
                         what, offset, byte_at(text, offset), error);
    }
    offset += announced_length(byte_at(text, offset));
  }
  return {};
}

bool starts_with_control(std::string_view text) {
  return !text.empty() && (byte_at(text, 0) < 0x20 || byte_at(text, 0) == 0x7f);
}

std::string printable(std::string_view text, size_t max_bytes) {
  // Terminals obey U+009B like the escape sequences of ASCII.
  const auto is_late_control = [](std::string_view sequence) {
    return sequence.size() == 2 && byte_at(sequence, 0) == 0xc2 && byte_at(sequence, 1) < 0xa0;
  };
  std::string out;
  while (!text.empty()) {
    const std::string_view sequence = text.substr(0, std::max<size_t>(utf8_length(text), 1));
    std::string piece(sequence);
    if (utf8_length(sequence) == 0 || starts_with_control(sequence) || is_late_control(sequence)) {
      piece.clear();
      for (const char c : sequence) piece += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
    }
    if (out.size() + piece.size() > max_bytes) return out + "...";
    out += piece;
    text.remove_prefix(sequence.size());
  }
  return out;
}

}  // namespace ultraflash
