// Arena: the memory of activations and caches. It grows during the first pass over a stream and
// then repeats itself: the same sequence of requests gets the same addresses, without asking the
// system for anything, which is what captured graphs and steady frame times need.
//
// Thread-safe: a tensor may be released on another thread than the one that made it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/tensor.h"

namespace ultraflash {

/// Where an arena gets its slabs: host memory, or an accelerator's.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  /// A range aligned to 256 bytes. Throws Error(kOutOfMemory).
  virtual std::byte* allocate(size_t size_bytes) = 0;
  virtual void free(std::byte* data, size_t size_bytes) noexcept = 0;
  [[nodiscard]] virtual Device device() const = 0;
  /// Sizes of slabs are multiples of this.
  [[nodiscard]] virtual size_t unit() const { return 256; }
  /// Makes a range of allocate() longer where it stands; false when this source cannot. Throws
  /// Error(kOutOfMemory).
  virtual bool extend(std::byte* /*data*/, size_t /*size_bytes*/, size_t /*more_bytes*/) {
    return false;
  }
  // For guard zones. As written they are for host memory; holds() sees every write that was queued
  // before it.
  virtual void fill(std::byte* data, size_t size_bytes, std::byte value);
  [[nodiscard]] virtual bool holds(const std::byte* data, size_t size_bytes, std::byte value);
};

/// Page-aligned host memory.
std::shared_ptr<MemorySource> host_memory();

class Arena {
 public:
  struct Options {
    /// A request that would pass this many bytes throws Error(kOutOfMemory). 0: no limit.
    size_t limit_bytes = 0;
    /// Smallest slab asked from the source.
    size_t slab_bytes = size_t{8} << 20;
    /// Least bytes by which a slab grows where it stands, for sources that can.
    size_t extension_bytes = size_t{32} << 20;
    /// For tests: bytes of a known pattern before and after every tensor, checked
    /// when it is released (Stats::guard_violations). A multiple of 256.
    size_t guard_bytes = 0;
  };
  struct Stats {
    size_t reserved_bytes = 0;  // held from the source
    size_t used_bytes = 0;      // in live tensors, rounding included
    size_t peak_bytes = 0;      // largest used_bytes so far
    int64_t slab_requests = 0;  // how often the source was asked: constant in the steady state
    int64_t live_tensors = 0;
    int64_t guard_violations = 0;  // tensors whose guard zones were overwritten
  };

  explicit Arena(std::shared_ptr<MemorySource> source = host_memory());
  Arena(std::shared_ptr<MemorySource> source, const Options& options);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  /// Tensors may outlive the arena; its memory goes back when the last one is gone.
  ~Arena();

  /// Uninitialised memory, 256-byte aligned. Throws Error(kOutOfMemory).
  [[nodiscard]] Tensor allocate(DType dtype, const Shape& shape);
  [[nodiscard]] Stats stats() const;
  [[nodiscard]] Device device() const;

 private:
  class Pool;
  Pool* pool_;
};

}  // namespace ultraflash
