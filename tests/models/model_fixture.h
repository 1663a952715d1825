// Small networks with random weights on the CPU, and comparisons, for property tests.
#pragma once

#include <cmath>
#include <memory>
#include <stdexcept>
#include <vector>

#include "models/loader.h"
#include "ops/devices.h"
#include "weights/parameter_source.h"

namespace ultraflash::testing {

inline std::unique_ptr<Executor> cpu_executor() {
  ExecutorOptions options;
  options.device = "cpu";
  options.threads = 2;
  Result<std::unique_ptr<Executor>> executor = make_executor(options);
  if (!executor.ok()) throw std::runtime_error(executor.status().message());
  return *std::move(executor);
}

/// Calls bind(Loader) on random weights.
template <typename Bind>
auto with_random_weights(Executor& ops, uint64_t seed, const Bind& bind,
                         DType compute = DType::kF32) {
  RandomSource source(seed);
  Binder binder(source, "random");
  LoadTarget target;
  target.executor = &ops;
  target.compute = compute;
  auto network = bind(Loader(binder, target));
  if (const Status status = binder.finish(); !status.ok()) {
    throw std::runtime_error(status.message());
  }
  return network;
}

inline Tensor normal(Executor& ops, const Shape& shape, uint64_t salt) {
  return ops.normal(make_random_stream(99, RandomPurpose::kTest, salt), shape, DType::kF32);
}

/// Part of an executor tensor, contiguous.
inline Tensor part(Executor& ops, const Tensor& x, int axis, int64_t begin, int64_t end) {
  const Tensor view = x.slice(axis, begin, end);
  Tensor out = ops.empty(x.dtype(), view.shape());
  ops.copy(out, view);
  return out;
}

inline Tensor joined(Executor& ops, const std::vector<Tensor>& parts, int axis) {
  int64_t size = 0;
  for (const Tensor& p : parts) size += p.dim(axis);
  Tensor out = ops.empty(parts[0].dtype(), parts[0].shape().with(axis, size));
  int64_t at = 0;
  for (const Tensor& p : parts) {
    ops.copy(out.slice(axis, at, at + p.dim(axis)), p);
    at += p.dim(axis);
  }
  return out;
}

/// ||a - b|| / ||b||.
inline double relative_error(const Tensor& a_any, const Tensor& b_any) {
  const Tensor a = a_any.to(DType::kF32);
  const Tensor b = b_any.to(DType::kF32);
  if (a.shape() != b.shape()) return std::nan("");
  double error = 0.0;
  double norm = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const auto x = static_cast<double>(a.data<float>()[i]);
    const auto y = static_cast<double>(b.data<float>()[i]);
    error += (x - y) * (x - y);
    norm += y * y;
  }
  return norm > 0.0 ? std::sqrt(error / norm) : std::sqrt(error);
}

inline double root_mean_square(const Tensor& x_any) {
  const Tensor x = x_any.to(DType::kF32);
  double sum = 0.0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    sum += static_cast<double>(x.data<float>()[i]) * static_cast<double>(x.data<float>()[i]);
  }
  return std::sqrt(sum / static_cast<double>(std::max<int64_t>(x.numel(), 1)));
}

}  // namespace ultraflash::testing
