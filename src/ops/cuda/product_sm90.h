// Products in e4m3 on Hopper, with the activations' scales per row and 128 columns.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/types.h"

namespace ultraflash::cuda::sm90 {

constexpr int64_t kScaleColumns = 128;  // of a row under one scale

/// Distance in floats between the scales of neighbouring column blocks.
constexpr int64_t scale_pitch(int64_t rows) { return (rows + 3) / 4 * 4; }
/// Floats of the scales of a matrix: [columns / 128][scale_pitch(rows)].
constexpr int64_t scale_count(int64_t rows, int64_t columns) {
  return columns / kScaleColumns * scale_pitch(rows);
}

/// y = activation(x w^T + bias), x about values * scale of its row and column block, summed in f32
/// over column blocks; within one of them by the tensor cores. y is bf16, or e4m3 with scales of
/// its own where y_scales is set.
struct ProductFp8Args {
  const void* x = nullptr;          // e4m3 [rows, in]
  const float* x_scales = nullptr;  // [in / 128][x_pitch]
  int64_t x_pitch = 0;
  const void* w = nullptr;          // e4m3 [out, in]
  const float* w_scales = nullptr;  // [out]
  const float* bias = nullptr;      // [out] or null
  void* y = nullptr;                // bf16 [rows, out] or e4m3
  float* y_scales = nullptr;        // [out / 128][scale_pitch(rows)] or null
  int64_t rows = 0, in = 0, out = 0;
  Activation activation = Activation::kNone;  // or kGeluTanh
};

/// Whether the kernel takes these sizes, activation and addresses (on compute capability 9.0).
bool product_fp8_supports(const ProductFp8Args& args);
/// Queues the product; allocates nothing, and two runs give the same bits.
cudaError_t product_fp8(const ProductFp8Args& args, int multiprocessors, cudaStream_t stream);

}  // namespace ultraflash::cuda::sm90
