// Rows to e4m3 with a scale of their own, and what a product's epilogue left undone. Bound by
// bytes.
#include "ops/cuda/device.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 8;
constexpr float kLargest = 448.0F;  // of e4m3

// One CTA per row; the row stays in registers between the search for its largest element and the
// conversion. CHUNKS packs of 8 per thread.
template <int CHUNKS>
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(const bf16* x, int64_t dim, uint8_t* y, float* scales) {
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x;
  x += row * dim;
  y += row * dim;
  Pack<bf16, kPack> v[CHUNKS];
  float top = 0.0F;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int64_t at = (int64_t{c} * kThreads + threadIdx.x) * kPack;
    if (at >= dim) continue;
    v[c] = *reinterpret_cast<const Pack<bf16, kPack>*>(x + at);
#pragma unroll
    for (int i = 0; i < kPack; ++i) top = fmaxf(top, fabsf(as_float(v[c].x[i])));
  }
  top = fmaxf(block_max(top, scratch), 1e-12F);
  const float factor = kLargest / top;
  if (threadIdx.x == 0) scales[row] = top / kLargest;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int64_t at = (int64_t{c} * kThreads + threadIdx.x) * kPack;
    if (at >= dim) continue;
    Pack<uint8_t, kPack> out;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      out.x[i] = __nv_cvt_float_to_fp8(as_float(v[c].x[i]) * factor, __NV_SATFINITE, __NV_E4M3);
    }
    *reinterpret_cast<Pack<uint8_t, kPack>*>(y + at) = out;
  }
}

// y = activation(y + bias), in place, 8 elements a thread.
__global__ void finish_kernel(bf16* y, const float* bias, int64_t dim, Activation activation,
                              int64_t packs) {
  for (int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; p < packs;
       p += int64_t{gridDim.x} * blockDim.x) {
    auto* at = reinterpret_cast<Pack<bf16, kPack>*>(y) + p;
    Pack<bf16, kPack> v = *at;
    const int64_t column = p * kPack % dim;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float b = bias != nullptr ? bias[column + i] : 0.0F;
      v.x[i] = as<bf16>(apply(activation, as_float(v.x[i]) + b));
    }
    *at = v;
  }
}

}  // namespace

bool quantises(int64_t dim) { return dim % kPack == 0 && dim <= int64_t{8} * kThreads * kPack; }

void quantise_rows(const void* x, int64_t rows, int64_t dim, void* y, float* scales,
                   cudaStream_t stream) {
  if (rows * dim == 0) return;
  require(quantises(dim), "quantise_rows: rows of at most 16384, a multiple of 8");
  const auto* in = static_cast<const bf16*>(x);
  auto* out = static_cast<uint8_t*>(y);
  const auto ctas = static_cast<unsigned>(rows);
  const int64_t chunk = int64_t{kThreads} * kPack;
  if (dim <= chunk) {
    quantise_kernel<1><<<ctas, kThreads, 0, stream>>>(in, dim, out, scales);
  } else if (dim <= 5 * chunk) {
    quantise_kernel<5><<<ctas, kThreads, 0, stream>>>(in, dim, out, scales);
  } else {
    quantise_kernel<8><<<ctas, kThreads, 0, stream>>>(in, dim, out, scales);
  }
  UF_CUDA_LAUNCHED();
}

void finish_product(void* y, const float* bias, int64_t rows, int64_t dim, Activation activation,
                    cudaStream_t stream) {
  if (rows * dim == 0) return;
  require(dim % kPack == 0, "finish_product: rows that are a multiple of 8");
  const int64_t packs = rows * dim / kPack;
  finish_kernel<<<grid_for(packs), 256, 0, stream>>>(static_cast<bf16*>(y), bias, dim, activation,
                                                     packs);
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
