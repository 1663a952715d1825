#include "text/prompt_cleaning.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/exceptions.h"
#include "text/code_points.h"
#include "text/html_entities.h"
#include "text/mojibake.h"

namespace ultraflash {
namespace {

/// How often a prompt may be read before it counts as hostile. A plain one is read twice, one with
/// two levels of mojibake about ten times; the constant is for short prompts with many levels of
/// escapes.
constexpr int64_t kPasses = 32;
constexpr int64_t kFreeCodePoints = int64_t{1} << 20;

struct Ligature {
  char32_t ligature;
  std::u32string_view letters;
};

constexpr Ligature kLigatures[] = {
    {0x132, U"IJ"},       {0x133, U"ij"},      {0x149, U"\u02bcn"}, {0x1c4, U"D\u017d"},
    {0x1c5, U"D\u017e"},  {0x1c6, U"d\u017e"}, {0x1c7, U"LJ"},      {0x1c8, U"Lj"},
    {0x1c9, U"lj"},       {0x1ca, U"NJ"},      {0x1cb, U"Nj"},      {0x1cc, U"nj"},
    {0x1f1, U"DZ"},       {0x1f2, U"Dz"},      {0x1f3, U"dz"},      {0xfb00, U"ff"},
    {0xfb01, U"fi"},      {0xfb02, U"fl"},     {0xfb03, U"ffi"},    {0xfb04, U"ffl"},
    {0xfb05, U"\u017ft"}, {0xfb06, U"st"},
};

/// Appends the standard form of a full-width or half-width one, and the space for an ideographic
/// one; false when `c` is none of these.
bool append_standard_width(std::u32string& out, char32_t c) {
  if (c == 0x3000) {
    out.push_back(' ');
    return true;
  }
  if (c < 0xff01 || c > 0xffef) return false;
  std::array<utf8proc_int32_t, 8> standard;
  int boundary = 0;
  const utf8proc_ssize_t count = utf8proc_decompose_char(
      static_cast<utf8proc_int32_t>(c), standard.data(), std::ssize(standard),
      static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT), &boundary);
  UF_CHECK(count > 0 && count <= std::ssize(standard), "a width form has {} characters", count);
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    out.push_back(static_cast<char32_t>(standard[static_cast<size_t>(i)]));
  }
  return true;
}

bool is_removed_control(char32_t c) {
  return c < 0x09 || c == 0x0b || (c >= 0x0e && c < 0x20) || c == 0x7f ||
         (c >= 0x206a && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffc);
}

/// Ligatures, widths and quotes, one character at a time.
std::u32string replace_characters(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    if (c < 0x80) {
      out.push_back(c);
      continue;
    }
    const auto* ligature = std::find_if(std::begin(kLigatures), std::end(kLigatures),
                                        [c](const Ligature& row) { return row.ligature == c; });
    if (ligature != std::end(kLigatures)) {
      out += ligature->letters;
    } else if (!append_standard_width(out, c)) {
      out.push_back(c);
    }
  }
  for (char32_t& c : out) {
    if (c == 0x2bc || (c >= 0x2018 && c <= 0x201b)) c = '\'';
    if (c >= 0x201c && c <= 0x201f) c = '"';
  }
  return out;
}

std::u32string normalise_line_breaks(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    out.push_back(c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85 ? U'\n' : c);
  }
  return out;
}

/// End of the terminal escape at `begin` (escape, bracket, numbers, letter); `begin` if none is
/// there.
size_t end_of_terminal_escape(std::u32string_view text, size_t begin) {
  size_t i = begin;
  if (text[i] != 0x1b || i + 1 >= text.size() || text[i + 1] != '[') return begin;
  for (i += 2; i < text.size(); ++i) {
    const char32_t c = text[i];
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return i + 1;
    if (c != ';' && utf8proc_category(static_cast<utf8proc_int32_t>(c)) != UTF8PROC_CATEGORY_ND) {
      break;
    }
  }
  return begin;
}

std::u32string remove_controls(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t end = end_of_terminal_escape(text, i);
    if (end > i) {
      i = end;
      continue;
    }
    if (!is_removed_control(text[i])) out.push_back(text[i]);
    ++i;
  }
  return out;
}

