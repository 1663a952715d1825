// What a run needs to go on: weights, averages, optimizers, counters. One folder a checkpoint,
// safetensors in parts of at most 16 MiB; a folder is complete or it does not exist.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "train/optimizer.h"
#include "train/parallel/data_parallel.h"
#include "train/parameters.h"

namespace ultraflash {

/// A set of parameters that is being trained, and all that belongs to it.
struct TrainedSet {
  std::string name;  // "autoencoder", "generator", ...: prefix in checkpoints
  std::shared_ptr<ParameterSet> parameters;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<WeightAverage> average;  // null: not averaged
  int64_t updates = 0;
  DataParallel* parallel = nullptr;  // set by the trainer; gradients are averaged over its ranks
  std::unique_ptr<GradientBuffer> gradients;

  /// Makes the optimizer, and the average when `ema` is given. The network must be bound.
  void begin(const OptimizerConfig& config, const EmaConfig* ema);
  /// Optimizer and average after a backward pass, on every rank at once; returns the norm of the
  /// gradient, which is the mean over ranks.
  at::Tensor update(double factor);
  /// The average, or the weights where there is none.
  [[nodiscard]] const std::vector<at::Tensor>& best() const {
    return average ? average->values() : parameters->leaves();
  }
};

struct RunCounters {
  int64_t step = 0;
  double seconds = 0.0;
  int64_t ranks = 1;  // that took these steps
};

/// Largest part of a checkpoint.
inline constexpr int64_t kMaxPartBytes = int64_t{15} << 20;

/// Writes `out`/checkpoint-<step>/ and removes older checkpoints of `out`. Exact: 16 bytes a
/// parameter. Compact: 4.5 (see TrainConfig::compact_checkpoint).
Result<std::filesystem::path> save_state(const std::filesystem::path& out,
                                         const std::vector<TrainedSet*>& sets,
                                         const RunCounters& counters, bool compact);
/// The newest complete checkpoint below `out`, or an empty path.
std::filesystem::path newest_state(const std::filesystem::path& out);
/// Fills `sets` (begun already) and `counters`. kMalformed when the checkpoint is of another run.
Status load_state(const std::filesystem::path& checkpoint, const std::vector<TrainedSet*>& sets,
                  RunCounters& counters);

}  // namespace ultraflash
