// What the kernels of attention to a text share: text_attention.cu, text_few_sm90.cu. A warp takes
// 16 rows of a head of 128.
#pragma once

#include <cstdint>

#include "ops/cuda/device.cuh"
#include "ops/cuda/mma.cuh"

namespace ultraflash::cuda::kernels {

constexpr int kHeadDim = 128;
constexpr int kRowBytes = 2 * kHeadDim;
constexpr int kChunks = kRowBytes / 16;
constexpr int kRows = 16;      // of a warp
constexpr int kTextKeys = 64;  // whose scores a warp has at once

__device__ __forceinline__ uint32_t packed(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000U);
}
__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// Over the four threads that share a row of a product.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 2));
}

/// Where 16 bytes of a row of a head lie in shared memory: eight rows in a column, as ldmatrix
/// reads them, and a row are both free of bank conflicts. Steps of two chunks are an exclusive-or
/// with multiples of 32.
__device__ __forceinline__ int place_of(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ row % 8) * 16);
}

/// Scores of the first 16 GROUPS keys of a slot, [8 keys][element of a fragment]. `keys`: the slot
/// and this lane's place in it.
template <int GROUPS, int TILES>
__device__ __forceinline__ void add_scores(const uint32_t (&q)[8][4], uint32_t keys,
                                           float (&s)[TILES][4]) {
#pragma unroll
  for (int step = 0; step < 8; ++step) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      uint32_t k[4];
      load_squares(k, (keys ^ static_cast<uint32_t>(32 * step)) + 16 * kRowBytes * group);
      multiply_add(s[2 * group], q[step][0], q[step][1], q[step][2], q[step][3], k[0], k[1]);
      multiply_add(s[2 * group + 1], q[step][0], q[step][1], q[step][2], q[step][3], k[2], k[3]);
    }
  }
}

}  // namespace ultraflash::cuda::kernels
