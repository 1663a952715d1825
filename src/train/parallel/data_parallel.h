// DataParallel: several ranks take every step together. Each has its own clips and noise; gradients
// are averaged before the optimizer sees them, so that all ranks keep the same weights.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "train/parallel/collective.h"
#include "train/parallel/rank_group.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// The gradients of one set of parameters as one run of memory.
class GradientBuffer {
 public:
  /// Leaves: f32, on one device.
  explicit GradientBuffer(const std::vector<at::Tensor>& leaves);
  /// Copies the leaves' gradients here, zeros where there is none, and makes these the gradients.
  void take(const std::vector<at::Tensor>& leaves);
  [[nodiscard]] const at::Tensor& flat() const { return flat_; }

 private:
  at::Tensor flat_;
  std::vector<at::Tensor> views_;  // one a leaf, of its shape
};

class DataParallel {
 public:
  /// Joins the group of this process. `device` is made current in this thread; it must be the
  /// rank's own and open already.
  static Result<std::unique_ptr<DataParallel>> open(std::shared_ptr<RankGroup> group,
                                                    at::Device device);

  [[nodiscard]] RankGroup& group() const { return *group_; }
  [[nodiscard]] int64_t rank() const { return group_->rank(); }
  [[nodiscard]] int64_t size() const { return group_->size(); }
  [[nodiscard]] bool leads() const { return group_->leads(); }
  /// "4 ranks through NCCL 2.28.9"; "1 rank"
  [[nodiscard]] std::string description() const;

  /// Replaces the values of an f32 tensor by their mean over ranks, without waiting.
  void average(const at::Tensor& flat) const;
  /// Waits for all work of this rank's device.
  void synchronize() const;
  /// Most memory that tensors of this rank's GPU took at once since the last call, in bytes; 0 on a
  /// CPU.
  [[nodiscard]] double take_peak_memory() const;

 private:
  DataParallel(std::shared_ptr<RankGroup> group, at::Device device)
      : group_(std::move(group)), device_(device) {}

  std::shared_ptr<RankGroup> group_;
  at::Device device_;
  std::unique_ptr<Collective> collective_;  // null: one rank
};

/// A number that changes with any bit of any of the f32 tensors. Waits for the device.
uint64_t checksum(const std::vector<at::Tensor>& tensors);

}  // namespace ultraflash
