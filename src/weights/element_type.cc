#include "weights/element_type.h"

#include <algorithm>
#include <array>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr std::array<ElementType, 23> kTypes = {{
    {"f64", "F64", "float64", "DoubleStorage", 64, DType::kF64},
    {"f32", "F32", "float32", "FloatStorage", 32, DType::kF32},
    {"f16", "F16", "float16", "HalfStorage", 16, DType::kF16},
    {"bf16", "BF16", "bfloat16", "BFloat16Storage", 16, DType::kBF16},
    {"f8_e4m3", "F8_E4M3", "float8_e4m3fn", "", 8, DType::kF8E4M3},
    {"i64", "I64", "int64", "LongStorage", 64, DType::kI64},
    {"i32", "I32", "int32", "IntStorage", 32, DType::kI32},
    {"i16", "I16", "int16", "ShortStorage", 16, DType::kI16},
    {"i8", "I8", "int8", "CharStorage", 8, DType::kI8},
    {"u8", "U8", "uint8", "ByteStorage", 8, DType::kU8},
    {"bool", "BOOL", "bool", "BoolStorage", 8, DType::kBool},
    {"u64", "U64", "uint64", "", 64, std::nullopt},
    {"u32", "U32", "uint32", "", 32, std::nullopt},
    {"u16", "U16", "uint16", "", 16, std::nullopt},
    {"c128", "", "complex128", "ComplexDoubleStorage", 128, std::nullopt},
    {"c64", "C64", "complex64", "ComplexFloatStorage", 64, std::nullopt},
    {"f8_e5m2", "F8_E5M2", "float8_e5m2", "", 8, std::nullopt},
    {"f8_e4m3fnuz", "F8_E4M3FNUZ", "float8_e4m3fnuz", "", 8, std::nullopt},
    {"f8_e5m2fnuz", "F8_E5M2FNUZ", "float8_e5m2fnuz", "", 8, std::nullopt},
    {"f8_e8m0", "F8_E8M0", "float8_e8m0fnu", "", 8, std::nullopt},
    {"f6_e2m3", "F6_E2M3", "", "", 6, std::nullopt},
    {"f6_e3m2", "F6_E3M2", "", "", 6, std::nullopt},
    {"f4", "F4", "", "", 4, std::nullopt},
}};

// Bits of the widest type above, so that numel * bits fits whatever the type.
constexpr int64_t kMaxElements = (int64_t{1} << 62) / 128;

}  // namespace

std::span<const ElementType> element_types() { return kTypes; }

const ElementType& element_type(DType dtype) {
  const auto* row = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const ElementType& type) { return type.dtype == dtype; });
  UF_CHECK(row != kTypes.end(), "dtype {} has no row", dtype_name(dtype));
  return *row;
}

const ElementType* element_type_from_safetensors(std::string_view name) {
  if (name.empty()) return nullptr;
  const auto* row = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const ElementType& type) { return type.safetensors == name; });
  return row == kTypes.end() ? nullptr : row;
}

std::optional<int64_t> dense_bytes(const ElementType& type, const Shape& shape) {
  const std::optional<int64_t> bits = checked_multiply(shape.numel(), type.bits);
  if (!bits || *bits % 8 != 0) return std::nullopt;
  return *bits / 8;
}

std::optional<Shape> checked_shape(std::span<const int64_t> sizes) {
  if (sizes.size() > static_cast<size_t>(Shape::kMaxRank)) return std::nullopt;
  int64_t count = 1;
  for (const int64_t size : sizes) {
    // A size of 0 counts as 1: what stands beside it must be sane all the same.
    const std::optional<int64_t> product = checked_multiply(count, std::max<int64_t>(size, 1));
    if (size < 0 || !product || *product > kMaxElements) return std::nullopt;
    count = *product;
  }
  return Shape(sizes);
}

}  // namespace ultraflash
