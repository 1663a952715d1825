#include "ops/autograd/torch_tensor.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <dlfcn.h>

#include <string>

#include "core/check.h"

namespace ultraflash {
namespace {

class TorchStorage final : public Storage {
 public:
  explicit TorchStorage(const at::Tensor& tensor) : tensor_(tensor) {
    data_ = static_cast<std::byte*>(tensor_.data_ptr());
    device_ = from_torch(tensor_.device());
    if (tensor_.numel() == 0) return;
    int64_t last = 0;  // furthest element reached
    for (int64_t i = 0; i < tensor_.dim(); ++i) last += (tensor_.size(i) - 1) * tensor_.stride(i);
    size_bytes_ = static_cast<size_t>(last + 1) * tensor_.element_size();
  }
  [[nodiscard]] const at::Tensor& tensor() const { return tensor_; }

  uint64_t tag = 0;  // see set_tag()

 private:
  at::Tensor tensor_;
};

TorchStorage* torch_storage(const Tensor& x) {
  return dynamic_cast<TorchStorage*>(x.storage().get());
}

at::IntArrayRef sizes_of(const Tensor& x) {
  const std::span<const int64_t> sizes = x.shape().sizes();
  return {sizes.data(), sizes.size()};
}

c10::SmallVector<int64_t, Shape::kMaxRank> strides_of(const Tensor& x) {
  c10::SmallVector<int64_t, Shape::kMaxRank> strides;
  for (int i = 0; i < x.rank(); ++i) strides.push_back(x.stride(i));
  return strides;
}

}  // namespace

void open_torch_device(Device device) {
  if (device.type == DeviceType::kCpu) return;
  // The CUDA part of the libtorch this program runs with lies beside its CPU part.
  std::string library = "libtorch_cuda.so";
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&at::globalContext), &info) != 0) {
    const std::string cpu_library(info.dli_fname);
    const size_t slash = cpu_library.rfind('/');
    if (slash != std::string::npos) library = cpu_library.substr(0, slash + 1) + library;
  }
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw_error(StatusCode::kUnsupported, "the CUDA part of libtorch could not be loaded: {}",
                dlerror());
  }
  if (!at::globalContext().hasCUDA()) {
    throw_error(StatusCode::kUnsupported,
                "libtorch sees no NVIDIA GPU; is the driver there, and was libtorch used before "
                "its CUDA part was opened?");
  }
}

at::ScalarType to_torch(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return at::kDouble;
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF8E4M3:
      return at::kFloat8_e4m3fn;
    case DType::kI64:
      return at::kLong;
    case DType::kI32:
      return at::kInt;
    case DType::kI16:
      return at::kShort;
    case DType::kI8:
      return at::kChar;
    case DType::kU8:
      return at::kByte;
    case DType::kBool:
      return at::kBool;
  }
  UF_CHECK(false, "dtype {}", static_cast<int>(dtype));
  return at::kFloat;
}

DType from_torch(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::kF64;
    case at::kFloat:
      return DType::kF32;
    case at::kHalf:
      return DType::kF16;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kFloat8_e4m3fn:
      return DType::kF8E4M3;
    case at::kLong:
      return DType::kI64;
    case at::kInt:
      return DType::kI32;
    case at::kShort:
      return DType::kI16;
    case at::kChar:
      return DType::kI8;
    case at::kByte:
      return DType::kU8;
    case at::kBool:
      return DType::kBool;
    default:
      break;
  }
  throw_error(StatusCode::kUnsupported, "there is no element type for libtorch's {}",
              at::toString(type));
}

at::Device to_torch(Device device) {
  return device.type == DeviceType::kCpu
             ? at::Device(at::kCPU)
             : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device.index));
}

Device from_torch(at::Device device) {
  if (device.is_cpu()) return {};
  UF_CHECK(device.is_cuda(), "a tensor on {}", device.str());
  return {DeviceType::kCuda, device.has_index() ? device.index() : 0};
}

Tensor from_torch(const at::Tensor& tensor) {
  UF_CHECK(tensor.defined(), "an undefined at::Tensor");
  const at::IntArrayRef sizes = tensor.sizes();
  const at::IntArrayRef strides = tensor.strides();
  return Tensor::over_strided(StoragePtr::adopt(new TorchStorage(tensor)), 0,
                              from_torch(tensor.scalar_type()),
                              Shape(std::span<const int64_t>(sizes.data(), sizes.size())),
                              std::span<const int64_t>(strides.data(), strides.size()));
}

bool holds_torch(const Tensor& x) { return torch_storage(x) != nullptr; }

const at::Tensor* kept_tensor(const Tensor& x) {
  const TorchStorage* storage = torch_storage(x);
  return storage == nullptr ? nullptr : &storage->tensor();
}

void set_tag(const Tensor& x, uint64_t tag) {
  TorchStorage* storage = torch_storage(x);
  UF_CHECK(storage != nullptr, "{} is no tensor of libtorch", x.to_string());
  storage->tag = tag;
}

uint64_t tag_of(const Tensor& x) {
  const TorchStorage* storage = torch_storage(x);
  return storage == nullptr ? 0 : storage->tag;
}

at::Tensor to_torch(const Tensor& x) {
  UF_CHECK(x.defined(), "an absent tensor was handed to libtorch");
  const c10::SmallVector<int64_t, Shape::kMaxRank> strides = strides_of(x);
  const TorchStorage* storage = torch_storage(x);
  if (storage == nullptr) {
    UF_CHECK(x.device().type == DeviceType::kCpu, "{} on {} belongs to another executor",
             x.to_string(), device_name(x.device()));
    // from_blob wants writable memory; the callers keep the promise of torch_tensor.h.
    return at::from_blob(
        const_cast<std::byte*>(x.raw()), sizes_of(x), strides, [keep = x](void* /*data*/) {},
        at::TensorOptions(to_torch(x.dtype())));
  }
  const at::Tensor& kept = storage->tensor();
  UF_CHECK(from_torch(kept.scalar_type()) == x.dtype(), "{} over a tensor of another type",
           x.to_string());
  const int64_t offset = (x.raw() - storage->data()) / static_cast<int64_t>(kept.element_size());
  if (offset == 0 && kept.sizes() == sizes_of(x) && kept.strides() == at::IntArrayRef(strides)) {
    return kept;
  }
  if (kept.numel() == x.numel() && kept.is_contiguous() && x.contiguous()) {
    return kept.view(sizes_of(x));
  }
  return kept.as_strided(sizes_of(x), strides, kept.storage_offset() + offset);
}

at::Tensor to_torch(const Tensor& x, at::Device device) {
  const at::Tensor tensor = to_torch(x);
  return tensor.device() == device ? tensor : tensor.to(device);
}

}  // namespace ultraflash
