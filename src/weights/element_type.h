// Element types as files name them: more than a Tensor can hold, so that any file can be listed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "core/dtype.h"
#include "core/shape.h"

namespace ultraflash {

struct ElementType {
  std::string_view name;           // "f32", "f8_e5m2": for messages and listings
  std::string_view safetensors;    // "F32"; empty when the format has no name for it
  std::string_view torch;          // "float32", as in torch.float32; may be empty
  std::string_view torch_storage;  // "FloatStorage"; empty for types that came after these classes
  int bits = 0;                    // of one element
  std::optional<DType> dtype;      // nothing when a Tensor cannot hold it
};

/// Every type this library can name.
std::span<const ElementType> element_types();
/// The row of a type that tensors can hold.
const ElementType& element_type(DType dtype);
/// The row with this name in safetensors headers, or null.
const ElementType* element_type_from_safetensors(std::string_view name);

/// Bytes of `shape` in `type`; nothing when that is not a whole number of bytes.
std::optional<int64_t> dense_bytes(const ElementType& type, const Shape& shape);

/// `sizes` as a Shape; nothing when there are more than Shape::kMaxRank of them, one is negative,
/// or the element count or its bytes would pass what 64-bit arithmetic here can hold.
std::optional<Shape> checked_shape(std::span<const int64_t> sizes);

}  // namespace ultraflash
