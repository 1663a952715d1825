// Collective: sums of gradients over the ranks of a training run, where the gradients lie.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "train/parallel/rank_group.h"
#include "ultraflash/status.h"

namespace ultraflash {

class Collective {
 public:
  virtual ~Collective() = default;
  /// Sums `count` values over all ranks, in place, the same bits on every rank. `values` lies on
  /// the device of the ranks; on a GPU the sum is queued on `stream` (a cudaStream_t). Throws
  /// Error.
  virtual void sum(float* values, int64_t count, void* stream) = 0;
  /// "shared memory", "NCCL 2.28.9"
  [[nodiscard]] virtual std::string description() const = 0;
};

/// Through the memory of the group, on the CPU.
std::unique_ptr<Collective> make_host_collective(std::shared_ptr<RankGroup> group);

/// Through NCCL, on the GPU that is current in this thread: each rank has its own. The library is
/// the one that libtorch's CUDA part has loaded, so load that first. Every rank must call this.
Result<std::unique_ptr<Collective>> make_nccl_collective(RankGroup& group);

}  // namespace ultraflash
