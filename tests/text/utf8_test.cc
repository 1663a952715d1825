#include "text/utf8.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <string>
#include <vector>

namespace ultraflash {
namespace {

TEST(Utf8Test, RoundTripsEveryLength) {
  const std::u32string text = U"a\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff";
  const std::string bytes = encode_utf8(text);
  EXPECT_EQ(bytes.size(), 1U + 1 + 2 + 2 + 3 + 3 + 3 + 3 + 4 + 4);
  const Result<std::u32string> decoded = decode_utf8(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
  EXPECT_EQ(*decoded, text);
}

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

RC_GTEST_PROP(Utf8Property, DecodedTextEncodesToTheSameBytes, (const std::string& bytes)) {
  const Result<std::u32string> decoded = decode_utf8(bytes);
  if (decoded.ok()) RC_ASSERT(encode_utf8(*decoded) == bytes);
  RC_ASSERT(decoded.ok() == validate_utf8(bytes).ok());
}

RC_GTEST_PROP(Utf8Property, ScalarValuesRoundTrip, ()) {
  const auto text = *rc::gen::container<std::u32string>(
      rc::gen::map(rc::gen::inRange<uint32_t>(0, 0x110000 - 0x800),
                   [](uint32_t c) { return static_cast<char32_t>(c < 0xd800 ? c : c + 0x800); }));
  const Result<std::u32string> decoded = decode_utf8(encode_utf8(text));
  RC_ASSERT(decoded.ok());
  RC_ASSERT(*decoded == text);
}

}  // namespace
}  // namespace ultraflash
