#include "text/prompt_cleaning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/utf8.h"
#include "text/code_points.h"
#include "text/html_entities.h"
#include "text/mojibake.h"
#include "text/support.h"

namespace ultraflash {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string cleaned(std::string_view prompt) {
  const Result<std::string> result = clean_prompt(prompt);
  return result.ok() ? *result : result.status().to_string();
}

// Recorded by record_fixtures.py from ftfy and Python's html module.
TEST(PromptCleaningTest, AgreesWithTheReference) {
  const nlohmann::json fixture =
      nlohmann::json::parse(read_text(source_path("tests/text/prompt_cleaning.json")));
  ASSERT_GT(fixture["cases"].size(), 700U);
  int failures = 0;
  for (const auto& row : fixture["cases"]) {
    const auto prompt = row[0].get<std::string>();
    if (cleaned(prompt) == row[1].get<std::string>()) continue;
    // At most a few of them in full.
    if (++failures <= 5) {
      ADD_FAILURE() << "prompt " << row[0].dump(-1, ' ', /*ensure_ascii=*/true) << "\nreference "
                    << row[1].dump(-1, ' ', true) << "\nhere      "
                    << nlohmann::json(cleaned(prompt)).dump(-1, ' ', true);
    }
  }
  EXPECT_EQ(failures, 0);
}

TEST(PromptCleaningTest, KeepsOrdinaryTextOfManyLanguages) {
  for (const char* text :
       {"A cat walks on the grass, realistic style",
        "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
        "Gr\u00f6\u00dfe, Stra\u00dfe, \u00dcbermut, sch\u00f6n",
        "\u00bfD\u00f3nde est\u00e1? A\u00f1o", "\u4e00\u53ea\u732b\u5728\u8349\u5730\u4e0a",
        "\u00c5ngstr\u00f6m, \u00d1and\u00fa, \u0130stanbul",
        "price \u20ac100 \u00a35, 20 \u00b0C, \u00a9 2020",
        "\U0001f3ac \U0001f408 a cat \u2764\ufe0f"}) {
    EXPECT_EQ(cleaned(text), text);
  }
}

TEST(PromptCleaningTest, RepairsWhatPromptsAreReallyDamagedBy) {
  EXPECT_EQ(cleaned("caf\u00c3\u00a9"), "caf\u00e9");
  EXPECT_EQ(cleaned("caf\u00c3\u0192\u00c2\u00a9"), "caf\u00e9");  // twice
  EXPECT_EQ(cleaned("it\u00e2\u20ac\u2122s"), "it's");
  EXPECT_EQ(cleaned("\u201cquoted\u201d \u2018text\u2019"), "\"quoted\" 'text'");
  EXPECT_EQ(cleaned("\uff0c\uff21\uff22\uff23\u3000\uff01"), ",ABC !");
  EXPECT_EQ(cleaned("\ufb01ne \ufb02uff"), "fine fluff");
  EXPECT_EQ(cleaned("e\u0301"), "\u00e9");
  EXPECT_EQ(cleaned("a &amp;amp; b &lt;c&gt;"), "a & b <c>");
  EXPECT_EQ(cleaned("  tabs\tand\r\nlines\u2028and\u00a0spaces \n"), "tabs and lines and spaces");
  EXPECT_EQ(cleaned("\x1b[31mred\x1b[0m \x07\ufeffx"), "red x");
}

TEST(PromptCleaningTest, EmptyAndBlankPromptsBecomeEmpty) {
  EXPECT_EQ(cleaned(""), "");
  EXPECT_EQ(cleaned(" \t\r\n\u00a0\u3000\u200a"), "");
  EXPECT_EQ(cleaned("&nbsp;&#32;"), "");
}

TEST(PromptCleaningTest, RefusesBytesThatAreNotUtf8) {
  const Result<std::string> result = clean_prompt("secret \xff prompt");
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(result.status().message(), HasSubstr("byte 7"));
  EXPECT_THAT(result.status().message(), Not(HasSubstr("secret")));
}

TEST(PromptCleaningTest, RefusesWhatIsTooLong) {
  EXPECT_TRUE(clean_prompt(std::string(kMaxPromptBytes, 'a')).ok());
  const Status status = clean_prompt(std::string(kMaxPromptBytes + 1, 'a')).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("1000001"));
}

