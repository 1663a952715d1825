#include "core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ultraflash {
namespace {

// Known answers published with the Random123 library (philox4x32, 10 rounds).
TEST(RngTest, PhiloxMatchesThePublishedAnswers) {
  const rng::Four zeros = rng::philox(0, 0, 0);
  EXPECT_EQ(zeros.x[0], 0x6627e8d5U);
  EXPECT_EQ(zeros.x[1], 0xe169c58dU);
  EXPECT_EQ(zeros.x[2], 0xbc57ac4cU);
  EXPECT_EQ(zeros.x[3], 0x9b00dbd8U);
  const rng::Four ones = rng::philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0});
  EXPECT_EQ(ones.x[0], 0x408f276dU);
  EXPECT_EQ(ones.x[1], 0x41c83b0eU);
  EXPECT_EQ(ones.x[2], 0xa20bc7c6U);
  EXPECT_EQ(ones.x[3], 0x6d5451fdU);
}

TEST(RngTest, NormalBitsAreFixed) {
  std::vector<float> values(4);
  fill_normal(make_random_stream(42, RandomPurpose::kTest, 3), 0, values);
  // Recorded from the scalar implementation; every executor must give these very bits.
  const std::vector<uint32_t> expected = {0xbf5fe075U, 0xbed73df1U, 0xbe05687cU, 0xbf03d2f2U};
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(values[i]), expected[i]);
}

TEST(RngTest, ElementsDoNotDependOnHowTheyAreDrawn) {
  const RandomStream stream = make_random_stream(1, RandomPurpose::kRenoise, 5, 2);
  std::vector<float> whole(1000);
  fill_normal(stream, 0, whole);
  for (const int64_t begin : {0, 1, 2, 3, 5, 250, 998}) {
    std::vector<float> part(static_cast<size_t>(1000 - begin));
    fill_normal(stream, begin, part);
    for (size_t i = 0; i < part.size(); ++i) {
      ASSERT_EQ(part[i], whole[i + static_cast<size_t>(begin)]);
    }
  }
}

TEST(RngTest, NormalsHaveTheRightMoments) {
  std::vector<float> values(1 << 20);
  fill_normal({7, 9}, 0, values);
  double mean = 0;
  double square = 0;
  double fourth = 0;
  for (const float v : values) {
    const double x = static_cast<double>(v);
    mean += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(mean / n, 0.0, 5.0 / std::sqrt(n));
  EXPECT_NEAR(square / n, 1.0, 5.0 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth / n, 3.0, 5.0 * std::sqrt(96.0 / n));
}

TEST(RngTest, PortableFunctionsAreAccurate) {
  for (uint64_t i = 1; i < 0xffffffffULL; i += 104729) {
    const auto bits = static_cast<uint32_t>(i);
    const float u = rng::fused_multiply_add(static_cast<float>(bits), 0x1p-32F, 0x1p-33F);
    const double log_u = std::log(static_cast<double>(u));
    ASSERT_NEAR(static_cast<double>(rng::portable_log(u)), log_u, 3e-7 * std::max(1e-6, -log_u));
    const double angle =
        (static_cast<double>(bits & 0x3fffffffU) - 0x20000000) * M_PI_2 / 0x40000000 +
        (bits >> 30) * M_PI_2;
    const rng::SinCos sc = rng::portable_sincos(bits);
    ASSERT_NEAR(static_cast<double>(sc.sine), std::sin(angle), 2e-7);
    ASSERT_NEAR(static_cast<double>(sc.cosine), std::cos(angle), 2e-7);
  }
}

TEST(RngTest, StreamsDiffer) {
  std::vector<float> a(64);
  std::vector<float> b(64);
  fill_normal(make_random_stream(0, RandomPurpose::kInitialNoise, 0), 0, a);
  fill_normal(make_random_stream(0, RandomPurpose::kInitialNoise, 1), 0, b);
  EXPECT_NE(a, b);
  fill_normal(make_random_stream(0, RandomPurpose::kRenoise, 0), 0, b);
  EXPECT_NE(a, b);
}

TEST(RngTest, UniformsStayInRange) {
  std::vector<float> values(10000);
  fill_uniform({3, 4}, 1, values);
  for (const float v : values) {
    ASSERT_GE(v, 0.0F);
    ASSERT_LT(v, 1.0F);
  }
}

}  // namespace
}  // namespace ultraflash
