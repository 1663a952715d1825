// Mojibake: UTF-8 that was read in a single-byte encoding, so that one letter became two or three
// odd ones; and its repair.
//
// The rules follow fix_encoding of ftfy 6.3.1 (Robyn Speer, Apache License 2.0): text is touched
// only if it holds a sequence of characters that people do not write, such as an accented capital
// before a currency sign, and only into what valid UTF-8 says. tests/text compares the results with
// ftfy's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ultraflash {

/// How much work a text may cost, in code points read. Every pass of a repair takes its share, so
/// that no text, however nested, holds the caller for long.
struct RepairBudget {
  int64_t remaining = 0;

  /// False, now and from then on, once more was asked for than there was.
  bool spend(size_t code_points);
};

/// True if `text` holds a sequence that is far more likely to be mojibake than to be meant.
bool looks_like_mojibake(std::u32string_view text);

/// Undoes mojibake, level by level, in one line of text. Returns what it has so far when the budget
/// runs out; the caller looks at the budget.
std::u32string repair_mojibake(std::u32string text, RepairBudget& budget);

/// The C1 controls, which nobody means, as the characters Windows-1252 has in their place.
void replace_c1_controls(std::u32string& text);

}  // namespace ultraflash
