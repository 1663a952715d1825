// AdamW over all parameters of a set at once (fused multi-tensor kernels), gradient clipping by the
// global norm, and the exponential moving average of the weights. Nothing here waits for the
// device.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/parameters.h"

namespace ultraflash {

class AdamW {
 public:
  /// `parameters` must be bound already and outlive the optimizer.
  AdamW(ParameterSet& parameters, const OptimizerConfig& config);

  /// One update from the leaves' gradients, which are then dropped. A step whose gradient is not
  /// finite changes nothing. Returns the norm of the gradient before clipping, on the device.
  at::Tensor step(double learning_rate);
  void zero_grad();

  [[nodiscard]] const OptimizerConfig& config() const { return config_; }
  /// Moments in the order of the leaves, and the number of updates, for checkpoints.
  [[nodiscard]] const std::vector<at::Tensor>& first_moments() const { return first_; }
  [[nodiscard]] const std::vector<at::Tensor>& second_moments() const { return second_; }
  [[nodiscard]] const at::Tensor& updates() const { return updates_; }

 private:
  struct Group {
    std::vector<size_t> members;
    double weight_decay = 0.0;
  };

  ParameterSet& parameters_;
  OptimizerConfig config_;
  std::vector<at::Tensor> first_;
  std::vector<at::Tensor> second_;
  at::Tensor updates_;  // f32 scalar on the device, shared by all parameters
  std::vector<Group> groups_;
};

class WeightAverage {
 public:
  /// Starts as a copy of the parameters.
  WeightAverage(const ParameterSet& parameters, const EmaConfig& config);

  /// After an update of the parameters; `update` counts them from 0.
  void update(const ParameterSet& parameters, int64_t update);
  [[nodiscard]] const std::vector<at::Tensor>& values() const { return values_; }

 private:
  EmaConfig config_;
  std::vector<at::Tensor> values_;
};

}  // namespace ultraflash
