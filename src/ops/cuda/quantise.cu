// Rows to e4m3 with a scale of their own, and what a product's epilogue left undone. Bound by
// bytes.
#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 8;
constexpr int kMostChunks = 8;  // packs of a thread: what stays in registers

// GELU's tanh form as x times a sigmoid, with the fast exponential: about 1e-6 off.
__device__ __forceinline__ float apply_fast(Activation activation, float x) {
  if (activation != Activation::kGeluTanh) return apply(activation, x);
  const float u = 1.59576912160573F * (x + 0.044715F * x * x * x);
  return __fdividef(x, 1.0F + __expf(-u));
}

// Rows are taken last to first: of 84 MB of inner rows of a feed-forward half the last ones are
// still in L2 when the product before this pass ends, and the first ones should be when the product
// behind it begins. What was read is not needed again.
// A row stays in registers between the search for its largest element and the conversion, CHUNKS
// packs of 8 a thread: one warp per row up to 2048 elements, else one CTA.
template <int CHUNKS, bool WARP>
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(const bf16* x, int64_t rows, int dim, uint8_t* y, float* scales) {
  __shared__ float scratch[32];
  const int64_t from_last =
      WARP ? int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32 : int64_t{blockIdx.x};
  if (WARP && from_last >= rows) return;
  const int64_t row = rows - 1 - from_last;
  const int thread = static_cast<int>(WARP ? threadIdx.x % 32 : threadIdx.x);
  const int threads = static_cast<int>(WARP ? 32 : blockDim.x);
  x += row * dim;
  y += row * dim;
  Pack<bf16, kPack> v[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = (c * threads + thread) * kPack;
    if (at >= dim) continue;
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(x + at));
    v[c] = *reinterpret_cast<const Pack<bf16, kPack>*>(&words);
  }
  float top = 0.0F;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = (c * threads + thread) * kPack;
    if (at >= dim) continue;
#pragma unroll
    for (int i = 0; i < kPack; ++i) top = fmaxf(top, fabsf(as_float(v[c].x[i])));
  }
  const Fp8Scale scale = fp8_scale(WARP ? warp_max(top) : block_max(top, scratch));
  if (thread == 0) scales[row] = scale.scale;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = (c * threads + thread) * kPack;
    if (at >= dim) continue;
    float values[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) values[i] = as_float(v[c].x[i]);
    *reinterpret_cast<Pack<uint8_t, kPack>*>(y + at) = to_fp8(values, scale.factor);
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
      v.x[i] = as<bf16>(apply_fast(activation, as_float(v.x[i]) + b));
    }
    *at = v;
  }
}

}  // namespace

bool quantises(int64_t dim) {
  return dim % kPack == 0 && dim <= int64_t{kMostChunks} * kThreads * kPack;
}

void quantise_rows(const QuantiseArgs& a, cudaStream_t stream) {
  if (a.rows * a.dim == 0) return;
  require(quantises(a.dim), "quantise_rows: rows of at most 16384, a multiple of 8");
  const int dim = static_cast<int>(a.dim);
  const int packs = dim / kPack;
  const auto go = [&](auto kernel, unsigned ctas, unsigned threads) {
    kernel<<<ctas, threads, 0, stream>>>(static_cast<const bf16*>(a.x), a.rows, dim,
                                         static_cast<uint8_t*>(a.y), a.scales);
  };
  const unsigned ctas = ceil_div(a.rows, kThreads / 32);
  const auto threads_of = [&](int chunks) {
    return static_cast<unsigned>((packs + chunks * 32 - 1) / (chunks * 32) * 32);
  };
  if (packs <= 64) {
    go(quantise_kernel<2, true>, ctas, kThreads);
  } else if (packs <= 192) {
    go(quantise_kernel<6, true>, ctas, kThreads);
  } else if (packs <= kMostChunks * 32) {
    go(quantise_kernel<kMostChunks, true>, ctas, kThreads);
  } else if (packs <= 5 * kThreads) {
    go(quantise_kernel<5, false>, static_cast<unsigned>(a.rows), threads_of(5));
  } else {
    go(quantise_kernel<kMostChunks, false>, static_cast<unsigned>(a.rows), threads_of(kMostChunks));
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
