#include "core/shape.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"

namespace ultraflash {

std::optional<int64_t> checked_multiply(int64_t a, int64_t b) {
  int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

Shape::Shape(std::initializer_list<int64_t> sizes)
    : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}

Shape::Shape(std::span<const int64_t> sizes) {
  if (sizes.size() > kMaxRank) {
    throw_error(StatusCode::kInvalidArgument, "a tensor of rank {} was asked for; at most {}",
                sizes.size(), kMaxRank);
  }
  rank_ = static_cast<int>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  int64_t count = 1;
  for (const int64_t size : sizes) {
    if (size < 0) {
      throw_error(StatusCode::kInvalidArgument, "shape {} has a negative size", to_string());
    }
    const std::optional<int64_t> product = checked_multiply(count, std::max<int64_t>(size, 1));
    if (!product || *product > (int64_t{1} << 62)) {
      throw_error(StatusCode::kInvalidArgument, "shape {} has too many elements", to_string());
    }
    count = *product;
  }
}

int64_t Shape::operator[](int i) const {
  const int axis = i < 0 ? i + rank_ : i;
  UF_CHECK(axis >= 0 && axis < rank_, "axis {} of shape {}", i, to_string());
  return sizes_[static_cast<size_t>(axis)];
}

int64_t Shape::numel() const {
  int64_t count = 1;
  for (int i = 0; i < rank_; ++i) count *= sizes_[static_cast<size_t>(i)];
  return count;
}

Shape Shape::with(int i, int64_t size) const {
  const int axis = i < 0 ? i + rank_ : i;
  UF_CHECK(axis >= 0 && axis < rank_, "axis {} of shape {}", i, to_string());
  std::array<int64_t, kMaxRank> sizes = sizes_;
  sizes[static_cast<size_t>(axis)] = size;
  return Shape(std::span<const int64_t>(sizes.data(), static_cast<size_t>(rank_)));
}

std::string Shape::to_string() const { return fmt::format("[{}]", fmt::join(sizes(), ", ")); }

bool operator==(const Shape& a, const Shape& b) {
  return a.rank_ == b.rank_ && std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin());
}

}  // namespace ultraflash
