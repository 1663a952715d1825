// Times and counts the operations of Executor's public methods. For executor.cc and
// executor_attention.cc.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "core/check.h"
#include "ops/executor.h"
#include "ops/profiler_range.h"

namespace ultraflash {

// Times one operation where a log is kept, and names it to profilers.
class OpTimer {
 public:
  template <typename Cost>
  OpTimer(Executor& ops, OpLog* log, const char* name, const Cost& cost)
      : ops_(ops), log_(log), range_(name) {
    if (log_ != nullptr) log_->push_back({name, cost(), ops_.moment(), nullptr});
  }
  OpTimer(const OpTimer&) = delete;
  OpTimer& operator=(const OpTimer&) = delete;
  ~OpTimer() {
    if (log_ == nullptr) return;
    try {
      log_->back().end = ops_.moment();
    } catch (const Error&) {
      log_->pop_back();  // the device failed, which the next wait reports
    }
  }

 private:
  Executor& ops_;
  OpLog* log_;
  ProfilerRange range_;
};

inline double count(const Tensor& x) { return x.defined() ? static_cast<double>(x.numel()) : 0.0; }
inline double element(const Tensor& x) { return static_cast<double>(dtype_size(x.dtype())); }

inline OpCost product_cost(const Tensor& x, const Linear& w) {
  const double rows = count(x) / static_cast<double>(std::max<int64_t>(w.in_features, 1));
  const double weights = static_cast<double>(w.in_features) * static_cast<double>(w.out_features);
  const double results = rows * static_cast<double>(w.out_features);
  return {fmt::format("{} x {} x {}", static_cast<int64_t>(rows), w.out_features, w.in_features),
          2.0 * rows * weights, element(x) * (count(x) + weights + results)};
}

// So many passes over tensors of the shape of x.
inline OpCost element_cost(const Tensor& x, double passes) {
  return {x.shape().to_string(), 0.0, passes * count(x) * element(x)};
}

inline OpCost attention_cost(const Tensor& q, int64_t keys, int64_t key_batch) {
  const double rows = static_cast<double>(keys) * static_cast<double>(q.dim(2));
  return {fmt::format("{} x {} x {}", q.dim(1), keys, q.dim(2)),
          4.0 * count(q) * static_cast<double>(keys),
          element(q) * (2.0 * count(q) + 2.0 * rows * static_cast<double>(key_batch))};
}

inline OpCost convolution_cost(const Tensor& x, const Conv& weight, double pictures) {
  const double area =
      static_cast<double>(weight.weight.numel() / std::max<int64_t>(weight.weight.dim(0), 1));
  const double results = pictures * static_cast<double>(weight.weight.dim(0));
  return {fmt::format("{} to {} channels, {}", weight.weight.dim(1), weight.weight.dim(0),
                      x.shape().to_string()),
          2.0 * results * area, element(x) * (count(x) + results)};
}

}  // namespace ultraflash
