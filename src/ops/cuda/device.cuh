// What kernels share: storage types, rounding, activations, sums over a CTA.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/cuda_error.h"
#include "ops/cuda/kernels.h"

namespace ultraflash::cuda {

using bf16 = __nv_bfloat16;

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_fp8_e4m3 x) { return static_cast<float>(x); }
template <typename T>
__device__ inline T as(float x);
template <>
__device__ inline float as<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 as<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half as<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_fp8_e4m3 as<__nv_fp8_e4m3>(float x) {
  return __nv_fp8_e4m3(x);  // saturates
}

/// N elements that are read and written at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T x[N];
};

__device__ inline float apply(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu:
      return fmaxf(x, 0.0F);
    case Activation::kSilu:
      return x / (1.0F + expf(-x));
    case Activation::kGeluTanh:
      return 0.5F * x * (1.0F + tanhf(0.797884560802865356F * (x + 0.044715F * x * x * x)));
    case Activation::kGeluErf:
      return 0.5F * x * (1.0F + erff(x * 0.707106781186547524F));
    default:
      return x;
  }
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, offset));
  }
  return x;
}

/// Combines COUNT values (a power of two) over the warp, each with its like: lane l ends with the
/// result of value l / (32 / COUNT).
template <int COUNT, typename Combine>
__device__ __forceinline__ float combine_each(float (&x)[COUNT], Combine combine) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int step = 16;
#pragma unroll
  for (int half = COUNT / 2; half >= 1; half /= 2, step /= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float mine = upper ? x[i + half] : x[i];
      const float other = upper ? x[i] : x[i + half];
      x[i] = combine(mine, __shfl_xor_sync(0xFFFFFFFFU, other, step));
    }
  }
#pragma unroll
  for (; step >= 1; step /= 2) x[0] = combine(x[0], __shfl_xor_sync(0xFFFFFFFFU, x[0], step));
  return x[0];
}
template <int COUNT>
__device__ __forceinline__ float sum_each(float (&x)[COUNT]) {
  return combine_each(x, [](float a, float b) { return a + b; });
}
template <int COUNT>
__device__ __forceinline__ float max_each(float (&x)[COUNT]) {
  return combine_each(x, [](float a, float b) { return fmaxf(a, b); });
}

/// The sum over all threads of a CTA, in all of them. `scratch`: 32 floats of shared memory, which
/// may be used again at once (it begins and ends with a barrier of the whole CTA).
__device__ inline float block_sum(float x, float* scratch) {
  const unsigned warp = threadIdx.x / 32;
  const unsigned lane = threadIdx.x % 32;
  x = warp_sum(x);
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  const unsigned warps = (blockDim.x + 31) / 32;
  return warp_sum(lane < warps ? scratch[lane] : 0.0F);
}
__device__ inline float block_max(float x, float* scratch) {
  const unsigned warp = threadIdx.x / 32;
  const unsigned lane = threadIdx.x % 32;
  x = warp_max(x);
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  const unsigned warps = (blockDim.x + 31) / 32;
  return warp_max(lane < warps ? scratch[lane] : -INFINITY);
}

inline unsigned ceil_div(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

/// Whether packs of 16 bytes may be read and written at `p`.
inline bool packable(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/// CTAs of 256 threads that walk `count` items with a grid stride.
inline unsigned grid_for(int64_t count) {
  const int64_t blocks = (count + 255) / 256;
  return static_cast<unsigned>(blocks < 1 << 16 ? blocks : 1 << 16);
}

/// Calls body(T{}) with the storage type of `dtype`, f32 or bf16.
template <typename Body>
void with_type(DType dtype, const Body& body) {
  if (dtype == DType::kBF16) {
    body(bf16{});
  } else if (dtype == DType::kF32) {
    body(float{});
  } else {
    refuse_dtype(dtype);
  }
}
/// As with_type, with f16 and f8_e4m3 too: for conversions.
template <typename Body>
void with_storage_type(DType dtype, const Body& body) {
  if (dtype == DType::kF16) {
    body(__half{});
  } else if (dtype == DType::kF8E4M3) {
    body(__nv_fp8_e4m3{});
  } else {
    with_type(dtype, body);
  }
}

}  // namespace ultraflash::cuda
