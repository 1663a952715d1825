// Norms over rows, with the gated residual before them and the modulation after them in one pass.
//
// A CTA takes four rows of bf16 that share their modulation, 8 columns a thread: the vectors are
// read once, and the sums of the rows are exchanged together.
// Elsewhere one CTA per row. Rows of up to 1024 packs of 16 bytes stay in registers, one pack per
// thread (1536 bf16: 192 threads), so x and y are read once and both results written once; the
// variance is taken about the mean in a second sum over registers. Other rows are read again from
// cache, element by element. Bound by bytes.
#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda::kernels {
namespace {

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

constexpr int kRows = 4;       // of a CTA
constexpr int kMostWarps = 8;  // 2048 columns
constexpr int kColumns = 8;    // of a thread

/// Totals over the CTA of a value for each row, times `factor`.
__device__ __forceinline__ void row_means(float (&x)[kRows], float factor,
                                          float (&scratch)[kRows][kMostWarps]) {
  const unsigned lane = threadIdx.x % 32;
  const float total = sum_each(x);
  if (lane % 8 == 0) scratch[lane / 8][threadIdx.x / 32] = total;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float4 low = *reinterpret_cast<const float4*>(&scratch[r][0]);
    const float4 high = *reinterpret_cast<const float4*>(&scratch[r][4]);
    x[r] = (((low.x + low.y) + (low.z + low.w)) + ((high.x + high.y) + (high.z + high.w))) * factor;
  }
}

/// The largest of a value for each row over the CTA; values are not negative.
__device__ __forceinline__ void row_maxima(float (&x)[kRows], float (&scratch)[kRows][kMostWarps]) {
  const unsigned lane = threadIdx.x % 32;
  const float top = max_each(x);
  if (lane % 8 == 0) scratch[lane / 8][threadIdx.x / 32] = top;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float4 low = *reinterpret_cast<const float4*>(&scratch[r][0]);
    const float4 high = *reinterpret_cast<const float4*>(&scratch[r][4]);
    x[r] = fmaxf(fmaxf(fmaxf(low.x, low.y), fmaxf(low.z, low.w)),
                 fmaxf(fmaxf(high.x, high.y), fmaxf(high.z, high.w)));
  }
}

