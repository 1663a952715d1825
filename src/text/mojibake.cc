#include "text/mojibake.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "text/code_points.h"

namespace ultraflash {
namespace {

struct CharacterClass {
  char32_t first;
  char32_t last;
  uint32_t classes;
};

/// A single-byte encoding whose lower half is ASCII.
struct ByteEncoding {
  std::string_view name;
  /// Byte 0x1a stands for a byte that was lost, which is U+FFFD in the text.
  bool sloppy;
  /// A space may be what is left of the byte 0xa0. Not so in MacRoman, where that would match a
  /// dash followed by a space.
  bool may_have_lost_nbsp;
  std::array<char16_t, 128> upper_half;
};

#include "text/mojibake_tables.inc"

// Classes that are computed rather than listed.
constexpr uint32_t kLowerLetter = 1U << 24;  // a to z
constexpr uint32_t kUpperLetter = 1U << 25;  // A to Z
constexpr uint32_t kNoLetter = 1U << 26;     // anything else
constexpr uint32_t kSpace = 1U << 27;        // white space
constexpr uint32_t kWord = 1U << 28;         // letters, digits and '_' of any script
constexpr uint32_t kNoLineBreak = 1U << 29;

constexpr uint8_t kLostByte = 0x1a;

bool is_word(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return c == '_';
  }
}

uint32_t listed_classes(char32_t c) {
  const auto* found =
      std::lower_bound(std::begin(kCharacterClasses), std::end(kCharacterClasses), c,
                       [](const CharacterClass& row, char32_t value) { return row.last < value; });
  return found != std::end(kCharacterClasses) && found->first <= c ? found->classes : 0;
}

uint32_t classes_of(char32_t c) {
  uint32_t classes = listed_classes(c) | (c == '\n' ? 0 : kNoLineBreak);
  if (c >= 'a' && c <= 'z') {
    classes |= kLowerLetter;
  } else {
    classes |= c >= 'A' && c <= 'Z' ? kUpperLetter : kNoLetter;
  }
  if (is_white_space(c) || (c >= 0x1c && c <= 0x1f)) classes |= kSpace;
  if (is_word(c)) classes |= kWord;
  return classes;
}

/// One place of an unlikely sequence: a character of any of the classes, or one of those listed.
struct Place {
  constexpr Place() = default;
  constexpr Place(uint32_t c) : classes(c) {}  // NOLINT(google-explicit-constructor)
  constexpr Place(const char32_t* list)
      : characters(list) {}  // NOLINT(google-explicit-constructor)
  constexpr Place(uint32_t c, const char32_t* list) : classes(c), characters(list) {}

