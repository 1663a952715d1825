#include "ops/cuda/cuda_memory.h"

#include <cuda.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <type_traits>
#include <vector>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/kernels.h"

namespace ultraflash::cuda {
namespace {

double gib(size_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); }

// The driver's virtual memory functions, through the runtime: nothing is linked against the driver.
struct VirtualMemory {
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) release_range = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuDeviceGetAttribute) attribute = nullptr;
  bool complete = true;
};

const VirtualMemory& virtual_memory() {
  static const VirtualMemory kFunctions = [] {
    VirtualMemory f;
    const auto take = [&](auto& function, const char* name) {
      constexpr unsigned kVersion = 12000;
      void* found = nullptr;
      cudaDriverEntryPointQueryResult result{};
      const cudaError_t error =
          cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result);
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
      if (error != cudaSuccess || found == nullptr) f.complete = false;
    };
    take(f.reserve, "cuMemAddressReserve");
    take(f.release_range, "cuMemAddressFree");
    take(f.create, "cuMemCreate");
    take(f.release, "cuMemRelease");
    take(f.map, "cuMemMap");
    take(f.unmap, "cuMemUnmap");
    take(f.set_access, "cuMemSetAccess");
    take(f.granularity, "cuMemGetAllocationGranularity");
    take(f.attribute, "cuDeviceGetAttribute");
    static_cast<void>(cudaGetLastError());
    return f;
  }();
  return kFunctions;
}

// Ranges of virtual addresses as large as the GPU, into which memory is mapped as it is asked for:
// an arena is then one range that grows at its end, and its free blocks stay neighbours.
class DeviceMemory final : public MemorySource {
 public:
  explicit DeviceMemory(int device) : device_(device) {
    int supported = 0;
    if (!virtual_memory().complete ||
        virtual_memory().attribute(&supported,
                                   CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                                   device) != CUDA_SUCCESS ||
        supported == 0) {
      return;
    }
    const CUmemAllocationProp wanted = properties();
    size_t unit = 0;
    if (virtual_memory().granularity(&unit, &wanted, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) ==
            CUDA_SUCCESS &&
        unit > 0) {
      unit_ = unit;
    }
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() override {
    if (scratch_ != nullptr) static_cast<void>(cudaFree(scratch_));
  }

  std::byte* allocate(size_t size_bytes) override {
    UF_CUDA_TRY(cudaSetDevice(device_));
    if (unit_ != 0) return reserve(size_bytes);
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, size_bytes);
    if (error == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      throw_full(size_bytes);
    }
    UF_CUDA_TRY(error);
    return static_cast<std::byte*>(data);
  }
  bool extend(std::byte* data, size_t size_bytes, size_t more_bytes) override {
    const auto found = ranges_.find(data);
    if (found == ranges_.end() || size_bytes + more_bytes > found->second.reserved_bytes) {
      return false;
    }
    UF_CUDA_TRY(cudaSetDevice(device_));
    map(found->second, data, size_bytes, more_bytes);
    return true;
  }
  void free(std::byte* data, size_t /*size_bytes*/) noexcept override {
    const auto found = ranges_.find(data);
    if (found == ranges_.end()) {
      // Fails only when the GPU is lost, and then there is nothing to give back.
      static_cast<void>(cudaFree(data));
      return;
    }
    // cudaFree waits for the GPU; unmapping does not.
    static_cast<void>(cudaDeviceSynchronize());
    release(found->second, reinterpret_cast<CUdeviceptr>(data));
    ranges_.erase(found);
  }
  [[nodiscard]] Device device() const override { return {DeviceType::kCuda, device_}; }
  [[nodiscard]] size_t unit() const override { return std::max<size_t>(unit_, 256); }
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
  struct Piece {
    size_t offset;
    size_t size;
    CUmemGenericAllocationHandle handle;
  };
  struct Range {
    size_t reserved_bytes = 0;
    std::vector<Piece> pieces;
  };

  [[nodiscard]] CUmemAllocationProp properties() const {
    CUmemAllocationProp p{};
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    p.location.id = device_;
    return p;
  }
  [[noreturn]] void throw_full(size_t size_bytes) const {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    static_cast<void>(cudaMemGetInfo(&free_bytes, &total_bytes));
    throw_error(StatusCode::kOutOfMemory,
                "GPU {}: {:.2f} GiB more are needed and {:.2f} of {:.2f} GiB are free; close other "
                "programs on it, or choose a smaller recipe, scale or window",
                device_, gib(size_bytes), gib(free_bytes), gib(total_bytes));
  }
  void require_driver(CUresult result, const char* what) const {
    if (result != CUDA_SUCCESS) {
      throw_error(StatusCode::kDevice, "GPU {}: {} failed with driver error {}", device_, what,
                  static_cast<int>(result));
    }
  }
  std::byte* reserve(size_t size_bytes) {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    UF_CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
    Range range;
    range.reserved_bytes = (std::max(total_bytes, size_bytes) + unit_ - 1) / unit_ * unit_;
    CUdeviceptr address = 0;
    require_driver(virtual_memory().reserve(&address, range.reserved_bytes, unit_, 0, /*flags=*/0),
                   "reserving addresses");
    auto* data = reinterpret_cast<std::byte*>(address);
    try {
      map(range, data, 0, size_bytes);
    } catch (const Error&) {
      release(range, address);
      throw;
    }
    ranges_.emplace(data, std::move(range));
    return data;
  }
  void map(Range& range, std::byte* data, size_t offset, size_t size_bytes) {
    const VirtualMemory& f = virtual_memory();
    const CUmemAllocationProp wanted = properties();
    Piece piece{offset, size_bytes, 0};
    const CUresult made = f.create(&piece.handle, size_bytes, &wanted, 0);
    if (made == CUDA_ERROR_OUT_OF_MEMORY) throw_full(size_bytes);
    require_driver(made, "taking memory");
    const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(data) + offset;
    CUmemAccessDesc access{};
    access.location = wanted.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CUresult result = f.map(at, size_bytes, 0, piece.handle, 0);
    if (result == CUDA_SUCCESS) {
      result = f.set_access(at, size_bytes, &access, 1);
      if (result != CUDA_SUCCESS) static_cast<void>(f.unmap(at, size_bytes));
    }
    if (result != CUDA_SUCCESS) static_cast<void>(f.release(piece.handle));
    require_driver(result, "mapping memory");
    range.pieces.push_back(piece);
  }
  static void release(const Range& range, CUdeviceptr address) noexcept {
    const VirtualMemory& f = virtual_memory();
    for (const Piece& piece : range.pieces) {
      static_cast<void>(f.unmap(address + piece.offset, piece.size));
      static_cast<void>(f.release(piece.handle));
    }
    static_cast<void>(f.release_range(address, range.reserved_bytes));
  }

  int device_;
  size_t unit_ = 0;  // what is mapped at once; 0: plain allocations
  std::map<std::byte*, Range> ranges_;
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
