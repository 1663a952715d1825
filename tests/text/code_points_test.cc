#include "text/code_points.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <string>
#include <vector>

#include "core/utf8.h"

namespace ultraflash {
namespace {

TEST(CodePointsTest, RoundTripsEveryLength) {
  const std::u32string text = U"a\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff";
  const std::string bytes = encode_utf8(text);
  EXPECT_EQ(bytes.size(), 1U + 1 + 2 + 2 + 3 + 3 + 3 + 3 + 4 + 4);
  const Result<std::u32string> decoded = decode_utf8(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
  EXPECT_EQ(*decoded, text);
}

RC_GTEST_PROP(CodePointsProperty, DecodedTextEncodesToTheSameBytes, (const std::string& bytes)) {
  const Result<std::u32string> decoded = decode_utf8(bytes);
  if (decoded.ok()) RC_ASSERT(encode_utf8(*decoded) == bytes);
  RC_ASSERT(decoded.ok() == validate_utf8(bytes).ok());
}

RC_GTEST_PROP(CodePointsProperty, ScalarValuesRoundTrip, ()) {
  const auto text = *rc::gen::container<std::u32string>(
      rc::gen::map(rc::gen::inRange<uint32_t>(0, 0x110000 - 0x800),
                   [](uint32_t c) { return static_cast<char32_t>(c < 0xd800 ? c : c + 0x800); }));
  const Result<std::u32string> decoded = decode_utf8(encode_utf8(text));
  RC_ASSERT(decoded.ok());
  RC_ASSERT(*decoded == text);
}

}  // namespace
}  // namespace ultraflash
