#include "core/shape.h"

#include <gtest/gtest.h>

#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {
namespace {

TEST(ShapeTest, CountsAndPrints) {
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape.numel(), 24);
  EXPECT_EQ(shape[-1], 4);
  EXPECT_EQ(shape.to_string(), "[2, 3, 4]");
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{5, 0}).numel(), 0);
  EXPECT_EQ(shape.with(1, 7), (Shape{2, 7, 4}));
}

TEST(ShapeTest, RefusesWhatCannotBeMemory) {
  EXPECT_THROW((Shape{-1}), Error);
  EXPECT_THROW((Shape{int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_THROW((Shape{int64_t{1} << 40, int64_t{1} << 40, 0}), Error);
  const std::vector<int64_t> nine(9, 1);
  EXPECT_THROW(Shape{std::span<const int64_t>(nine)}, Error);
}

TEST(ShapeTest, CheckedMultiplyFindsOverflow) {
  EXPECT_EQ(checked_multiply(1 << 20, 1 << 20), int64_t{1} << 40);
  EXPECT_EQ(checked_multiply(int64_t{1} << 32, int64_t{1} << 32), std::nullopt);
  EXPECT_EQ(checked_multiply(-1, 2), std::nullopt);
}

}  // namespace
}  // namespace ultraflash
