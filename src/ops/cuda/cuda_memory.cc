#include "ops/cuda/cuda_memory.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/kernels.h"

namespace ultraflash::cuda {
namespace {

double gib(size_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); }

class DeviceMemory final : public MemorySource {
 public:
  explicit DeviceMemory(int device) : device_(device) {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() override {
    if (scratch_ != nullptr) static_cast<void>(cudaFree(scratch_));
  }

  std::byte* allocate(size_t size_bytes) override {
    UF_CUDA_TRY(cudaSetDevice(device_));
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, size_bytes);
    if (error == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      size_t free_bytes = 0;
      size_t total_bytes = 0;
      static_cast<void>(cudaMemGetInfo(&free_bytes, &total_bytes));
      throw_error(
          StatusCode::kOutOfMemory,
          "GPU {}: {:.2f} GiB more are needed and {:.2f} of {:.2f} GiB are free; close other "
          "programs on it, or choose a smaller recipe, scale or window",
          device_, gib(size_bytes), gib(free_bytes), gib(total_bytes));
    }
    UF_CUDA_TRY(error);
    return static_cast<std::byte*>(data);
  }
  void free(std::byte* data, size_t /*size_bytes*/) noexcept override {
    // Fails only when the GPU is lost, and then there is nothing to give back.
    static_cast<void>(cudaFree(data));
  }
  [[nodiscard]] Device device() const override { return {DeviceType::kCuda, device_}; }
  // Guard zones are for tests, so these wait for everything on the GPU, whatever its stream.
  void fill(std::byte* data, size_t size_bytes, std::byte value) override {
    UF_CUDA_TRY(cudaDeviceSynchronize());
    UF_CUDA_TRY(cudaMemset(data, static_cast<int>(value), size_bytes));
    UF_CUDA_TRY(cudaDeviceSynchronize());
  }
  [[nodiscard]] bool holds(const std::byte* data, size_t size_bytes, std::byte value) override {
    try {
      UF_CUDA_TRY(cudaDeviceSynchronize());
      if (scratch_ == nullptr) UF_CUDA_TRY(cudaMalloc(&scratch_, sizeof(uint32_t)));
      return kernels::all_bytes_are(data, static_cast<int64_t>(size_bytes),
                                    static_cast<uint8_t>(value), static_cast<uint32_t*>(scratch_),
                                    /*stream=*/nullptr);
    } catch (const Error&) {
      return false;  // a kernel failed: that too is a violation
    }
  }

 private:
  int device_;
  void* scratch_ = nullptr;
};

class PinnedMemory final : public MemorySource {
 public:
  std::byte* allocate(size_t size_bytes) override {
    void* data = nullptr;
    const cudaError_t error = cudaHostAlloc(&data, size_bytes, cudaHostAllocPortable);
    if (error == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      throw_error(StatusCode::kOutOfMemory, "could not lock {} bytes of host memory", size_bytes);
    }
    UF_CUDA_TRY(error);
    return static_cast<std::byte*>(data);
  }
  void free(std::byte* data, size_t /*size_bytes*/) noexcept override {
    static_cast<void>(cudaFreeHost(data));
  }
  [[nodiscard]] Device device() const override { return {DeviceType::kCpu, 0}; }
};

}  // namespace

std::shared_ptr<MemorySource> device_memory(int device) {
  return std::make_shared<DeviceMemory>(device);
}

std::shared_ptr<MemorySource> pinned_memory() {
  static const std::shared_ptr<MemorySource> kSource = std::make_shared<PinnedMemory>();
  return kSource;
}

Uploader::Uploader(cudaStream_t stream) : stream_(stream) {}

Uploader::~Uploader() {
  for (Buffer& buffer : buffers_) {
    if (buffer.sent != nullptr) {
      static_cast<void>(cudaEventSynchronize(buffer.sent));
      static_cast<void>(cudaEventDestroy(buffer.sent));
    }
    if (buffer.data != nullptr) static_cast<void>(cudaFreeHost(buffer.data));
  }
}

void Uploader::upload(void* device, const void* source, size_t size_bytes) {
  for (size_t at = 0; at < size_bytes; at += kBufferBytes) {
    const size_t count = std::min(kBufferBytes, size_bytes - at);
    Buffer& buffer = buffers_[next_];
    next_ = (next_ + 1) % buffers_.size();
    if (buffer.data == nullptr) {
      buffer.data = pinned_memory()->allocate(kBufferBytes);
      UF_CUDA_TRY(cudaEventCreateWithFlags(&buffer.sent, cudaEventDisableTiming));
    } else {
      UF_CUDA_TRY(cudaEventSynchronize(buffer.sent));
    }
    std::memcpy(buffer.data, static_cast<const std::byte*>(source) + at, count);
    UF_CUDA_TRY(cudaMemcpyAsync(static_cast<std::byte*>(device) + at, buffer.data, count,
                                cudaMemcpyHostToDevice, stream_));
    UF_CUDA_TRY(cudaEventRecord(buffer.sent, stream_));
  }
}

}  // namespace ultraflash::cuda
