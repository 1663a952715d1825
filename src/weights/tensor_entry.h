// TensorEntry: one tensor of a checkpoint, as a place in a file rather than as memory.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "ultraflash/status.h"
#include "weights/element_type.h"
#include "weights/mapped_file.h"

namespace ultraflash {

/// What the author of a checkpoint wrote about it; both texts are UTF-8.
using CheckpointMetadata = std::map<std::string, std::string>;

struct TensorEntry {
  std::string name;
  const ElementType* type = nullptr;  // static
  Shape shape;
  std::array<int64_t, Shape::kMaxRank> strides{};  // in elements, one per axis of `shape`
  ByteSpan bytes;                                  // first to last element, gaps included
  std::shared_ptr<const MappedFile> file;  // keeps `bytes` alive; null when they are the caller's

  /// Nothing when a Tensor cannot hold the type.
  [[nodiscard]] std::optional<DType> dtype() const { return type->dtype; }
  [[nodiscard]] std::string_view type_name() const { return type->name; }
  /// Bytes of the elements without gaps.
  [[nodiscard]] int64_t size_bytes() const { return dense_bytes(*type, shape).value_or(0); }
  [[nodiscard]] bool contiguous() const;
  /// "f32 [1536, 16, 1, 2, 2]"
  [[nodiscard]] std::string to_string() const;

  /// The tensor itself: a read-only view of the file when its elements lie there in order and
  /// aligned, a contiguous copy otherwise. kUnsupported when a Tensor cannot hold the type,
  /// kOutOfMemory when a copy does not fit.
  [[nodiscard]] Result<Tensor> load() const;
  /// Drops the pages that load() brought in, for readers that visit each tensor once.
  void release_pages() const;

  /// Strides of `shape` when its elements lie in order.
  static std::array<int64_t, Shape::kMaxRank> dense_strides(const Shape& shape);
};

/// Name, type and shape of a tensor that is to be written.
struct TensorHeader {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// The headers of `tensors`, in order.
std::vector<TensorHeader> headers_of(const std::vector<NamedTensor>& tensors);

}  // namespace ultraflash
