#include "core/tensor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr size_t kAlignment = 64;  // one cache line, and the widest vector register

class HeapStorage final : public Storage {
 public:
  explicit HeapStorage(size_t size_bytes) {
    const size_t rounded =
        (std::max<size_t>(size_bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    data_ = rounded < size_bytes ? nullptr
                                 : static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (data_ == nullptr) {
      throw_error(StatusCode::kOutOfMemory, "could not allocate {} bytes of host memory",
                  size_bytes);
    }
    size_bytes_ = size_bytes;
  }
  ~HeapStorage() override { std::free(data_); }
};

class BorrowedStorage final : public Storage {
 public:
  BorrowedStorage(const void* data, size_t size_bytes, std::shared_ptr<const void> owner)
      : owner_(std::move(owner)) {
    data_ = const_cast<std::byte*>(static_cast<const std::byte*>(data));  // guarded by writable_
    size_bytes_ = size_bytes;
    writable_ = false;
  }

 private:
  std::shared_ptr<const void> owner_;
};

// Copies between strided host views of one shape, element by element along every axis but the last
// run that is dense on both sides.
void copy_strided(const Tensor& source, std::byte* destination,
                  std::span<const int64_t> destination_strides, int axis, const std::byte* from) {
  const auto element = static_cast<int64_t>(dtype_size(source.dtype()));
  const int rank = source.rank();
  if (axis == rank) {
    std::memcpy(destination, from, static_cast<size_t>(element));
    return;
  }
  const int64_t size = source.dim(axis);
  const int64_t from_stride = source.stride(axis) * element;
  const int64_t to_stride = destination_strides[static_cast<size_t>(axis)] * element;
  if (axis == rank - 1 && from_stride == element && to_stride == element) {
    std::memcpy(destination, from, static_cast<size_t>(size * element));
    return;
  }
  for (int64_t i = 0; i < size; ++i) {
    copy_strided(source, destination + i * to_stride, destination_strides, axis + 1,
                 from + i * from_stride);
  }
}

}  // namespace

std::string device_name(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

Tensor Tensor::allocate(DType dtype, const Shape& shape) {
  const std::optional<int64_t> bytes =
      checked_multiply(shape.numel(), static_cast<int64_t>(dtype_size(dtype)));
  if (!bytes) {
    throw_error(StatusCode::kOutOfMemory, "a tensor {} {} does not fit into memory",
                dtype_name(dtype), shape.to_string());
  }
  return over(StoragePtr::adopt(new HeapStorage(static_cast<size_t>(*bytes))), 0, dtype, shape);
}

Tensor Tensor::zeros(DType dtype, const Shape& shape) {
  Tensor tensor = allocate(dtype, shape);
  std::memset(tensor.data_, 0, tensor.size_bytes());
  return tensor;
}

Tensor Tensor::over(StoragePtr storage, size_t offset_bytes, DType dtype, const Shape& shape) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[static_cast<size_t>(i)] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  return over_strided(std::move(storage), offset_bytes, dtype, shape,
                      std::span(strides.data(), static_cast<size_t>(shape.rank())));
}

Tensor Tensor::over_strided(StoragePtr storage, size_t offset_bytes, DType dtype,
                            const Shape& shape, std::span<const int64_t> strides) {
  UF_CHECK(static_cast<int>(strides.size()) == shape.rank(), "{} strides for shape {}",
           strides.size(), shape.to_string());
  int64_t last = 0;  // furthest element reached
  for (int i = 0; i < shape.rank(); ++i) {
    UF_CHECK(strides[static_cast<size_t>(i)] >= 0, "stride {} of shape {}",
             strides[static_cast<size_t>(i)], shape.to_string());
    last += std::max<int64_t>(shape[i] - 1, 0) * strides[static_cast<size_t>(i)];
  }
  const size_t needed =
      shape.numel() == 0 ? 0 : (static_cast<size_t>(last) + 1) * dtype_size(dtype);
  UF_CHECK(offset_bytes <= storage->size_bytes() && needed <= storage->size_bytes() - offset_bytes,
           "{} {} at byte {} of a storage of {}", dtype_name(dtype), shape.to_string(),
           offset_bytes, storage->size_bytes());
  Tensor tensor;
  tensor.data_ = storage->data() + offset_bytes;
  tensor.storage_ = std::move(storage);
  tensor.dtype_ = dtype;
  tensor.shape_ = shape;
  std::copy(strides.begin(), strides.end(), tensor.strides_.begin());
  return tensor;
}

Tensor Tensor::borrow(const void* data, DType dtype, const Shape& shape,
                      std::shared_ptr<const void> owner) {
  const size_t bytes = static_cast<size_t>(shape.numel()) * dtype_size(dtype);
  return over(StoragePtr::adopt(new BorrowedStorage(data, bytes, std::move(owner))), 0, dtype,
              shape);
}

int64_t Tensor::stride(int i) const {
  const int axis = i < 0 ? i + rank() : i;
  UF_CHECK(axis >= 0 && axis < rank(), "axis {} of {}", i, to_string());
  return strides_[static_cast<size_t>(axis)];
}

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (dim(i) != 1 && stride(i) != expected) return numel() == 0;
    expected *= dim(i);
  }
  return true;
}

