// The executor of training: every operation through libtorch, with gradients.
//
// Weights whose bound tensors come from from_torch() stay connected to them: a later change of the
// leaf in place (an optimiser step under at::NoGradGuard) is seen at the next use, and gradients
// reach the leaf. A weight is converted to the compute type once per version of its leaf, so leaves
// must be changed in place, not through at::Tensor::data(), which leaves the version as it was.
// Caches are functional: a write puts a new tensor into KvCache or WindowCache.
// Operations record a graph where libtorch's grad mode is on (at::NoGradGuard turns it off).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "ops/executor.h"

namespace ultraflash {

namespace autograd {
class AutogradExecutor;
}

struct AutogradOptions {
  Device device;
  /// Block-sparse attention forms a mask over tokens up to this many elements and gathers the key
  /// blocks of each query block above it, which costs more calls but no more memory than it needs.
  int64_t largest_mask_elements = int64_t{1} << 28;
  /// Regions (Executor::begin_region) keep their inputs alone and run again in the backward pass.
  bool recompute = false;
};

/// Throws Error(kUnsupported) when this libtorch or machine lacks the device.
std::unique_ptr<Executor> make_autograd_executor(const AutogradOptions& options);

/// Forgets conversions of weights, so that the next use makes them anew: of those that take
/// gradients, or with `frozen` of all. `executor` is one of make_autograd_executor().
void drop_conversions(Executor& executor, bool frozen);
/// From now on tables (of positions and masks) stay, whatever their number: recorded work reads
/// them.
void keep_tables(Executor& executor);

/// While it lives, sinusoid() has its timesteps from a tensor on the device, f64 of as many
/// elements as the host's, instead of from the host, which recorded work could not see change.
class DeviceTimesteps {
 public:
  DeviceTimesteps(Executor& executor, const at::Tensor& timesteps);
  DeviceTimesteps(const DeviceTimesteps&) = delete;
  DeviceTimesteps& operator=(const DeviceTimesteps&) = delete;
  ~DeviceTimesteps();

 private:
  autograd::AutogradExecutor& executor_;
};

}  // namespace ultraflash
