// Optimizer: AdamW over all parameters of a set at once (fused multi-tensor kernels), or Muon for
// the matrices of blocks and AdamW for the rest; gradient clipping by the global norm; the
// exponential moving average of the weights. Nothing here waits for the device.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/parameters.h"

namespace ultraflash {

class Optimizer {
 public:
  /// `parameters` must be bound already and outlive the optimizer.
  Optimizer(ParameterSet& parameters, const OptimizerConfig& config);

  /// One update from the leaves' gradients, which are then dropped. A step whose gradient is not
  /// finite changes nothing. Returns the norm of the gradient before clipping, on the device.
  at::Tensor step(double learning_rate);
  void zero_grad();

  [[nodiscard]] const OptimizerConfig& config() const { return config_; }
  /// Moments in the order of the leaves, and the number of updates, for checkpoints. Matrices under
  /// Muon have no second moment: theirs stays zero.
  [[nodiscard]] const std::vector<at::Tensor>& first_moments() const { return first_; }
  [[nodiscard]] const std::vector<at::Tensor>& second_moments() const { return second_; }
  [[nodiscard]] const at::Tensor& updates() const { return updates_; }

 private:
  struct Group {  // under AdamW
    std::vector<size_t> members;
    double weight_decay = 0.0;
  };
  struct Stack {  // under Muon: matrices of one shape, orthogonalised together
    std::vector<size_t> members;
    at::Tensor momentum;  // [members, rows, columns]; the first moments are views of it
  };

  void step_stack(const Stack& stack, const std::vector<at::Tensor>& gradients,
                  const at::Tensor& good, double learning_rate);

  ParameterSet& parameters_;
  OptimizerConfig config_;
  std::vector<at::Tensor> first_;
  std::vector<at::Tensor> second_;
  at::Tensor updates_;  // f32 scalar on the device, shared by all parameters
  std::vector<Group> groups_;
  std::vector<Stack> stacks_;
};

/// The nearest matrix with equal singular values, roughly: x [n, rows, columns] -> U V^T of its
/// singular value decomposition, singular values within about 0.7 to 1.2, by five steps of an odd
/// quintic. Jordan et al., Muon (2024). Computed in bf16 on a GPU, else in the type of x.
at::Tensor orthogonalized(const at::Tensor& x);

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