  uint32_t classes = 0;
  std::u32string_view characters;
};

struct UnlikelySequence {
  Place places[7];  // an empty one ends the sequence
  bool only_at_start = false;
};

constexpr uint32_t kPunctuation = kStart | kEnd;
constexpr uint32_t kAccented = kUpperAccented | kLowerAccented;
constexpr uint32_t kNextToBad = kAccented | kBox | kPunctuation | kCurrency | kNumeric | kLaw;
constexpr uint32_t kArabicTrail = kCommon | kCurrency | kBad | kNumeric | kStart;
constexpr const char32_t* kArabicLead = U"\u00d8\u00d9";
constexpr const char32_t* kArabicRest = U"\u0178\u0160\u00ae\u00b0\u00b5\u00bb";
constexpr const char32_t* kCyrillicLead = U"\u0412\u0413\u0420\u0421";
constexpr const char32_t* kGreekLead = U"\u0392\u0393\u039e\u039f";
constexpr const char32_t* kLatinCAndTwo = U"\u00c3\u00c2";  // the bytes 0xc3 and 0xc2

constexpr const char32_t* kWindows1252Trail =
    U"\u20ac\u0153\u0160\u0161\u00a2\u00a3\u0178\u017e\u00a0\u00ad\u00ae\u00a9\u00b0\u00b7\u00bb"
    U"\u2013\u2014\u00b4";
constexpr uint32_t kOddTrail = kC1 | kBad | kPunctuation | kCurrency;
constexpr Place kLetterOrSpace = {kLowerLetter | kUpperLetter, U" "};

constexpr UnlikelySequence kUnlikely[] = {
    {{kC1}},
    // Pairs and triples by class.
    {{kBad | kNextToBad, kBad}},
    {{kLowerLetter | kUpperLetter, kLowerCommon | kUpperCommon, kBad}},
    {{kBad, kNextToBad}},
    {{kLowerAccented | kLowerCommon | kBox | kEnd | kCurrency | kNumeric, kUpperAccented}},
    {{kBox | kEnd | kCurrency | kNumeric, kLowerAccented}},
    {{kLowerAccented | kBox | kEnd, kCurrency}},
    {{kSpace, kUpperAccented, kCurrency}},
    {{kUpperAccented | kBox, kNumeric | kLaw}},
    {{kAccented | kBox | kCurrency | kEnd, kStart, kNumeric}},
    {{kAccented | kCurrency | kNumeric | kBox | kLaw, kEnd, kStart}},
    {{kCurrency | kNumeric | kBox, kStart}},
    {{kLowerLetter, kUpperAccented, kStart | kCurrency}},
    {{kBox, kKaomoji}},
    {{kAccented | kCurrency | kNumeric | kPunctuation | kLaw, kBox}},
    {{kBox, kEnd}},
    {{kAccented, kPunctuation, kWord}},
    // The ligature oe before anything but a plain letter; a degree sign after an accented capital.
    {{U"\u0152\u0153", kNoLetter}},
    {{kUpperAccented, U"\u00b0"}},
    // Windows-1252: Latin and Greek letters, Arabic (four characters, as each pair is common),
    // South Asian scripts, and the letter a with grave or acute.
    {{U"\u00c2\u00c3\u00ce\u00d0", {kPunctuation, kWindows1252Trail}}},
    {{U"\u00d7", U"\u00b2\u00b3"}},
    {{kArabicLead, {kArabicTrail, kArabicRest}, kArabicLead, {kArabicTrail, kArabicRest}}},
    {{U"\u00e0", U"\u00b2\u00b5\u00b9\u00bc\u00bd\u00be"}},
    {{U"\u00c3", U"\u00a0\u00a1"}},
    {{kLowerLetter, kLatinCAndTwo, U" "}},
    {{kLowerLetter, kSpace, kLatinCAndTwo, U" "}},
    {{kLatinCAndTwo, U" "}, /*only_at_start=*/true},
    {{{kLowerLetter | kEnd, U".,?!"}, U"\u00c2", {kPunctuation, U" "}}},
    // MacRoman.
    {{U"\u221a", U"\u00b1\u2202\u2020\u2260\u00ae\u2122\u00b4\u2264\u2265\u00a5\u00b5\u00f8"}},
    {{U"\u2248", U"\u00b0\u00a2"}},
    {{U"\u201a", U"\u00c4",
      U"\u00ec\u00ee\u00ef\u00f2\u00f4\u00fa\u00f9\u00fb\u2020\u00b0\u00a2\u03c0"}},
    {{U"\u201a", U"\u00e2\u00f3", U"\u00e0\u00e4\u00b0\u00ea"}},
    // Windows-1251: general punctuation, then Latin-1 and Cyrillic letters, then two levels deep.
    {{U"\u0432", U"\u0402"}},
    {{kCyrillicLead, {kOddTrail, U"\u00b0\u00b5"}, kCyrillicLead}},
    {{U"\u0413", U"\u045e", U"\u0412", U"\u0402", U"\u0412", kNoLineBreak, kLetterOrSpace}},
    // Windows-1253: the same.
    {{U"\u03b2", U"\u20ac", U"\u2122\u00a0\u0386\u00ad\u00ae\u00b0"}},
    {{kGreekLead, {kOddTrail, U"\u00b0"}, kGreekLead}},
    // Windows-1257: general punctuation.
    {{U"\u0101", U"\u20ac"}},
};

bool is_ascii(std::u32string_view text) {
  return std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x80; });
}

/// The characters of an upper half with their bytes, sorted by character.
using UpperHalf = std::array<std::pair<char32_t, char>, 128>;

