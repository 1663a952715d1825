// The feed-forward half of a transformer block, in parts of the rows: its inner rows are six times
// as wide as the others and would decide how much memory a group takes.
#include <algorithm>

#include "core/check.h"
#include "ops/cuda/cuda_impl.h"

namespace ultraflash::cuda {
namespace {

// Large enough that products run at full speed (18720 rows reach more than 42120).
constexpr int64_t kMostRows = 20480;
constexpr int64_t kRowUnit = 128;  // of the products' tiles

}  // namespace

Tensor CudaExecutor::do_feed_forward(const Tensor& x, const Linear& first, Activation activation,
                                     const Linear& second) {
  const int64_t rows = x.numel() / std::max<int64_t>(first.in_features, 1);
  const auto& a = static_cast<const CudaLinear&>(*first.prepared);
  const auto& b = static_cast<const CudaLinear&>(*second.prepared);
  const bool fp8 = x.dtype() == DType::kF8E4M3;
  if (rows <= kMostRows || (a.compute != x.dtype() && !fp8) || b.compute != a.compute) {
    return do_linear(do_linear(x, first, activation), second, Activation::kNone);
  }
  const int64_t parts = (rows + kMostRows - 1) / kMostRows;
  const int64_t step = ((rows + parts - 1) / parts + kRowUnit - 1) / kRowUnit * kRowUnit;
  const Tensor flat = x.reshape({rows, first.in_features});
  Tensor y = do_empty(b.compute, x.shape().with(-1, second.out_features));
  const Tensor flat_y = y.reshape({rows, second.out_features});
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(begin + step, rows);
    const Tensor inner = do_empty(a.compute, {end - begin, first.out_features});
    if (fp8) {
      const float* scales = scales_of(x) + begin;
      product_in_fp8({flat.slice(0, begin, end), scales}, a, activation, inner);
    } else {
      product(flat.slice(0, begin, end), end - begin, a, first.in_features, first.out_features,
              activation, inner);
    }
    product(inner, end - begin, b, second.in_features, second.out_features, Activation::kNone,
            flat_y.slice(0, begin, end));
  }
  return y;
}

}  // namespace ultraflash::cuda
