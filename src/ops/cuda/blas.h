// Matrix products through cuBLASLt, which is opened at run time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"
#include "ops/types.h"

namespace ultraflash::cuda {

/// y = activation(x W^T + bias), all of one type (f32 or bf16), accumulated in f32 (never TF32)
/// unless `fast_sums` says otherwise.
struct ProductArgs {
  DType dtype = DType::kF32;
  const void* x = nullptr;     // [rows, in]
  const void* w = nullptr;     // [out, in]
  const void* bias = nullptr;  // [out] of `dtype`, or null
  // Where set, x and w are e4m3 with these f32 scales [rows] and [out], and `dtype` is bf16.
  const float* x_scales = nullptr;
  const float* w_scales = nullptr;
  // Of such products: sums stay in the tensor cores, which keep fewer bits than f32, instead of
  // being added up in f32 every few steps. Has an effect on Ada and Hopper.
  bool fast_sums = false;
  void* y = nullptr;  // [rows, out]
  int64_t rows = 0, in = 0, out = 0;
  Activation activation = Activation::kNone;
};

class Blas {
 public:
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  virtual ~Blas() = default;

  /// Null when the library is not there; `why` says so.
  static std::unique_ptr<Blas> create(std::string& why);
  [[nodiscard]] virtual std::string version() const = 0;
  /// Whether product() applies this activation itself.
  [[nodiscard]] virtual bool fuses(DType dtype, Activation activation) const = 0;
  /// Queues the product. False when the library has no algorithm for it. The choice of an algorithm
  /// is kept for the next product of the same sizes.
  virtual bool product(const ProductArgs& args, void* workspace, size_t workspace_bytes,
                       cudaStream_t stream) = 0;

 protected:
  Blas() = default;
};

}  // namespace ultraflash::cuda