const UpperHalf& sorted_upper_half(const ByteEncoding& encoding) {
  static const std::array<UpperHalf, std::size(kByteEncodings)> tables = [] {
    std::array<UpperHalf, std::size(kByteEncodings)> result;
    for (size_t e = 0; e < result.size(); ++e) {
      for (size_t i = 0; i < result[e].size(); ++i) {
        result[e][i] = {kByteEncodings[e].upper_half[i], static_cast<char>(0x80 + i)};
      }
      std::sort(result[e].begin(), result[e].end());
    }
    return result;
  }();
  return tables[static_cast<size_t>(&encoding - std::begin(kByteEncodings))];
}

/// Bytes that a decoder would have read as `text`, or nothing when it holds a character that the
/// encoding lacks.
std::optional<std::string> encode(std::u32string_view text, const ByteEncoding& encoding) {
  const UpperHalf& bytes = sorted_upper_half(encoding);
  std::string result;
  for (const char32_t c : text) {
    if (c < 0x80 && !(encoding.sloppy && c == kLostByte)) {
      result.push_back(static_cast<char>(c));
      continue;
    }
    if (encoding.sloppy && c == 0xfffd) {
      result.push_back(static_cast<char>(kLostByte));
      continue;
    }
    const auto* found = std::lower_bound(
        bytes.begin(), bytes.end(), c,
        [](const std::pair<char32_t, char>& row, char32_t value) { return row.first < value; });
    if (found == bytes.end() || found->first != c) return std::nullopt;
    result.push_back(found->second);
  }
  return result;
}

/// Reads the bytes of `text` from `position` on; 0 past the end, which no pattern below accepts.
class ByteReader {
 public:
  ByteReader(std::string_view text, size_t position) : text_(text), position_(position) {}
  uint8_t operator[](size_t i) const {
    return position_ + i < text_.size() ? static_cast<uint8_t>(text_[position_ + i]) : 0;
  }

 private:
  std::string_view text_;
  size_t position_;
};

bool between(uint8_t byte, uint8_t first, uint8_t last) { return byte >= first && byte <= last; }
bool is_continuation(uint8_t byte) { return between(byte, 0x80, 0xbf); }

/// Length of the sequence at b that would be UTF-8 for a likely character if its space were the
/// byte 0xa0; 0 when there is none. Lead bytes for which the result would be an unlikely character
/// are left out, and so are the continuation bytes 0x85 (an ellipsis) and, again, 0xa0.
size_t spaced_sequence(const ByteReader& b) {
  const auto middle = [](uint8_t byte) {
    return is_continuation(byte) && byte != 0x85 && byte != 0xa0;
  };
  switch (b[0]) {
    case 0xc2:
    case 0xc3:
    case 0xc5:
    case 0xce:
    case 0xd0:
    case 0xd9:
      return b[1] == ' ' ? 2 : 0;
    case 0xe0:
    case 0xe1:
      return middle(b[1]) && b[2] == ' ' ? 3 : 0;
    case 0xe2:
    case 0xe3:
      return (b[1] == ' ' && middle(b[2])) || (middle(b[1]) && b[2] == ' ') ? 3 : 0;
    case 0xf0: {
      int spaces = 0;
      for (size_t i = 1; i < 4; ++i) {
        if (b[i] == ' ') {
          ++spaces;
        } else if (!is_continuation(b[i])) {
          return 0;
        }
      }
      return spaces == 1 ? 4 : 0;
    }
    default:
      return 0;
  }
}

/// Puts bytes 0xa0 back where they became spaces.
std::string restore_nbsp(std::string_view text) {
  const auto starts_with = [](std::string_view view, std::string_view prefix) {
    return view.substr(0, prefix.size()) == prefix;
  };
  // A lone a with grave is a word of its own in several languages and keeps the space after it,
  // unless it starts a Portuguese word.
  std::string separated;
  for (size_t i = 0; i < text.size(); ++i) {
    separated.push_back(text[i]);
    const std::string_view rest = text.substr(i);
    if (!starts_with(rest, "\xc3 ")) continue;
    const std::string_view next = rest.substr(2);
    const bool same_word = starts_with(next, " ") || starts_with(next, "quele") ||
                           starts_with(next, "quela") || starts_with(next, "quilo") ||
                           starts_with(next, "s ");
    if (!same_word) separated.push_back('\xa0');
  }
  std::string result;
  for (size_t i = 0; i < separated.size();) {
    const size_t length = spaced_sequence(ByteReader(separated, i));
    if (length == 0) {
      result.push_back(separated[i++]);
      continue;
    }
    for (const size_t end = i + length; i < end; ++i) {
      result.push_back(separated[i] == ' ' ? '\xa0' : separated[i]);
    }
  }
  return result;
}

