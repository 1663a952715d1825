#include "core/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ultraflash {
namespace {

TEST(Utf8Test, NamesTheFirstBadByteAndTheReason) {
  struct Case {
    std::string bytes;
    std::string offset;
    std::string reason;
  };
  const std::vector<Case> cases = {
      {"ab\x80", "byte 2 (0x80)", "continuation byte without"},
      {"\xc0\xaf", "byte 0 (0xc0)", "overlong"},
      {"\xc1\xbf", "byte 0 (0xc1)", "overlong"},
      {"\xe0\x9f\xbf", "byte 0 (0xe0)", "overlong"},
      {"x\xf0\x8f\xbf\xbf", "byte 1 (0xf0)", "overlong"},
      {"\xed\xa0\x80", "byte 0 (0xed)", "surrogate"},
      {"\xed\xbf\xbf", "byte 0 (0xed)", "surrogate"},
      {"\xf4\x90\x80\x80", "byte 0 (0xf4)", "past U+10FFFF"},
      {"\xf5\x80\x80\x80", "byte 0 (0xf5)", "past U+10FFFF"},
      {"\xff", "byte 0 (0xff)", "never uses"},
      {"\xf8\x88\x80\x80\x80", "byte 0 (0xf8)", "never uses"},
      {"\xc3\xa9\xe2\x82", "byte 2 (0xe2)", "cut off"},
      {"\xe2\x28\xa1", "byte 0 (0xe2)", "missing continuation"},
      {"\xc3\xa9\xc3", "byte 2 (0xc3)", "cut off"},
  };
  for (const Case& c : cases) {
    const Status status = validate_utf8(c.bytes, "the prompt");
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("the prompt"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(c.offset), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(c.reason), std::string::npos) << status.message();
  }
}

TEST(Utf8Test, AcceptsNulAndNoncharacters) {
  EXPECT_TRUE(validate_utf8(std::string_view("\0", 1)).ok());
  EXPECT_TRUE(validate_utf8("\xef\xbf\xbf").ok());
  EXPECT_TRUE(validate_utf8("").ok());
}

TEST(Utf8Test, LengthOfASequenceIsZeroForNone) {
  EXPECT_EQ(utf8_length(""), 0U);
  EXPECT_EQ(utf8_length("ab"), 1U);
  EXPECT_EQ(utf8_length("\xc3\xa9x"), 2U);
  EXPECT_EQ(utf8_length("\xe2\x96\x81"), 3U);
  EXPECT_EQ(utf8_length("\xf0\x9f\x8e\xac"), 4U);
  EXPECT_EQ(utf8_length("\xe2\x96"), 0U);
  EXPECT_TRUE(is_utf8("a\xc3\xa9"));
  EXPECT_FALSE(is_utf8("a\xc3"));
}

TEST(Utf8Test, PrintableEscapesAndCuts) {
  EXPECT_EQ(printable("plain"), "plain");
  EXPECT_EQ(printable(std::string("a\0\n\xff\x7f", 5)), "a\\x00\\x0a\\xff\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "1m\xc2\xa0"),
            "\\xc2\\x9b"
            "1m\xc2\xa0");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
  EXPECT_EQ(printable("a\xc3\xbc", 2), "a...");
}

}  // namespace
}  // namespace ultraflash
