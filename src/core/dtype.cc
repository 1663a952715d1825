#include "core/dtype.h"

#include <array>
#include <cmath>
#include <cstring>

#include "core/check.h"

namespace ultraflash {
namespace {

struct DTypeInfo {
  DType dtype;
  size_t size;
  std::string_view name;
  std::string_view safetensors_name;
};

constexpr std::array<DTypeInfo, 11> kInfo = {{
    {DType::kF64, 8, "f64", "F64"},
    {DType::kF32, 4, "f32", "F32"},
    {DType::kF16, 2, "f16", "F16"},
    {DType::kBF16, 2, "bf16", "BF16"},
    {DType::kF8E4M3, 1, "f8_e4m3", "F8_E4M3"},
    {DType::kI64, 8, "i64", "I64"},
    {DType::kI32, 4, "i32", "I32"},
    {DType::kI16, 2, "i16", "I16"},
    {DType::kI8, 1, "i8", "I8"},
    {DType::kU8, 1, "u8", "U8"},
    {DType::kBool, 1, "bool", "BOOL"},
}};

const DTypeInfo& info(DType dtype) { return kInfo[static_cast<size_t>(dtype)]; }

template <typename T>
float load_as_float(const std::byte* source, int64_t i) {
  T value;
  std::memcpy(&value, source + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<float>(value);
  } else {
    return to_float(value);
  }
}

template <typename T>
void store_float(std::byte* destination, int64_t i, float value) {
  T out;
  if constexpr (std::is_same_v<T, BFloat16>) {
    out = to_bfloat16(value);
  } else if constexpr (std::is_same_v<T, Float16>) {
    out = to_float16(value);
  } else if constexpr (std::is_same_v<T, Float8E4M3>) {
    out = to_float8_e4m3(value);
  } else {
    out = static_cast<T>(value);
  }
  std::memcpy(destination + i * static_cast<int64_t>(sizeof(T)), &out, sizeof(T));
}

template <typename From, typename To>
void convert_loop(const std::byte* source, std::byte* destination, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    store_float<To>(destination, i, load_as_float<From>(source, i));
  }
}

template <typename From>
bool convert_from(const std::byte* source, DType to, std::byte* destination, int64_t count) {
  switch (to) {
    case DType::kF64:
      convert_loop<From, double>(source, destination, count);
      return true;
    case DType::kF32:
      convert_loop<From, float>(source, destination, count);
      return true;
    case DType::kF16:
      convert_loop<From, Float16>(source, destination, count);
      return true;
    case DType::kBF16:
      convert_loop<From, BFloat16>(source, destination, count);
      return true;
    case DType::kF8E4M3:
      convert_loop<From, Float8E4M3>(source, destination, count);
      return true;
    default:
      return false;
  }
}

template <typename From>
void widen_to_i64(const std::byte* source, std::byte* destination, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, source + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    const auto wide = static_cast<int64_t>(value);
    std::memcpy(destination + i * 8, &wide, 8);
  }
}

bool convert_integers(DType from, const std::byte* source, DType to, std::byte* destination,
                      int64_t count) {
  if (to != DType::kI64) return false;
  switch (from) {
    case DType::kI32:
      widen_to_i64<int32_t>(source, destination, count);
      return true;
    case DType::kI16:
      widen_to_i64<int16_t>(source, destination, count);
      return true;
    case DType::kI8:
      widen_to_i64<int8_t>(source, destination, count);
      return true;
    case DType::kU8:
    case DType::kBool:
      widen_to_i64<uint8_t>(source, destination, count);
      return true;
    default:
      return false;
  }
}

}  // namespace

size_t dtype_size(DType dtype) { return info(dtype).size; }

std::string_view dtype_name(DType dtype) { return info(dtype).name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DTypeInfo& row : kInfo) {
    if (name == row.name || name == row.safetensors_name) return row.dtype;
  }
  return std::nullopt;
}