// Each level of escapes costs a pass over the line, so that this prompt alone would take hours.
TEST(PromptCleaningTest, RefusesEndlessNesting) {
  std::string prompt = "&";
  while (prompt.size() + 4 < kMaxPromptBytes) prompt += "amp;";
  EXPECT_EQ(clean_prompt(prompt).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(cleaned("&amp;amp;amp;amp;amp;amp;amp;amp;lt;"), "<");
}

TEST(PromptCleaningTest, LongRunsOfCombiningMarksStayCheap) {
  std::string prompt = "a";
  while (prompt.size() + 6 < kMaxPromptBytes) prompt += "\u0315\u0300\u05b0";
  EXPECT_TRUE(clean_prompt(prompt).ok());
}

TEST(MojibakeTest, BudgetStopsTheRepair) {
  RepairBudget budget{3};
  EXPECT_EQ(repair_mojibake(U"caf\u00c3\u00a9", budget), U"caf\u00c3\u00a9");
  EXPECT_LT(budget.remaining, 0);
  budget = {1000};
  EXPECT_EQ(repair_mojibake(U"caf\u00c3\u00a9", budget), U"caf\u00e9");
  EXPECT_GT(budget.remaining, 0);
}

TEST(MojibakeTest, JudgesBySequencesNotBySingleCharacters) {
  EXPECT_TRUE(looks_like_mojibake(U"\u00c3\u00a9"));
  EXPECT_TRUE(looks_like_mojibake(U"\u0080"));
  EXPECT_FALSE(looks_like_mojibake(U"\u00c3O"));
  EXPECT_FALSE(looks_like_mojibake(U"\u00e9\u00e8"));
  EXPECT_FALSE(looks_like_mojibake(U""));
}

TEST(HtmlEntitiesTest, StrictReadingNeedsTheSemicolonAndTheWholeName) {
  EXPECT_EQ(unescape_html(U"this&not that &notit; &amp"), U"this\u00ac that \u00acit; &");
  EXPECT_EQ(unescape_html_strictly(U"this&not that &notit; &amp"), U"this&not that &notit; &amp");
  EXPECT_EQ(unescape_html_strictly(U"&EACUTE;&SZLIG;&eACUTE;"), U"\u00c9SS&eACUTE;");
  EXPECT_EQ(unescape_html(U"&EACUTE;"), U"&EACUTE;");
  EXPECT_EQ(unescape_html(U"&#x110000;&#xD800;&#0;&#128;&#7;&#xFFFF;"),
            U"\ufffd\ufffd\ufffd\u20ac");
  EXPECT_EQ(unescape_html(U"&#" + std::u32string(10000, U'9') + U";"), U"\ufffd");
  EXPECT_EQ(unescape_html(U"&"), U"&");
  EXPECT_EQ(unescape_html(U"&#"), U"&#");
  EXPECT_EQ(unescape_html(U"&#x"), U"&#x");
}

/// Text without '&' and without the characters that occur in mojibake: of these, cleaning is done
/// after one time. (With them it is not, in the reference neither.)
rc::Gen<std::string> ordinary_text() {
  const auto characters = rc::gen::weightedOneOf<char32_t>({
      {8, rc::gen::inRange<char32_t>(' ', '&')},
      {8, rc::gen::inRange<char32_t>('\'', 0x7f)},
      {2,
       rc::gen::element<char32_t>(U'\t', U'\n', U'\r', U'\x1b', U'\x07', 0x2028, 0x3000, 0xfeff)},
      {2, rc::gen::inRange<char32_t>(0x400, 0x460)},
      {2, rc::gen::inRange<char32_t>(0x300, 0x370)},
      {2, rc::gen::inRange<char32_t>(0x900, 0xe00)},
      {2, rc::gen::inRange<char32_t>(0x3040, 0x3100)},
      {2, rc::gen::inRange<char32_t>(0xac00, 0xac80)},
      {2, rc::gen::inRange<char32_t>(0xf900, 0xfb07)},
      {2, rc::gen::inRange<char32_t>(0xff00, 0xffd0)},
      {2, rc::gen::inRange<char32_t>(0x1f300, 0x1f700)},
  });
  return rc::gen::map(rc::gen::container<std::u32string>(characters),
                      [](const std::u32string& text) { return encode_utf8(text); });
}

RC_GTEST_PROP(PromptCleaningProperty, CleaningTwiceIsCleaningOnce, ()) {
  const std::string prompt = *ordinary_text();
  RC_PRE(!looks_like_mojibake(*decode_utf8(prompt)));
  const Result<std::string> once = clean_prompt(prompt);
  RC_ASSERT(once.ok());
  RC_PRE(!looks_like_mojibake(*decode_utf8(*once)));
  const Result<std::string> twice = clean_prompt(*once);
  RC_ASSERT(twice.ok());
  RC_ASSERT(*once == *twice);
}

RC_GTEST_PROP(PromptCleaningProperty, ResultIsUtf8WithSingleSpaces, (const std::string& bytes)) {
  const Result<std::string> result = clean_prompt(bytes);
  RC_ASSERT(result.ok() == validate_utf8(bytes).ok());
  if (!result.ok()) return;
  RC_ASSERT(validate_utf8(*result).ok());
  RC_ASSERT(result->find("  ") == std::string::npos);
  // RC_ASSERT takes its argument apart and would evaluate both sides of the ||.
  const bool trimmed = result->empty() || (result->front() != ' ' && result->back() != ' ');
  RC_ASSERT(trimmed);
}

}  // namespace
}  // namespace ultraflash
