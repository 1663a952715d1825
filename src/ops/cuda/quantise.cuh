// Rounding to e4m3 on the device.
#pragma once

#include <cstdint>

#include "ops/cuda/device.cuh"

namespace ultraflash::cuda {

constexpr float kFp8Largest = 448.0F;

/// N values (a multiple of 4) times `factor`, rounded; what is too large becomes 448.
template <int N>
__device__ __forceinline__ Pack<uint8_t, N> to_fp8(const float (&x)[N], float factor) {
  static_assert(N % 4 == 0);
  Pack<uint8_t, N> out;
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const __nv_fp8x2_storage_t pair = __nv_cvt_float2_to_fp8x2(
        make_float2(x[i] * factor, x[i + 1] * factor), __NV_SATFINITE, __NV_E4M3);
    out.x[i] = static_cast<uint8_t>(pair & 0xFF);
    out.x[i + 1] = static_cast<uint8_t>(pair >> 8);
  }
  return out;
}

/// A row's scale from its largest element. Rows of zeros get a tiny one.
struct Fp8Scale {
  float factor;  // what the row is multiplied by
  float scale;   // what undoes it
};
__device__ __forceinline__ Fp8Scale fp8_scale(float largest) {
  const float top = fmaxf(largest, 1e-12F);
  return {kFp8Largest / top, top / kFp8Largest};
}

/// Queries and keys of a head after their RMS norm: no element passes sqrt(dim) times the head's
/// largest norm weight, nor does a rotation take it further. e4m3 is a floating-point type, so a
/// bound that is rarely reached costs nothing but subnormals.
__device__ __forceinline__ float fp8_head_scale(float largest_weight, float dim) {
  return fmaxf(largest_weight * sqrtf(dim), 1e-12F) / kFp8Largest;
}

/// The scales of queries and keys of a head of 128 of which each of 16 neighbouring threads, from a
/// multiple of 16 on, holds 8 norm weights. By all threads of the warp.
struct Fp8HeadScales {
  float q, k;
};
__device__ __forceinline__ Fp8HeadScales fp8_head_scales(const float (&q)[8], const float (&k)[8],
                                                         float dim) {
  float top_q = 0.0F;
  float top_k = 0.0F;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    top_q = fmaxf(top_q, fabsf(q[i]));
    top_k = fmaxf(top_k, fabsf(k[i]));
  }
#pragma unroll
  for (int step = 8; step >= 1; step /= 2) {
    top_q = fmaxf(top_q, __shfl_xor_sync(0xFFFFFFFFU, top_q, step));
    top_k = fmaxf(top_k, __shfl_xor_sync(0xFFFFFFFFU, top_k, step));
  }
  return {fp8_head_scale(top_q, dim), fp8_head_scale(top_k, dim)};
}

/// Values keep their scale: e4m3 has four bits from 2^-6 to 448 and two more powers of two below.

/// Where key n of 16 lies in a row of the transposed values of attention in e4m3
/// (sm90/tiles.cuh says why).
__host__ __device__ constexpr int fp8_key_place(int n) {
  return 4 * (n / 2 % 4) + 2 * (n / 8) + n % 2;
}
/// Which key of 16 lies at a place.
__host__ __device__ constexpr int fp8_key_at(int place) {
  return 8 * (place / 2 % 2) + 2 * (place / 4) + place % 2;
}

}  // namespace ultraflash::cuda