bool dtype_is_floating(DType dtype) {
  return static_cast<int>(dtype) <= static_cast<int>(DType::kF8E4M3);
}

float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000U) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fU;
  const uint32_t mantissa = value.bits & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

Float16 to_float16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return Float16{static_cast<uint16_t>(sign | 0x7e00U)};
  if (magnitude >= 0x477ff000U) return Float16{static_cast<uint16_t>(sign | 0x7c00U)};  // >= 65520
  if (magnitude < 0x38800000U) {
    // Subnormal half: scaling by 2^24 makes the float's integer part the mantissa.
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24F;
    return Float16{static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(scaled)))};
  }
  const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return Float16{static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13))};
}

float to_float(Float8E4M3 value) {
  const bool negative = (value.bits & 0x80U) != 0;
  const uint32_t exponent = (value.bits >> 3) & 0xfU;
  const uint32_t mantissa = value.bits & 7U;
  if (exponent == 15 && mantissa == 7) return std::bit_cast<float>(0x7fc00000U);
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                    : std::ldexp(static_cast<float>(8 + mantissa), static_cast<int>(exponent) - 10);
  return negative ? -magnitude : magnitude;
}

Float8E4M3 to_float8_e4m3(float value) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  if (std::isnan(value)) return Float8E4M3{static_cast<uint8_t>(sign | 0x7f)};
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0F) return Float8E4M3{static_cast<uint8_t>(sign | 0x7e)};
  if (magnitude < 0x1p-6F) {
    return Float8E4M3{
        static_cast<uint8_t>(sign | static_cast<int>(std::nearbyint(magnitude * 512.0F)))};
  }
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = f * 2^exponent with f in [0.5, 1)
  int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 4 - exponent)));  // 8..16
  if (steps == 16) {
    steps = 8;
    ++exponent;
  }
  const int biased = exponent - 1 + 7;
  if (biased > 15 || (biased == 15 && steps == 15))
    return Float8E4M3{static_cast<uint8_t>(sign | 0x7e)};
  return Float8E4M3{static_cast<uint8_t>(sign | (biased << 3) | (steps - 8))};
}

void convert_elements(DType from, const void* source, DType to, void* destination, int64_t count) {
  const auto* in = static_cast<const std::byte*>(source);
  auto* out = static_cast<std::byte*>(destination);
  if (count == 0) return;
  if (from == to) {
    std::memcpy(out, in, static_cast<size_t>(count) * dtype_size(from));
    return;
  }
  bool done = false;
  switch (from) {
    case DType::kF64:
      done = convert_from<double>(in, to, out, count);
      break;
    case DType::kF32:
      done = convert_from<float>(in, to, out, count);
      break;
    case DType::kF16:
      done = convert_from<Float16>(in, to, out, count);
      break;
    case DType::kBF16:
      done = convert_from<BFloat16>(in, to, out, count);
      break;
    case DType::kF8E4M3:
      done = convert_from<Float8E4M3>(in, to, out, count);
      break;
    case DType::kI64:
      done = convert_from<int64_t>(in, to, out, count);
      break;
    case DType::kI32:
      done =
          convert_integers(from, in, to, out, count) || convert_from<int32_t>(in, to, out, count);
      break;
    case DType::kI16:
      done =
          convert_integers(from, in, to, out, count) || convert_from<int16_t>(in, to, out, count);
      break;
    case DType::kI8:
      done = convert_integers(from, in, to, out, count) || convert_from<int8_t>(in, to, out, count);
      break;
    case DType::kU8:
    case DType::kBool:
      done =
          convert_integers(from, in, to, out, count) || convert_from<uint8_t>(in, to, out, count);
      break;
  }
  if (!done) {
    throw_error(StatusCode::kUnsupported, "no conversion from {} to {}", dtype_name(from),
                dtype_name(to));
  }
}

}  // namespace ultraflash
