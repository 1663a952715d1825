// Element types of tensors, and conversions between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ultraflash {

enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kF8E4M3, kI64, kI32, kI16, kI8, kU8, kBool };

/// Bytes of one element.
size_t dtype_size(DType dtype);
/// "f32", "bf16", "f8_e4m3", ...: the name used on the command line and in messages.
std::string_view dtype_name(DType dtype);
/// Inverse of dtype_name; also takes the safetensors spelling ("F32", "BF16", "F8_E4M3", "U8").
std::optional<DType> dtype_from_name(std::string_view name);
/// True for the types that hold real numbers (everything but integers and bool).
bool dtype_is_floating(DType dtype);

/// 16-bit storage types. Arithmetic happens in float; these only hold bits.
struct BFloat16 {
  uint16_t bits = 0;
};
struct Float16 {
  uint16_t bits = 0;
};
/// OCP e4m3: 1 sign, 4 exponent, 3 mantissa bits, no infinity, 0x7f and 0xff are NaN, max 448.
struct Float8E4M3 {
  uint8_t bits = 0;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}
float to_float(Float16 value);
float to_float(Float8E4M3 value);

/// Round to nearest, ties to even; NaN stays NaN (quiet), overflow becomes infinity.
inline BFloat16 to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40U)};
  }
  const uint32_t rounding = 0x7fffU + ((bits >> 16) & 1U);
  return BFloat16{static_cast<uint16_t>((bits + rounding) >> 16)};
}
Float16 to_float16(float value);
/// Round to nearest even; values past 448 in magnitude saturate to 448, NaN stays NaN.
Float8E4M3 to_float8_e4m3(float value);

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType kValue = DType::kF64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType kValue = DType::kF32;
};
template <>
struct DTypeOf<Float16> {
  static constexpr DType kValue = DType::kF16;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType kValue = DType::kBF16;
};
template <>
struct DTypeOf<Float8E4M3> {
  static constexpr DType kValue = DType::kF8E4M3;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType kValue = DType::kI64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType kValue = DType::kI32;
};
template <>
struct DTypeOf<int16_t> {
  static constexpr DType kValue = DType::kI16;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType kValue = DType::kI8;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType kValue = DType::kU8;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType kValue = DType::kBool;
};

/// Converts `count` contiguous elements. Floating types convert among themselves with one rounding
/// from float (f64 goes through float); integers only to floating types and to i64.
/// Throws Error(kUnsupported) for any other pair.
void convert_elements(DType from, const void* source, DType to, void* destination, int64_t count);

}  // namespace ultraflash
