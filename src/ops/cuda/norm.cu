// Norms over rows, with the gated residual before them and the modulation after them in one pass.
//
// Rows of up to 1024 packs of 16 bytes stay in registers, so x and y are read once and every result
// written once; the variance is taken about the mean in a second sum over registers. One warp has a
// row of 513 to 2048 bf16, one CTA another, a pack per thread. Other rows are read again from
// cache, element by element. Bound by bytes.
#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kWarpRows = 8;  // rows of a CTA that has one warp per row

struct Row {
  const float* gate;
  const float* scale;
  const float* shift;
};
__device__ const float* row_of(const RowVectors& v, int64_t batch, int64_t row) {
  return v.data == nullptr ? nullptr : v.data + batch * v.batch_stride + row * v.row_stride;
}
__device__ Row vectors_of(const ResidualNormArgs& a, int64_t t) {
  const int64_t batch = t / a.tokens;
  const int64_t row = t % a.tokens / a.tokens_per_row;
  return {row_of(a.gate, batch, row), row_of(a.scale, batch, row), row_of(a.shift, batch, row)};
}

template <int N>
__device__ void load_floats(const float* p, float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 f = *reinterpret_cast<const float4*>(p + i);
    v[i] = f.x;
    v[i + 1] = f.y;
    v[i + 2] = f.z;
    v[i + 3] = f.w;
  }
}

// One CTA per row, a pack per thread.
template <typename T, int N>
__global__ void residual_norm_packed(ResidualNormArgs a) {
  __shared__ float scratch[32];
  const int64_t t = blockIdx.x;
  const Row vectors = vectors_of(a, t);
  const int64_t first = int64_t{threadIdx.x} * N;
  const bool active = first < a.dim;
  const int64_t at = t * a.dim + first;
  float v[N] = {};
  if (active) {
    const auto x = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(a.x) + at);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = as_float(x.x[i]);
    if (a.y != nullptr) {
      const auto y = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(a.y) + at);
      float gate[N];
      if (vectors.gate != nullptr) load_floats<N>(vectors.gate + first, gate);
      Pack<T, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float update = as_float(y.x[i]);
        out.x[i] = as<T>(v[i] + (vectors.gate != nullptr ? update * gate[i] : update));
        v[i] = as_float(out.x[i]);  // the norm sees what is stored
      }
      *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.x_out) + at) = out;
    }
  }
  if (a.n_out == nullptr) return;
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += v[i];
  const float mean = block_sum(sum, scratch) / static_cast<float>(a.dim);
  float squares = 0.0F;
  if (active) {
#pragma unroll
    for (int i = 0; i < N; ++i) squares += (v[i] - mean) * (v[i] - mean);
  }
  const float variance = block_sum(squares, scratch) / static_cast<float>(a.dim);
  if (!active) return;
  const float inverse = 1.0F / sqrtf(variance + a.eps);
  float scale[N];
  float shift[N];
  if (vectors.scale != nullptr) load_floats<N>(vectors.scale + first, scale);
  if (vectors.shift != nullptr) load_floats<N>(vectors.shift + first, shift);
  const float one = a.one_plus_scale ? 1.0F : 0.0F;
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float n = (v[i] - mean) * inverse;
    if (vectors.scale != nullptr) n *= scale[i] + one;
    if (vectors.shift != nullptr) n += shift[i];
    out.x[i] = as<T>(n);
  }
  *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.n_out) + at) = out;
}

