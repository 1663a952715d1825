// oneDNN behind a narrow interface, so that one file sees its headers and a build without it links
// the stub. Source: oneDNN 2.6 developer guide, matmul and convolution primitives.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"
#include "ops/types.h"

namespace ultraflash::cpu {

/// A weight in the layouts oneDNN chose for it. Shared by all executors; internally locked.
class OneDnnWeight {
 public:
  virtual ~OneDnnWeight() = default;
  [[nodiscard]] virtual size_t size_bytes() const = 0;
};

struct OneDnnLinearCall {
  const void* x = nullptr;  // [rows, in]
  int64_t rows = 0;
  const float* bias = nullptr;  // [out] or null
  Activation activation = Activation::kNone;
  void* y = nullptr;     // [rows, out]
  int64_t y_stride = 0;  // elements between rows of y
};

/// Geometry of a convolution over [images, (frames,) height, width, channels].
struct OneDnnConvCall {
  const void* x = nullptr;
  int64_t images = 0;
  int64_t frames = 0;  // 0: a 2-D convolution
  int64_t height = 0;
  int64_t width = 0;
  int64_t stride = 1;
  int64_t stride_time = 1;
  Padding padding;
  const float* bias = nullptr;
  bool accumulate =
      false;  // y holds a residual, to which the product is added before the activation
  Activation activation = Activation::kNone;
  void* y = nullptr;
};

/// One per executor: caches primitives by geometry, so that the steady state builds none.
class OneDnn {
 public:
  /// Null when this build has no oneDNN.
  static std::unique_ptr<OneDnn> create();
  /// "2.6.3", or "" when this build has no oneDNN.
  static std::string version();

  virtual ~OneDnn() = default;
  /// True when products of this type run on optimised code here (not oneDNN's reference loops).
  [[nodiscard]] virtual bool fast(DType dtype) const = 0;

  /// weight [out, in] contiguous, of the compute dtype; may be dropped afterwards.
  virtual std::shared_ptr<OneDnnWeight> pack_linear(const Tensor& weight) = 0;
  virtual void linear(OneDnnWeight& weight, const OneDnnLinearCall& call) = 0;
  /// As linear() with the weight as it lies in memory, [out, in] row-major of the compute dtype.
  virtual void plain_linear(const void* weight, int64_t out, int64_t in, DType dtype,
                            const OneDnnLinearCall& call) = 0;

  /// weight [out, in, (time,) height, width], any floating dtype; kept as it is.
  virtual std::shared_ptr<OneDnnWeight> pack_conv(const Tensor& weight, DType compute) = 0;
  virtual void conv(OneDnnWeight& weight, const OneDnnConvCall& call) = 0;
};

}  // namespace ultraflash::cpu
