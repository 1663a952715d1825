// Tensor: a typed, strided view of reference-counted memory.
//
// Copying a Tensor copies the handle, never the elements (`copy()` does that). Memory may belong to
// the heap, an Arena, a mapped file, an accelerator or another library; the Tensor only knows where
// it lives (`device()`), and element access is for host memory alone.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "core/dtype.h"
#include "core/shape.h"

namespace ultraflash {

enum class DeviceType : uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  friend bool operator==(Device, Device) = default;
};
/// "cpu", "cuda:0"
std::string device_name(Device device);

/// Owner of a range of bytes. Reference counted by hand, so that a pool can recycle the object and
/// the steady state allocates nothing.
class Storage {
 public:
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t size_bytes() const { return size_bytes_; }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] int64_t use_count() const { return references_.load(std::memory_order_acquire); }
  /// False for memory that must not be written, such as a mapped checkpoint.
  [[nodiscard]] bool writable() const { return writable_; }

  void retain() { references_.fetch_add(1, std::memory_order_relaxed); }
  void release() {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) dispose();
  }

 protected:
  Storage() = default;
  virtual ~Storage() = default;
  /// Called when the last reference is gone; gives the memory and the object back.
  virtual void dispose() noexcept { delete this; }

  std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
  Device device_;
  bool writable_ = true;
  std::atomic<int64_t> references_{1};
};

/// Intrusive smart pointer to a Storage.
class StoragePtr {
 public:
  StoragePtr() = default;
  /// Takes over the reference that a new Storage starts with.
  static StoragePtr adopt(Storage* storage) {
    StoragePtr pointer;
    pointer.storage_ = storage;
    return pointer;
  }
  StoragePtr(const StoragePtr& other) : storage_(other.storage_) {
    if (storage_ != nullptr) storage_->retain();
  }
  StoragePtr(StoragePtr&& other) noexcept : storage_(std::exchange(other.storage_, nullptr)) {}
  StoragePtr& operator=(StoragePtr other) noexcept {
    std::swap(storage_, other.storage_);
    return *this;
  }
  ~StoragePtr() {
    if (storage_ != nullptr) storage_->release();
  }
  [[nodiscard]] Storage* get() const { return storage_; }
  Storage* operator->() const { return storage_; }
  explicit operator bool() const { return storage_ != nullptr; }

 private:
  Storage* storage_ = nullptr;
};

class Tensor {
 public:
  /// An absent tensor: defined() is false, and nothing but assignment may be asked of it.
  Tensor() = default;

  /// Uninitialised host memory, 64-byte aligned. Throws Error(kOutOfMemory).
  static Tensor allocate(DType dtype, const Shape& shape);
  static Tensor zeros(DType dtype, const Shape& shape);
  /// Contiguous view of `storage` from `offset_bytes` on. The storage must be large enough.
  static Tensor over(StoragePtr storage, size_t offset_bytes, DType dtype, const Shape& shape);
  /// As over(), with strides in elements.
  static Tensor over_strided(StoragePtr storage, size_t offset_bytes, DType dtype,
                             const Shape& shape, std::span<const int64_t> strides);
  /// Read-only host memory that `owner` keeps alive (a mapped file, another library's buffer).
  static Tensor borrow(const void* data, DType dtype, const Shape& shape,
                       std::shared_ptr<const void> owner);
  /// A host tensor holding a copy of `values`.
  template <typename T>
  static Tensor of(std::span<const T> values, const Shape& shape);

  [[nodiscard]] bool defined() const { return static_cast<bool>(storage_); }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] int rank() const { return shape_.rank(); }
  /// Size of axis `i`; negative counts from the end.
  [[nodiscard]] int64_t dim(int i) const { return shape_[i]; }
  [[nodiscard]] int64_t numel() const { return shape_.numel(); }
  /// Bytes of the elements, gaps of a strided view not counted.
  [[nodiscard]] size_t size_bytes() const {
    return static_cast<size_t>(numel()) * dtype_size(dtype_);
  }
  /// Distance between neighbours along axis `i`, in elements.
  [[nodiscard]] int64_t stride(int i) const;
  [[nodiscard]] bool contiguous() const;
  [[nodiscard]] Device device() const { return storage_ ? storage_->device() : Device{}; }
  [[nodiscard]] const StoragePtr& storage() const { return storage_; }
  /// True when this handle is the only one and the memory may be written, so that an operation may
  /// reuse it for its result.
  [[nodiscard]] bool exclusive() const {
    return storage_ && storage_->writable() && storage_->use_count() == 1;
  }

  /// First element, whatever the device.
  [[nodiscard]] const std::byte* raw() const { return data_; }
  [[nodiscard]] std::byte* mutable_raw() const;
  /// First element in host memory; T must be the dtype (any type of one byte also fits u8 and
  /// bool).
  template <typename T>
  [[nodiscard]] const T* data() const {
    require_host(DTypeOf<T>::kValue);
    return reinterpret_cast<const T*>(data_);
  }
  template <typename T>
  [[nodiscard]] T* mutable_data() const {
    require_host(DTypeOf<T>::kValue);
    return reinterpret_cast<T*>(mutable_raw());
  }
  template <typename T>
  [[nodiscard]] std::span<const T> span() const {
    return {data<T>(), static_cast<size_t>(numel())};
  }

  /// The same elements in another shape of as many elements; must be contiguous.
  [[nodiscard]] Tensor reshape(const Shape& shape) const;
  /// Elements [begin, end) of axis `axis` (negative counts from the end).
  [[nodiscard]] Tensor slice(int axis, int64_t begin, int64_t end) const;
  /// Element `index` of axis `axis`, without that axis.
  [[nodiscard]] Tensor select(int axis, int64_t index) const;
  /// Axes in another order; moves no element.
  [[nodiscard]] Tensor permute(std::initializer_list<int> order) const;

  /// Contiguous copy in new host memory. Host tensors only.
  [[nodiscard]] Tensor copy() const;
  /// Contiguous copy with another element type; the same handle when nothing would change.
  [[nodiscard]] Tensor to(DType dtype) const;
  /// Element-wise copy from a host tensor of the same shape and dtype into this host tensor.
  void assign(const Tensor& source) const;

  /// "f32 [1, 16, 3, 60, 104]"
  [[nodiscard]] std::string to_string() const;

 private:
  void require_host(DType dtype) const;

  StoragePtr storage_;
  std::byte* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Shape shape_;
  std::array<int64_t, Shape::kMaxRank> strides_{};
};

template <typename T>
Tensor Tensor::of(std::span<const T> values, const Shape& shape) {
  Tensor tensor = allocate(DTypeOf<T>::kValue, shape);
  const Tensor source = borrow(values.data(), DTypeOf<T>::kValue,
                               Shape{static_cast<int64_t>(values.size())}, nullptr);
  tensor.assign(source.reshape(shape));
  return tensor;
}

}  // namespace ultraflash
