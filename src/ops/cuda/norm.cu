// Norms over rows, with the gated residual before them and the modulation after them in one pass.
//
// Rows of up to 1024 packs of 16 bytes stay in registers, one pack per thread (1536 bf16: 192
// threads), so x and y are read once and every result written once; the variance is taken about the
// mean in a second sum over registers. Other rows are read again from cache, element by element, by
// a CTA each. Bound by bytes.
#include <algorithm>

#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kMaxWarps = 32;
// CTAs that several rows each are dealt to: four for each multiprocessor of an H200, whose
// registers hold as many.
constexpr int64_t kRowCtas = 4 * 132;

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

/// Sums (or maxima) of ROWS values over a CTA, in all threads, by one barrier. The next call takes
/// the other half of `scratch`, so that nobody writes what another thread still reads; warps that
/// are not there count as zeros.
template <int ROWS, bool MAXIMUM>
__device__ __forceinline__ void block_each(float (&x)[ROWS], float (*scratch)[ROWS][kMaxWarps]) {
  constexpr int kLanes = 32 / ROWS;  // that end with the same total
  const unsigned lane = threadIdx.x % 32;
  const auto join = [](float a, float b) { return MAXIMUM ? fmaxf(a, b) : a + b; };
  float part[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) part[i] = x[i];
  unsigned step = 16;
#pragma unroll
  for (int half = ROWS / 2; half >= 1; half /= 2, step /= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float mine = upper ? part[i + half] : part[i];
      const float other = upper ? part[i] : part[i + half];
      part[i] = join(mine, __shfl_xor_sync(0xFFFFFFFFU, other, step));
    }
  }
#pragma unroll
  for (; step >= 1; step /= 2) part[0] = join(part[0], __shfl_xor_sync(0xFFFFFFFFU, part[0], step));
  if (lane % kLanes == 0) (*scratch)[lane / kLanes][threadIdx.x / 32] = part[0];
  __syncthreads();
  const unsigned warps = blockDim.x / 32;
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    float total = 0.0F;
    for (unsigned w = 0; w < warps; w += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&(*scratch)[i][w]);
      total = join(total, join(join(four.x, four.y), join(four.z, four.w)));
    }
    x[i] = total;
  }
}

