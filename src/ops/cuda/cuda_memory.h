// Where the CUDA executor's memory comes from, and the way into it from the host.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <memory>

#include "core/arena.h"

namespace ultraflash::cuda {

/// Memory of one GPU, for one arena: a range that grows where it stands, where the driver can do
/// that, else plain allocations.
std::shared_ptr<MemorySource> device_memory(int device);

/// Page-locked host memory, which the GPU reads and writes at full speed.
std::shared_ptr<MemorySource> pinned_memory();

/// Copies from pageable host memory through two page-locked buffers, so that filling one overlaps
/// the transfer of the other.
class Uploader {
 public:
  explicit Uploader(cudaStream_t stream);
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;
  ~Uploader();

  /// Queues the copy and returns when `source` has been read.
  void upload(void* device, const void* source, size_t size_bytes);

 private:
  static constexpr size_t kBufferBytes = size_t{16} << 20;
  struct Buffer {
    std::byte* data = nullptr;
    cudaEvent_t sent = nullptr;
  };
  cudaStream_t stream_;
  std::array<Buffer, 2> buffers_;
  size_t next_ = 0;
};

}  // namespace ultraflash::cuda