// One warp per row of at most CHUNKS * 256 bf16, 8 rows a CTA: no barrier, and a sum costs a lane
// five exchanges for CHUNKS * 8 elements. The vectors come from L1, where the rows of a CTA share
// them. With QUANTISE the norm also goes out in e4m3.
template <int CHUNKS, bool QUANTISE>
__global__ void __launch_bounds__(kWarpRows * 32, 2)
    residual_norm_warps(const __grid_constant__ ResidualNormArgs a) {
  constexpr int N = 8;
  const int64_t row = int64_t{blockIdx.x} * kWarpRows + threadIdx.x / 32;
  if (row >= a.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto dim = static_cast<int>(a.dim);
  const Row vectors = vectors_of(a, row);
  const bf16* x = static_cast<const bf16*>(a.x) + row * dim;
  const bf16* y = static_cast<const bf16*>(a.y) + row * dim;
  Pack<bf16, N> in[CHUNKS];
  Pack<bf16, N> update[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = (32 * c + lane) * N;
    if (at >= dim) continue;
    in[c] = *reinterpret_cast<const Pack<bf16, N>*>(x + at);
    if (a.y != nullptr) update[c] = *reinterpret_cast<const Pack<bf16, N>*>(y + at);
  }
  float v[CHUNKS][N];
  float sum = 0.0F;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = (32 * c + lane) * N;
    const bool active = at < dim;
#pragma unroll
    for (int i = 0; i < N; ++i) v[c][i] = active ? as_float(in[c].x[i]) : 0.0F;
    if (active && a.y != nullptr) {
      float gate[N];
      if (vectors.gate != nullptr) load_floats<N>(vectors.gate + at, gate);
      Pack<bf16, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float u = as_float(update[c].x[i]);
        out.x[i] = as<bf16>(v[c][i] + (vectors.gate != nullptr ? u * gate[i] : u));
        v[c][i] = as_float(out.x[i]);  // the norm sees what is stored
      }
      *reinterpret_cast<Pack<bf16, N>*>(static_cast<bf16*>(a.x_out) + row * dim + at) = out;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sum += v[c][i];
  }
  if (a.n_out == nullptr) return;
  const float mean = warp_sum(sum) / static_cast<float>(dim);
  float squares = 0.0F;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    if ((32 * c + lane) * N >= dim) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[c][i] -= mean;
      squares += v[c][i] * v[c][i];
    }
  }
  const float inverse = 1.0F / sqrtf(warp_sum(squares) / static_cast<float>(dim) + a.eps);
  const float one = a.one_plus_scale ? 1.0F : 0.0F;
  float top = 0.0F;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = (32 * c + lane) * N;
    if (at >= dim) continue;
    float scale[N];
    float shift[N];
    if (vectors.scale != nullptr) load_floats<N>(vectors.scale + at, scale);
    if (vectors.shift != nullptr) load_floats<N>(vectors.shift + at, shift);
    Pack<bf16, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float n = v[c][i] * inverse;
      if (vectors.scale != nullptr) n *= scale[i] + one;
      if (vectors.shift != nullptr) n += shift[i];
      out.x[i] = as<bf16>(n);
      v[c][i] = as_float(out.x[i]);
      top = fmaxf(top, fabsf(v[c][i]));
    }
    *reinterpret_cast<Pack<bf16, N>*>(static_cast<bf16*>(a.n_out) + row * dim + at) = out;
  }
  if constexpr (QUANTISE) {
    const Fp8Scale fp8 = fp8_scale(warp_max(top));
    if (lane == 0) a.n_scales[row] = fp8.scale;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int at = (32 * c + lane) * N;
      if (at >= dim) continue;
      *reinterpret_cast<Pack<uint8_t, N>*>(static_cast<uint8_t*>(a.n_fp8) + row * dim + at) =
          to_fp8(v[c], fp8.factor);
    }
  }
}

template <typename T>
__global__ void residual_norm_plain(ResidualNormArgs a) {
  __shared__ float scratch[32];
  const int64_t t = blockIdx.x;
  const Row vectors = vectors_of(a, t);
  const T* source = static_cast<const T*>(a.x) + t * a.dim;
  if (a.y != nullptr) {
    const T* y = static_cast<const T*>(a.y) + t * a.dim;
    T* out = static_cast<T*>(a.x_out) + t * a.dim;
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
      const float update = as_float(y[i]);
      out[i] = as<T>(as_float(source[i]) +
                     (vectors.gate != nullptr ? update * vectors.gate[i] : update));
    }
    source = out;  // each thread reads what it wrote
  }
  if (a.n_out == nullptr) return;
  float sum = 0.0F;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) sum += as_float(source[i]);
  const float mean = block_sum(sum, scratch) / static_cast<float>(a.dim);
  float squares = 0.0F;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
    const float d = as_float(source[i]) - mean;
    squares += d * d;
  }
  const float variance = block_sum(squares, scratch) / static_cast<float>(a.dim);
  const float inverse = 1.0F / sqrtf(variance + a.eps);
  T* out = static_cast<T*>(a.n_out) + t * a.dim;
  const float one = a.one_plus_scale ? 1.0F : 0.0F;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
    float n = (as_float(source[i]) - mean) * inverse;
    if (vectors.scale != nullptr) n *= vectors.scale[i] + one;
    if (vectors.shift != nullptr) n += vectors.shift[i];
    out[i] = as<T>(n);
  }
}