/// Length of the UTF-8 (or CESU-8) sequence at b of which bytes were lost, or a single lost byte; 0
/// when there is none. One lost byte may have become a question mark.
size_t lossy_sequence(const ByteReader& b) {
  const auto lost = [](uint8_t byte) { return byte == kLostByte || byte == '?'; };
  const auto known = [](uint8_t byte) { return byte == kLostByte || is_continuation(byte); };
  if (between(b[0], 0xc2, 0xdf) && b[1] == kLostByte) return 2;
  if (between(b[0], 0xc2, 0xc3) && b[1] == '?') return 2;
  if (b[0] == 0xed && between(b[1], 0xa0, 0xaf) && b[3] == 0xed && between(b[4], 0xb0, 0xbf)) {
    const auto any = [&](uint8_t byte) { return lost(byte) || is_continuation(byte); };
    if (any(b[2]) && any(b[5]) && (lost(b[2]) || lost(b[5]))) return 6;
  }
  const size_t length = between(b[0], 0xe0, 0xef) ? 3 : between(b[0], 0xf0, 0xf4) ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    bool matches = lost(b[i]);
    for (size_t j = 1; j < length; ++j) matches = matches && (j == i || known(b[j]));
    if (matches) return length;
  }
  return b[0] == kLostByte ? 1 : 0;
}

/// Replaces sequences with lost bytes by U+FFFD.
std::string replace_lossy_sequences(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size();) {
    const size_t length = lossy_sequence(ByteReader(text, i));
    if (length == 0) {
      result.push_back(text[i++]);
    } else {
      append_utf8(result, 0xfffd);
      i += length;
    }
  }
  return result;
}

/// Decodes UTF-8 and its two variants: surrogate pairs as six bytes (CESU-8), and U+0000 as c0 80
/// (Java; a final c0 0a too, as the reference has it).
std::optional<std::u32string> decode_utf8_variants(std::string_view text) {
  std::u32string result;
  size_t plain = 0;  // start of the plain UTF-8 not decoded yet
  const auto flush = [&](size_t end) {
    const Result<std::u32string> decoded = decode_utf8(text.substr(plain, end - plain));
    if (decoded.ok()) result += *decoded;
    return decoded.ok();
  };
  for (size_t i = 0; i < text.size();) {
    const ByteReader b(text, i);
    size_t length = 0;
    char32_t value = 0;
    if (b[0] == 0xc0 && (b[1] == 0x80 || (b[1] == '\n' && i + 2 == text.size()))) {
      length = 2;
    } else if (b[0] == 0xed && between(b[1], 0xa0, 0xaf) && is_continuation(b[2]) && b[3] == 0xed &&
               between(b[4], 0xb0, 0xbf) && is_continuation(b[5])) {
      length = 6;
      value = 0x10000U + ((b[1] & 0x0fU) << 16) + ((b[2] & 0x3fU) << 10) + ((b[4] & 0x0fU) << 6) +
              (b[5] & 0x3fU);
    }
    if (length == 0) {
      ++i;
      continue;
    }
    if (!flush(i)) return std::nullopt;
    result.push_back(value);
    i += length;
    plain = i;
  }
  if (!flush(text.size())) return std::nullopt;
  return result;
}

/// What `text` says if it is UTF-8 that was read as `encoding`; nothing when it is not.
std::optional<std::u32string> reread(std::u32string_view text, const ByteEncoding& encoding) {
  std::optional<std::string> bytes = encode(text, encoding);
  if (!bytes.has_value()) return std::nullopt;
  if (encoding.may_have_lost_nbsp) {
    for (size_t i = 0; i < bytes->size(); ++i) {
      if (spaced_sequence(ByteReader(*bytes, i)) == 0) continue;
      *bytes = restore_nbsp(*bytes);
      break;
    }
  }
  if (encoding.sloppy) *bytes = replace_lossy_sequences(*bytes);
  return decode_utf8_variants(*bytes);
}