template <bool FP8>
__global__ void __launch_bounds__(32 * kMostWarps, 4)
    residual_norm_rows(const __grid_constant__ ResidualNormArgs a) {
  constexpr int kSums = FP8 ? 3 : 2;
  __shared__ __align__(16) float scratch[kSums][kRows][kMostWarps];
  const auto thread = static_cast<int>(threadIdx.x);
  const auto dim = static_cast<int>(a.dim);
  const int column = thread * kColumns;
  const bool active = column < dim;
  // All four rows have these vectors.
  const uint32_t t = blockIdx.x * kRows;
  const auto tokens = static_cast<uint32_t>(a.tokens);
  const uint32_t batch = t / tokens;
  const uint32_t vector = (t - batch * tokens) / static_cast<uint32_t>(a.tokens_per_row);
  for (int i = thread; i < kSums * kRows * kMostWarps; i += static_cast<int>(blockDim.x)) {
    const int warp = i % kMostWarps;
    if (warp < static_cast<int>(blockDim.x) / 32) continue;
    scratch[i / (kRows * kMostWarps)][i / kMostWarps % kRows][warp] = 0.0F;
  }
  const int64_t at = int64_t{t} * dim + column;
  float v[kRows][kColumns] = {};
  float scale[kColumns] = {};
  float shift[kColumns] = {};
  if (active) {
    using In = Pack<bf16, kColumns>;
    In x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      x[r] = *reinterpret_cast<const In*>(static_cast<const bf16*>(a.x) + at + r * dim);
    }
    if (a.y != nullptr) {
      In y[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        y[r] = *reinterpret_cast<const In*>(static_cast<const bf16*>(a.y) + at + r * dim);
      }
      float gate[kColumns];
#pragma unroll
      for (float& g : gate) g = 1.0F;
      if (const float* from = row_of(a.gate, batch, vector)) load_floats(from + column, gate);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        In out;
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          out.x[i] = as<bf16>(as_float(x[r].x[i]) + as_float(y[r].x[i]) * gate[i]);
          v[r][i] = as_float(out.x[i]);  // the norm sees what is stored
        }
        *reinterpret_cast<In*>(static_cast<bf16*>(a.x_out) + at + r * dim) = out;
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) v[r][i] = as_float(x[r].x[i]);
      }
    }
    if (const float* from = row_of(a.scale, batch, vector)) {
      load_floats(from + column, scale);
    } else {
#pragma unroll
      for (float& s : scale) s = a.one_plus_scale ? 0.0F : 1.0F;
    }
    if (const float* from = row_of(a.shift, batch, vector)) load_floats(from + column, shift);
  }
  const float per_column = 1.0F / static_cast<float>(dim);
  float mean[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) mean[r] += v[r][i];
  }
  row_means(mean, per_column, scratch[0]);
  float inverse[kRows] = {};
  if (active) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        v[r][i] -= mean[r];
        inverse[r] += v[r][i] * v[r][i];
      }
    }
  }
  row_means(inverse, per_column, scratch[1]);
  if (a.one_plus_scale) {
#pragma unroll
    for (float& s : scale) s += 1.0F;
  }
  Pack<bf16, kColumns> out[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float factor = rsqrtf(inverse[r] + a.eps);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      out[r].x[i] = as<bf16>(v[r][i] * factor * scale[i] + shift[i]);
    }
  }
  if constexpr (FP8) {
    float top[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        top[r] = fmaxf(top[r], fabsf(as_float(out[r].x[i])));
      }
    }
    row_maxima(top, scratch[2]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Fp8Scale fp8 = fp8_scale(top[r]);
      if (thread == 0) a.n_scales[t + r] = fp8.scale;
      if (!active) continue;
      float n[kColumns];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) n[i] = as_float(out[r].x[i]);
      *reinterpret_cast<Pack<uint8_t, kColumns>*>(static_cast<uint8_t*>(a.n_out) + at + r * dim) =
          to_fp8(n, fp8.factor);
    }
  } else if (active) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      *reinterpret_cast<Pack<bf16, kColumns>*>(static_cast<bf16*>(a.n_out) + at + r * dim) = out[r];
    }
  }
}

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
bool vectors_packable(const RowVectors& v) {
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.batch_stride % 4 == 0 &&
         v.row_stride % 4 == 0;
}

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

bool four_rows_fit(const ResidualNormArgs& a) {
  return a.dtype == DType::kBF16 && a.dim % kColumns == 0 && a.dim / kColumns <= 32 * kMostWarps &&
         a.tokens % kRows == 0 && a.tokens_per_row % kRows == 0 && a.rows % a.tokens == 0 &&
         a.rows < int64_t{1} << 31 && packable(a.x) && packable(a.y) && packable(a.x_out) &&
         packable(a.n_out) && vectors_packable(a.gate) && vectors_packable(a.scale) &&
         vectors_packable(a.shift);
}

}  // namespace

bool norm_quantises(const ResidualNormArgs& args) { return four_rows_fit(args); }

void residual_norm(const ResidualNormArgs& args, cudaStream_t stream) {
  if (args.rows * args.dim == 0) return;
  if (args.n_out != nullptr && four_rows_fit(args)) {
    const auto go = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(args.rows / kRows), threads_for(args.dim, kColumns), 0,
               stream>>>(args);
    };
    if (args.n_scales != nullptr) {
      go(residual_norm_rows<true>);
    } else {
      go(residual_norm_rows<false>);
    }
    UF_CUDA_LAUNCHED();
    return;
  }
  require(args.n_scales == nullptr, "residual_norm: e4m3 rows of this form");
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = 16 / static_cast<int>(sizeof(T));
    const auto rows = static_cast<unsigned>(args.rows);
    if (args.dim % N == 0 && args.dim / N <= 1024 && packable(args.x) && packable(args.y) &&
        packable(args.x_out) && packable(args.n_out) && vectors_packable(args.gate) &&
        vectors_packable(args.scale) && vectors_packable(args.shift)) {
      residual_norm_packed<T, N><<<rows, threads_for(args.dim, N), 0, stream>>>(args);
    } else {
      residual_norm_plain<T><<<rows, 256, 0, stream>>>(args);
    }
  });
  UF_CUDA_LAUNCHED();
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