// Packs of floats of modulation rows are read 16 bytes at a time.
bool packable(const RowVectors& v) {
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.batch_stride % 4 == 0 &&
         v.row_stride % 4 == 0;
}
bool packable(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// One warp per row for short rows, else a CTA: x * factor(row) * weight, then SiLU if asked.
enum class Kind { kRms, kChannel };
template <typename T, Kind KIND>
__global__ void scale_rows(const T* x, const float* weight, float eps, bool silu, int64_t rows,
                           int64_t dim, T* y) {
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int64_t lane = threadIdx.x % 32;
  x += row * dim;
  y += row * dim;
  float sum = 0.0F;
  for (int64_t i = lane; i < dim; i += 32) sum += as_float(x[i]) * as_float(x[i]);
  sum = warp_sum(sum);
  const float factor = KIND == Kind::kRms
                           ? 1.0F / sqrtf(sum / static_cast<float>(dim) + eps)
                           : sqrtf(static_cast<float>(dim)) / fmaxf(sqrtf(sum), 1e-12F);
  for (int64_t i = lane; i < dim; i += 32) {
    float v = as_float(x[i]) * factor * weight[i];
    if (silu) v = apply(Activation::kSilu, v);
    y[i] = as<T>(v);
  }
}
// As above with a CTA per row, 16 bytes per thread.
template <typename T, int N, Kind KIND>
__global__ void scale_rows_packed(const T* x, const float* weight, float eps, bool silu,
                                  int64_t dim, T* y) {
  __shared__ float scratch[32];
  const int64_t first = int64_t{threadIdx.x} * N;
  const int64_t at = int64_t{blockIdx.x} * dim + first;
  const bool active = first < dim;
  float v[N] = {};
  float sum = 0.0F;
  if (active) {
    const auto in = *reinterpret_cast<const Pack<T, N>*>(x + at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[i] = as_float(in.x[i]);
      sum += v[i] * v[i];
    }
  }
  sum = block_sum(sum, scratch);
  if (!active) return;
  const float factor = KIND == Kind::kRms
                           ? 1.0F / sqrtf(sum / static_cast<float>(dim) + eps)
                           : sqrtf(static_cast<float>(dim)) / fmaxf(sqrtf(sum), 1e-12F);
  float w[N];
  load_floats<N>(weight + first, w);
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float n = v[i] * factor * w[i];
    if (silu) n = apply(Activation::kSilu, n);
    out.x[i] = as<T>(n);
  }
  *reinterpret_cast<Pack<T, N>*>(y + at) = out;
}

unsigned threads_for(int64_t dim, int n) { return static_cast<unsigned>((dim / n + 31) / 32 * 32); }

template <Kind KIND>
void launch_scale_rows(DType dtype, const void* x, const float* weight, float eps, bool silu,
                       int64_t rows, int64_t dim, void* y, cudaStream_t stream) {
  if (rows * dim == 0) return;
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = 16 / static_cast<int>(sizeof(T));
    const auto* in = static_cast<const T*>(x);
    auto* out = static_cast<T*>(y);
    if (dim % N == 0 && dim / N <= 1024 && dim / N >= 64 && packable(x) && packable(y) &&
        packable(weight)) {
      scale_rows_packed<T, N, KIND>
          <<<static_cast<unsigned>(rows), threads_for(dim, N), 0, stream>>>(in, weight, eps, silu,
                                                                            dim, out);
    } else {
      scale_rows<T, KIND>
          <<<ceil_div(rows, 8), 256, 0, stream>>>(in, weight, eps, silu, rows, dim, out);
    }
  });
  UF_CUDA_LAUNCHED();
}

}  // namespace

void residual_norm(const ResidualNormArgs& args, cudaStream_t stream) {
  if (args.rows * args.dim == 0) return;
  require(args.n_fp8 == nullptr || (args.dtype == DType::kBF16 && args.n_out != nullptr),
          "residual_norm: e4m3 beside a norm in bf16");
  bool quantised = false;
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = 16 / static_cast<int>(sizeof(T));
    const bool packed = args.dim % N == 0 && args.dim / N <= 1024 && packable(args.x) &&
                        packable(args.y) && packable(args.x_out) && packable(args.n_out) &&
                        packable(args.gate) && packable(args.scale) && packable(args.shift);
    const auto rows = static_cast<unsigned>(args.rows);
    if (!packed) {
      residual_norm_plain<T><<<rows, 256, 0, stream>>>(args);
      return;
    }
    if constexpr (sizeof(T) == 2) {
      if (args.dim <= 2048 && args.dim > 512) {
        const auto go = [&](auto kernel) {
          kernel<<<ceil_div(args.rows, kWarpRows), kWarpRows * 32, 0, stream>>>(args);
        };
        quantised = args.n_fp8 != nullptr;
        if (args.dim <= 1536) {
          quantised ? go(residual_norm_warps<6, true>) : go(residual_norm_warps<6, false>);
        } else {
          quantised ? go(residual_norm_warps<8, true>) : go(residual_norm_warps<8, false>);
        }
        return;
      }
    }
    residual_norm_packed<T, N><<<rows, threads_for(args.dim, N), 0, stream>>>(args);
  });
  UF_CUDA_LAUNCHED();
  if (args.n_fp8 == nullptr || quantised) return;
  QuantiseArgs rest;
  rest.x = args.n_out;
  rest.rows = args.rows;
  rest.dim = args.dim;
  rest.y = args.n_fp8;
  rest.scales = args.n_scales;
  quantise_rows(rest, stream);
}

void rms_norm(DType dtype, const void* x, const float* weight, float eps, int64_t rows, int64_t dim,
              void* y, cudaStream_t stream) {
  launch_scale_rows<Kind::kRms>(dtype, x, weight, eps, /*silu=*/false, rows, dim, y, stream);
}

void channel_norm(DType dtype, const void* x, const float* gamma, bool silu, int64_t rows,
                  int64_t channels, void* y, cudaStream_t stream) {
  launch_scale_rows<Kind::kChannel>(dtype, x, gamma, 0.0F, silu, rows, channels, y, stream);
}

}  // namespace ultraflash::cuda::kernels