std::byte* Tensor::mutable_raw() const {
  UF_CHECK(defined() && storage_->writable(), "{} is read-only", to_string());
  return data_;
}

void Tensor::require_host(DType dtype) const {
  UF_CHECK(defined(), "an absent tensor was read");
  UF_CHECK(device().type == DeviceType::kCpu, "{} lives on {}", to_string(), device_name(device()));
  UF_CHECK(dtype_ == dtype || (dtype_size(dtype) == 1 && dtype_size(dtype_) == 1),
           "{} was read as {}", to_string(), dtype_name(dtype));
}

Tensor Tensor::reshape(const Shape& shape) const {
  UF_CHECK(shape.numel() == numel(), "{} cannot become {}", to_string(), shape.to_string());
  UF_CHECK(contiguous(), "{} is strided and cannot become {}", to_string(), shape.to_string());
  return over(storage_, static_cast<size_t>(data_ - storage_->data()), dtype_, shape);
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
  const int a = axis < 0 ? axis + rank() : axis;
  UF_CHECK(a >= 0 && a < rank() && 0 <= begin && begin <= end && end <= dim(a),
           "[{}, {}) of axis {} of {}", begin, end, axis, to_string());
  Tensor view = *this;
  view.shape_ = shape_.with(a, end - begin);
  view.data_ += begin * stride(a) * static_cast<int64_t>(dtype_size(dtype_));
  return view;
}

Tensor Tensor::select(int axis, int64_t index) const {
  const int a = axis < 0 ? axis + rank() : axis;
  const Tensor one = slice(a, index, index + 1);
  Tensor view = one;
  std::array<int64_t, Shape::kMaxRank> sizes{};
  int rank_out = 0;
  for (int i = 0; i < rank(); ++i) {
    if (i == a) continue;
    sizes[static_cast<size_t>(rank_out)] = dim(i);
    view.strides_[static_cast<size_t>(rank_out)] = stride(i);
    ++rank_out;
  }
  view.shape_ = Shape(std::span<const int64_t>(sizes.data(), static_cast<size_t>(rank_out)));
  return view;
}

Tensor Tensor::permute(std::initializer_list<int> order) const {
  UF_CHECK(static_cast<int>(order.size()) == rank(), "{} axes for {}", order.size(), to_string());
  std::array<int64_t, Shape::kMaxRank> sizes{};
  Tensor view = *this;
  size_t out = 0;
  uint32_t seen = 0;
  for (const int axis : order) {
    UF_CHECK(axis >= 0 && axis < rank() && (seen >> axis & 1U) == 0, "axis {} of {}", axis,
             to_string());
    seen |= 1U << axis;
    sizes[out] = dim(axis);
    view.strides_[out] = stride(axis);
    ++out;
  }
  view.shape_ = Shape(std::span<const int64_t>(sizes.data(), out));
  return view;
}

Tensor Tensor::copy() const {
  UF_CHECK(defined() && device().type == DeviceType::kCpu, "{} is not in host memory", to_string());
  Tensor result = allocate(dtype_, shape_);
  result.assign(*this);
  return result;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_ && contiguous()) return *this;
  const Tensor dense = contiguous() ? *this : copy();
  if (dtype == dtype_) return dense;
  Tensor result = allocate(dtype, shape_);
  convert_elements(dtype_, dense.data_, dtype, result.data_, numel());
  return result;
}

void Tensor::assign(const Tensor& source) const {
  UF_CHECK(source.shape() == shape_ && source.dtype() == dtype_, "{} was assigned to {}",
           source.to_string(), to_string());
  UF_CHECK(device().type == DeviceType::kCpu && source.device().type == DeviceType::kCpu,
           "{} and {} must be in host memory", to_string(), source.to_string());
  if (numel() == 0) return;
  if (contiguous() && source.contiguous()) {
    std::memmove(mutable_raw(), source.raw(), size_bytes());
    return;
  }
  copy_strided(source, mutable_raw(), std::span(strides_.data(), static_cast<size_t>(rank())), 0,
               source.raw());
}

std::string Tensor::to_string() const {
  if (!defined()) return "an absent tensor";
  return fmt::format("{} {}", dtype_name(dtype_), shape_.to_string());
}

}  // namespace ultraflash