// Each CTA has some rows that share their vectors, which its threads keep in registers, a pack of
// columns each; ROWS rows at a time, so that a barrier serves several. With QUANTISE the norm also
// goes out in e4m3.
template <typename T, int N, int ROWS, int MAX_THREADS, int CTAS, bool QUANTISE>
__global__ void __launch_bounds__(MAX_THREADS, CTAS)
    residual_norm_rows(const __grid_constant__ ResidualNormArgs a, int ctas_of_vectors,
                       int rows_of_cta) {
  __shared__ __align__(16) float scratch[2][ROWS][kMaxWarps];
  for (unsigned i = threadIdx.x; i < 2 * ROWS * kMaxWarps; i += blockDim.x) {
    (&scratch[0][0][0])[i] = 0.0F;
  }
  const int64_t run = blockIdx.x / ctas_of_vectors;  // rows that share their vectors
  const int64_t first = run * a.tokens_per_row;
  const int64_t begin = first + blockIdx.x % ctas_of_vectors * int64_t{rows_of_cta};
  const int64_t end = min(begin + rows_of_cta, first + a.tokens_per_row);
  const Row vectors = vectors_of(a, first);
  const int column = static_cast<int>(threadIdx.x) * N;
  const bool active = column < a.dim;
  float gate[N];
  float scale[N];
  float shift[N];
#pragma unroll
  for (int i = 0; i < N; ++i) gate[i] = scale[i] = 1.0F, shift[i] = 0.0F;
  if (active && vectors.gate != nullptr) load_floats<N>(vectors.gate + column, gate);
  if (active && vectors.shift != nullptr) load_floats<N>(vectors.shift + column, shift);
  if (active && vectors.scale != nullptr) {
    load_floats<N>(vectors.scale + column, scale);
#pragma unroll
    for (int i = 0; i < N; ++i) scale[i] += a.one_plus_scale ? 1.0F : 0.0F;
  }
  const float inverse_dim = 1.0F / static_cast<float>(a.dim);
  const T* x = static_cast<const T*>(a.x) + column;
  const T* y = static_cast<const T*>(a.y) + column;
  int turn = 0;
  __syncthreads();
  for (int64_t row = begin; row < end; row += ROWS) {
    Pack<T, N> in[ROWS];
    Pack<T, N> update[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (!active || row + r >= end) continue;
      in[r] = *reinterpret_cast<const Pack<T, N>*>(x + (row + r) * a.dim);
      if (a.y != nullptr) {
        update[r] = *reinterpret_cast<const Pack<T, N>*>(y + (row + r) * a.dim);
      }
    }
    float v[ROWS][N];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const bool real = active && row + r < end;
#pragma unroll
      for (int i = 0; i < N; ++i) v[r][i] = real ? as_float(in[r].x[i]) : 0.0F;
      if (!real || a.y == nullptr) continue;
      Pack<T, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        out.x[i] = as<T>(v[r][i] + as_float(update[r].x[i]) * gate[i]);
        v[r][i] = as_float(out.x[i]);  // the norm sees what is stored
      }
      *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.x_out) + (row + r) * a.dim + column) = out;
    }
    if (a.n_out == nullptr) continue;
    float total[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      total[r] = 0.0F;
#pragma unroll
      for (int i = 0; i < N; ++i) total[r] += v[r][i];
    }
    block_each<ROWS, false>(total, &scratch[turn]);
    turn ^= 1;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float mean = total[r] * inverse_dim;
      total[r] = 0.0F;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        v[r][i] = active ? v[r][i] - mean : 0.0F;
        total[r] += v[r][i] * v[r][i];
      }
    }
    block_each<ROWS, false>(total, &scratch[turn]);
    turn ^= 1;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float inverse = 1.0F / sqrtf(total[r] * inverse_dim + a.eps);
      total[r] = 0.0F;
      Pack<T, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        out.x[i] = as<T>(v[r][i] * inverse * scale[i] + shift[i]);
        v[r][i] = as_float(out.x[i]);
        total[r] = fmaxf(total[r], fabsf(v[r][i]));
      }
      if (active && row + r < end) {
        *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.n_out) + (row + r) * a.dim + column) = out;
      }
    }
    if constexpr (QUANTISE) {
      block_each<ROWS, true>(total, &scratch[turn]);
      turn ^= 1;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if (!active || row + r >= end) continue;
        const Fp8Scale fp8 = fp8_scale(total[r]);
        if (threadIdx.x == 0) a.n_scales[row + r] = fp8.scale;
        *reinterpret_cast<Pack<uint8_t, N>*>(static_cast<uint8_t*>(a.n_fp8) + (row + r) * a.dim +
                                             column) = to_fp8(v[r], fp8.factor);
      }
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
                        packable(args.gate) && packable(args.scale) && packable(args.shift) &&
                        args.tokens % args.tokens_per_row == 0;
    if (!packed) {
      residual_norm_plain<T><<<static_cast<unsigned>(args.rows), 256, 0, stream>>>(args);
      return;
    }
    const unsigned threads = threads_for(args.dim, N);
    const int64_t runs = args.rows / args.tokens_per_row;
    const auto go = [&](auto kernel, int64_t at_once, int64_t ctas) {
      const int64_t share = (args.rows + ctas - 1) / ctas;
      const int64_t rows = std::min((share + at_once - 1) / at_once * at_once, args.tokens_per_row);
      const int64_t per_run = (args.tokens_per_row + rows - 1) / rows;
      kernel<<<static_cast<unsigned>(runs * per_run), threads, 0, stream>>>(
          args, static_cast<int>(per_run), static_cast<int>(rows));
    };
    if constexpr (sizeof(T) == 2) {
      if (threads <= 256) {
        if (args.n_fp8 != nullptr) {
          go(residual_norm_rows<T, N, 2, 256, 3, true>, 2, kRowCtas);
        } else {
          go(residual_norm_rows<T, N, 2, 256, 3, false>, 2, kRowCtas);
        }
        quantised = args.n_fp8 != nullptr;
        return;
      }
    }
    go(residual_norm_rows<T, N, 1, 1024, 1, false>, 1, args.rows);
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
