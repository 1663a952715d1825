#include "core/tensor.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {
namespace {

Tensor counting(const Shape& shape) {
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  std::iota(values.begin(), values.end(), 0.0F);
  return Tensor::of<float>(values, shape);
}

TEST(TensorTest, ViewsShareMemory) {
  const Tensor t = counting({2, 3, 4});
  const Tensor row = t.slice(1, 1, 3);
  EXPECT_EQ(row.shape(), (Shape{2, 2, 4}));
  EXPECT_FALSE(row.contiguous());
  EXPECT_EQ(row.data<float>()[0], 4.0F);
  t.mutable_data<float>()[4] = 99.0F;
  EXPECT_EQ(row.data<float>()[0], 99.0F);
  EXPECT_EQ(t.select(0, 1).shape(), (Shape{3, 4}));
  EXPECT_EQ(t.select(-1, 2).copy().span<float>()[1], 6.0F);
}

TEST(TensorTest, PermutedCopyMovesElements) {
  const Tensor t = counting({2, 3});
  const Tensor transposed = t.permute({1, 0}).copy();
  EXPECT_EQ(transposed.shape(), (Shape{3, 2}));
  const std::vector<float> expected = {0, 3, 1, 4, 2, 5};
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), transposed.span<float>().begin()));
}

TEST(TensorTest, ExclusiveTellsWhetherMemoryMayBeReused) {
  Tensor t = counting({4});
  EXPECT_TRUE(t.exclusive());
  {
    const Tensor other = t;
    EXPECT_FALSE(t.exclusive());
  }
  EXPECT_TRUE(t.exclusive());
  const auto values = std::make_shared<std::vector<float>>(4, 1.0F);
  const Tensor borrowed = Tensor::borrow(values->data(), DType::kF32, {4}, values);
  EXPECT_FALSE(borrowed.exclusive());
  EXPECT_THROW(static_cast<void>(borrowed.mutable_data<float>()), Error);
}

TEST(TensorTest, MistakesAreNamed) {
  const Tensor t = counting({2, 3});
  EXPECT_THROW(static_cast<void>(t.data<int32_t>()), Error);
  EXPECT_THROW(static_cast<void>(t.reshape({7})), Error);
  EXPECT_THROW(static_cast<void>(t.slice(1, 2, 5)), Error);
  EXPECT_THROW(static_cast<void>(t.permute({1, 0}).reshape({6})), Error);
  EXPECT_THROW(static_cast<void>(Tensor::over(t.storage(), 8, DType::kF32, {6})), Error);
}

TEST(TensorTest, ConvertsElements) {
  const Tensor half = counting({3}).to(DType::kBF16);
  EXPECT_EQ(half.dtype(), DType::kBF16);
  EXPECT_EQ(half.to(DType::kF32).span<float>()[2], 2.0F);
}

}  // namespace
}  // namespace ultraflash
