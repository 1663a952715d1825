// The list of operation cases that tests and benchmarks share: each builds its inputs from a seed
// and runs one operation on a given executor.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ops/executor.h"

namespace ultraflash::testing {

/// Inputs made once and used again, so that a benchmark times the operation alone.
struct OpMemo {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, Linear> linears;
  std::map<std::string, Conv> convs;
};

/// Inputs of one run. Values are drawn in f32 and rounded to `storage`, so that the reference
/// (which computes in f32) sees the very numbers that the executor under test sees.
struct OpContext {
  Executor& executor;
  DType storage;  // what the inputs are rounded to
  DType compute;  // what they are handed over as
  uint64_t seed;
  OpMemo* memo = nullptr;  // null: everything anew for every run

  /// Normal values on the executor, in the compute type.
  [[nodiscard]] Tensor input(const Shape& shape, uint64_t salt, float scale = 1.0F) const;
  /// Normal values as f32 on the executor (norm weights, modulation rows).
  [[nodiscard]] Tensor parameter(const Shape& shape, uint64_t salt, float scale = 1.0F) const;
  /// Normal values in host memory, rounded to the storage type (weights as bound).
  [[nodiscard]] Tensor host(const Shape& shape, uint64_t salt, float scale = 1.0F) const;
  [[nodiscard]] Linear linear(std::vector<int64_t> outs, int64_t in, bool bias,
                              uint64_t salt) const;
  [[nodiscard]] Conv conv(const Shape& weight, bool bias, uint64_t salt) const;
};

struct OpCase {
  std::string name;
  std::function<std::vector<Tensor>(const OpContext&)> run;
  /// Allowed relative error in f32 beside the rounding of the result.
  double tolerance = 2e-6;
  /// Whether the case also makes sense with bf16 inputs.
  bool has_bf16 = true;
  /// Results rounded to the storage type one after the other on the way to the last one.
  int roundings = 1;
  /// Floating-point operations, for benchmarks; 0: memory-bound.
  double flops = 0.0;
};

/// Small cases of every operation, odd sizes among them.
const std::vector<OpCase>& op_cases();
/// The sizes that matter, of the networks as they run: too large for the scalar reference.
const std::vector<OpCase>& large_op_cases();

}  // namespace ultraflash::testing
