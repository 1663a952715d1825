#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {
namespace {

TEST(DTypeTest, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(DType::kBool); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_from_name("BF16"), DType::kBF16);
  EXPECT_EQ(dtype_from_name("complex"), std::nullopt);
}

TEST(DTypeTest, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_float16(value))));
    } else {
      ASSERT_EQ(to_float16(value).bits, bits) << value;
    }
    const BFloat16 brain{static_cast<uint16_t>(bits)};
    if (!std::isnan(to_float(brain))) {
      ASSERT_EQ(to_bfloat16(to_float(brain)).bits, bits);
    }
  }
}

TEST(DTypeTest, HalvesRoundToNearestEven) {
  EXPECT_EQ(to_float(to_float16(1.0F + 0x1p-11F)), 1.0F);                // tie, even below
  EXPECT_EQ(to_float(to_float16(1.0F + 3 * 0x1p-11F)), 1.0F + 0x1p-9F);  // tie, even above
  EXPECT_EQ(to_float(to_float16(65519.0F)), 65504.0F);
  EXPECT_TRUE(std::isinf(to_float(to_float16(65520.0F))));
  EXPECT_EQ(to_float(to_float16(0x1p-25F)), 0.0F);  // tie to zero
  EXPECT_EQ(to_float(to_float16(0x1.8p-25F)), 0x1p-24F);
  EXPECT_EQ(to_float(to_bfloat16(1.0F + 0x1p-8F)), 1.0F);
  EXPECT_EQ(to_float(to_bfloat16(1.0F + 3 * 0x1p-8F)), 1.0F + 0x1p-6F);
  EXPECT_TRUE(std::isinf(to_float(to_bfloat16(std::numeric_limits<float>::max()))));
}

TEST(DTypeTest, EveryFp8SurvivesTheRoundTripAndNeighboursRoundCorrectly) {
  std::vector<float> values;
  for (int bits = 0; bits < 0x7f; ++bits) {
    const float value = to_float(Float8E4M3{static_cast<uint8_t>(bits)});
    EXPECT_EQ(to_float8_e4m3(value).bits, bits);
    EXPECT_EQ(to_float8_e4m3(-value).bits, bits | 0x80);
    values.push_back(value);
  }
  EXPECT_EQ(values.back(), 448.0F);
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float middle = 0.5F * (values[i] + values[i + 1]);
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 0.0F)).bits, i);
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 1e9F)).bits, i + 1);
    EXPECT_EQ(to_float8_e4m3(middle).bits, i % 2 == 0 ? i : i + 1) << "ties go to the even code";
  }
  EXPECT_EQ(to_float(to_float8_e4m3(1e9F)), 448.0F);
  EXPECT_TRUE(std::isnan(to_float(to_float8_e4m3(std::nanf("")))));
}

TEST(DTypeTest, UnsupportedConversionThrows) {
  const float value = 1.0F;
  int32_t out = 0;
  EXPECT_THROW(convert_elements(DType::kF32, &value, DType::kI32, &out, 1), Error);
}

}  // namespace
}  // namespace ultraflash
