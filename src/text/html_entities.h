// Character references of HTML ("&amp;", "&#x2019;") turned into the characters they stand for.
#pragma once

#include <string>
#include <string_view>

namespace ultraflash {

/// As a browser reads text: every numeric reference, every named one of HTML 5, with or without the
/// semicolon where HTML allows that, and the longest known name when a longer word follows. Same
/// results as html.unescape of Python 3.11.
std::u32string unescape_html(std::u32string_view text);

/// As ftfy 6.3 repairs text: only references that end in a semicolon and use up all of the name, so
/// that "this&not that" stays; also names folded to capitals ("&EACUTE;").
std::u32string unescape_html_strictly(std::u32string_view text);

}  // namespace ultraflash