/// End of the run of UTF-8-looking sequences at `begin`; `begin` when there is none.
size_t end_of_run(std::u32string_view text, size_t begin) {
  size_t i = begin;
  while (i < text.size()) {
    const uint32_t lead = listed_classes(text[i]);
    size_t next = i;
    for (const auto& [mask, length] :
         {std::pair<uint32_t, size_t>{kLeadOf2, 2}, {kLeadOf3, 3}, {kLeadOf4, 4}}) {
      if ((lead & mask) == 0 || i + length > text.size()) continue;
      const std::u32string_view rest = text.substr(i + 1, length - 1);
      if (!std::all_of(rest.begin(), rest.end(),
                       [](char32_t c) { return (listed_classes(c) & kContinuation) != 0; })) {
        continue;
      }
      next = i + length;
      break;
    }
    if (next == i) break;
    i = next;
  }
  return i;
}

/// Repairs each run of UTF-8-looking sequences on its own, for text that was glued together from
/// several encodings.
std::u32string repair_runs(std::u32string_view text, RepairBudget& budget) {
  std::u32string result;
  for (size_t i = 0; i < text.size();) {
    // Never from the middle of a larger garble, which would only make it worse.
    const bool inside = i > 0 && (listed_classes(text[i - 1]) & kContinuationStrict) != 0;
    const size_t end = inside ? i : end_of_run(text, i);
    if (end == i) {
      result.push_back(text[i++]);
      continue;
    }
    const std::u32string_view run = text.substr(i, end - i);
    if (run.size() < text.size() && looks_like_mojibake(run)) {
      result += repair_mojibake(std::u32string(run), budget);
    } else {
      result += run;
    }
    i = end;
  }
  return result;
}

/// One level of repair; the same text when there is nothing left to do.
std::u32string repair_once(const std::u32string& text, RepairBudget& budget) {
  if (is_ascii(text) || !looks_like_mojibake(text)) return text;
  for (const ByteEncoding& encoding : kByteEncodings) {
    std::optional<std::u32string> fixed = reread(text, encoding);
    if (fixed.has_value()) return *std::move(fixed);
  }
  std::u32string fixed = repair_runs(text, budget);
  if (fixed == text) replace_c1_controls(fixed);
  return fixed;
}

bool matches_at(std::u32string_view text, const std::vector<uint32_t>& classes, size_t begin,
                const UnlikelySequence& sequence) {
  if (sequence.only_at_start && begin != 0) return false;
  size_t i = begin;
  for (const Place& place : sequence.places) {
    if (place.classes == 0 && place.characters.empty()) break;
    if (i == text.size()) return false;
    if ((classes[i] & place.classes) == 0 &&
        place.characters.find(text[i]) == std::u32string_view::npos) {
      return false;
    }
    ++i;
  }
  return true;
}

}  // namespace

bool RepairBudget::spend(size_t code_points) {
  // A pass over nothing costs something too.
  remaining = std::max<int64_t>(-1, remaining - static_cast<int64_t>(code_points) - 1);
  return remaining >= 0;
}

bool looks_like_mojibake(std::u32string_view text) {
  std::vector<uint32_t> classes(text.size());
  std::transform(text.begin(), text.end(), classes.begin(), classes_of);
  for (size_t i = 0; i < text.size(); ++i) {
    // Every sequence has something beyond ASCII among its first three characters.
    if (is_ascii(text.substr(i, 3))) continue;
    for (const UnlikelySequence& sequence : kUnlikely) {
      if (matches_at(text, classes, i, sequence)) return true;
    }
  }
  return false;
}

std::u32string repair_mojibake(std::u32string text, RepairBudget& budget) {
  while (budget.spend(text.size())) {
    std::u32string fixed = repair_once(text, budget);
    if (fixed == text) break;
    text = std::move(fixed);
  }
  return text;
}

void replace_c1_controls(std::u32string& text) {
  constexpr const ByteEncoding& kWindows1252 = kByteEncodings[1];
  for (char32_t& c : text) {
    if (c >= 0x80 && c <= 0x9f) c = kWindows1252.upper_half[c - 0x80];
  }
}

}  // namespace ultraflash