/// Unicode normalisation form C. Sorts the combining marks itself: utf8proc takes quadratic time
/// over a long run of them.
std::u32string normalise_nfc(const std::u32string& text) {
  const bool already = std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x300; });
  if (already) return text;
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (const char32_t c : text) {
    std::array<utf8proc_int32_t, 32> parts;
    int boundary = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(c), parts.data(), std::ssize(parts), kOptions, &boundary);
    UF_CHECK(count >= 0 && count <= std::ssize(parts), "U+{:04X} decomposes into {} characters",
             static_cast<uint32_t>(c), count);
    points.insert(points.end(), parts.begin(), parts.begin() + count);
  }
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (auto begin = points.begin(); begin != points.end();) {
    const auto end = std::find_if(begin, points.end(),
                                  [&](utf8proc_int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(begin, end, [&](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    begin = end == points.end() ? end : end + 1;
  }
  std::u32string out;
  out.reserve(points.size());
  // utf8proc 2.8 loses U+11A7 after a Hangul syllable. It composes with nothing, so stop at it.
  constexpr utf8proc_int32_t kHangulFiller = 0x11a7;
  for (auto begin = points.begin(); begin != points.end();) {
    const auto end = std::find(begin + 1, points.end(), kHangulFiller);
    const utf8proc_ssize_t size = utf8proc_normalize_utf32(&*begin, end - begin, kOptions);
    UF_CHECK(size > 0 && size <= end - begin, "{} characters compose to {}", end - begin, size);
    std::transform(begin, begin + size, std::back_inserter(out),
                   [](utf8proc_int32_t c) { return static_cast<char32_t>(c); });
    begin = end;
  }
  return out;
}

/// Applies all repairs to one line until nothing changes or the budget is spent.
std::u32string repair_line(std::u32string line, bool unescape, RepairBudget& budget) {
  while (budget.spend(line.size())) {
    std::u32string fixed = unescape ? unescape_html_strictly(line) : line;
    fixed = repair_mojibake(std::move(fixed), budget);
    replace_c1_controls(fixed);
    fixed = normalise_nfc(remove_controls(normalise_line_breaks(replace_characters(fixed))));
    if (fixed == line) break;
    line = std::move(fixed);
  }
  return line;
}

std::u32string repair_lines(std::u32string_view text, RepairBudget& budget) {
  std::u32string out;
  out.reserve(text.size());
  bool unescape = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t line_break = text.find(U'\n', begin);
    const size_t end = line_break == std::u32string_view::npos ? text.size() : line_break + 1;
    std::u32string line(text.substr(begin, end - begin));
    if (line.find(U'<') != std::u32string::npos) unescape = false;
    out += repair_line(std::move(line), unescape, budget);
    begin = end;
  }
  return out;
}

/// One space for every run of white space, none at the ends.
std::u32string collapse_white_space(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    if (!is_white_space(c)) {
      out.push_back(c);
    } else if (!out.empty() && out.back() != ' ') {
      out.push_back(' ');
    }
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace

Result<std::string> clean_prompt(std::string_view prompt) {
  return without_exceptions([&]() -> Result<std::string> {
    if (prompt.size() > kMaxPromptBytes) {
      return make_status(
          StatusCode::kInvalidArgument,
          "the prompt has {} bytes; at most {} are read, and 512 tokens need some 2000",
          prompt.size(), kMaxPromptBytes);
    }
    UF_ASSIGN(std::u32string text, decode_utf8(prompt, "the prompt"));
    RepairBudget budget{kPasses * std::ssize(text) + kFreeCodePoints};
    text = repair_lines(text, budget);
    if (budget.remaining < 0) {
      return make_status(
          StatusCode::kInvalidArgument,
          "the prompt ({} bytes) is escaped or garbled in too many levels to repair; "
          "send it as plain text",
          prompt.size());
    }
    return encode_utf8(collapse_white_space(unescape_html(unescape_html(text))));
  });
}

}  // namespace ultraflash
