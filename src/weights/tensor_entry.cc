#include "weights/tensor_entry.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/utf8.h"

namespace ultraflash {

std::array<int64_t, Shape::kMaxRank> TensorEntry::dense_strides(const Shape& shape) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[static_cast<size_t>(i)] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  return strides;
}

bool TensorEntry::contiguous() const {
  if (shape.numel() == 0) return true;
  const auto dense = dense_strides(shape);
  for (int i = 0; i < shape.rank(); ++i) {
    // The stride of an axis of one element is never used.
    if (shape[i] != 1 && strides[static_cast<size_t>(i)] != dense[static_cast<size_t>(i)]) {
      return false;
    }
  }
  return true;
}

std::string TensorEntry::to_string() const {
  return fmt::format("{} {}", type_name(), shape.to_string());
}

Result<Tensor> TensorEntry::load() const {
  if (!dtype()) {
    return make_status(StatusCode::kUnsupported,
                       "{} has element type {}, which can be listed but not used", printable(name),
                       type_name());
  }
  return without_exceptions([&]() -> Result<Tensor> {
    if (contiguous()) {
      const auto address = reinterpret_cast<uintptr_t>(bytes.data());
      if (address % dtype_size(*dtype()) == 0) {
        return Tensor::borrow(bytes.data(), *dtype(), shape, file);
      }
      Tensor copy = Tensor::allocate(*dtype(), shape);
      if (copy.size_bytes() > 0) {
        std::memcpy(copy.mutable_raw(), bytes.data(), copy.size_bytes());
      }
      return copy;
    }
    const Tensor whole =
        Tensor::borrow(bytes.data(), DType::kU8, {static_cast<int64_t>(bytes.size())}, file);
    return Tensor::over_strided(
               whole.storage(), 0, *dtype(), shape,
               std::span<const int64_t>(strides.data(), static_cast<size_t>(shape.rank())))
        .copy();
  });
}

void TensorEntry::release_pages() const {
  if (file != nullptr) file->advise(MappedFile::Advice::kDontNeed, bytes);
}

std::vector<TensorHeader> headers_of(const std::vector<NamedTensor>& tensors) {
  std::vector<TensorHeader> headers;
  headers.reserve(tensors.size());
  for (const NamedTensor& named : tensors) {
    headers.push_back({named.name, named.tensor.dtype(), named.tensor.shape()});
  }
  return headers;
}

}  // namespace ultraflash
