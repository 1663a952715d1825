// Shape: the sizes of a tensor, outermost first, stored inline.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

namespace ultraflash {

/// a * b, or nothing when it does not fit (both must be >= 0).
std::optional<int64_t> checked_multiply(int64_t a, int64_t b);

class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  /// Throws Error(kInvalidArgument) on more than kMaxRank sizes, a negative size, or an element
  /// count past 2^62.
  Shape(std::initializer_list<int64_t> sizes);
  explicit Shape(std::span<const int64_t> sizes);

  [[nodiscard]] int rank() const { return rank_; }
  /// Size of axis `i`; negative counts from the end. A mistake of the caller throws kInternal.
  [[nodiscard]] int64_t operator[](int i) const;
  [[nodiscard]] int64_t numel() const;
  [[nodiscard]] std::span<const int64_t> sizes() const {
    return {sizes_.data(), static_cast<size_t>(rank_)};
  }
  /// Copy with axis `i` replaced (negative counts from the end).
  [[nodiscard]] Shape with(int i, int64_t size) const;
  /// "[1, 16, 3, 60, 104]"
  [[nodiscard]] std::string to_string() const;

  friend bool operator==(const Shape& a, const Shape& b);

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

}  // namespace ultraflash
