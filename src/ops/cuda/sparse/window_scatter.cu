// Query/key preparation of the sparse SR DiT: y = rotate(x / rms(x) * weight), in window order,
// with block means.
//
// A cluster of CTAs makes one window block, each its share of the tokens; a thread owns 8 columns
// of q, k and v and keeps its part of the two means in registers. Some tokens at a time, the next
// ones being loaded meanwhile. The parts of the means are added in the order of the CTAs. Before
// sm_90 there are no clusters and one CTA makes the whole block.
//
// bf16 or f32 in memory, f32 arithmetic, one rounding. Bound by memory: q, k and v are read once
// and written once.
#include <cuda_bf16.h>

#include <algorithm>
#include <type_traits>

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/quantise.cuh"
#include "ops/cuda/sparse/window_scatter.h"

namespace ultraflash::cuda {
namespace {

constexpr int kColumns = 8;  // of a thread
constexpr int kMaxWarps = 32;

template <typename T>
struct Columns;
template <>
struct Columns<__nv_bfloat16> {
  uint4 raw;
  __device__ __forceinline__ void load(const __nv_bfloat16* from) {
    raw = __ldcs(reinterpret_cast<const uint4*>(from));
  }
  __device__ __forceinline__ void store(__nv_bfloat16* to) const {
    *reinterpret_cast<uint4*>(to) = raw;
  }
  __device__ __forceinline__ void clear() { raw = make_uint4(0, 0, 0, 0); }
  __device__ __forceinline__ void unpack(float (&x)[kColumns]) const {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000U);
    }
  }
  /// Rounds, and leaves the rounded values in x.
  __device__ __forceinline__ void pack(float (&x)[kColumns]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      words[i] = *reinterpret_cast<const uint32_t*>(&pair);
    }
    raw = make_uint4(words[0], words[1], words[2], words[3]);
    unpack(x);
  }
};
template <>
struct Columns<float> {
  float4 low, high;
  __device__ __forceinline__ void load(const float* from) {
    low = __ldcs(reinterpret_cast<const float4*>(from));
    high = __ldcs(reinterpret_cast<const float4*>(from) + 1);
  }
  __device__ __forceinline__ void store(float* to) const {
    reinterpret_cast<float4*>(to)[0] = low;
    reinterpret_cast<float4*>(to)[1] = high;
  }
  __device__ __forceinline__ void clear() { low = high = make_float4(0.0F, 0.0F, 0.0F, 0.0F); }
  __device__ __forceinline__ void unpack(float (&x)[kColumns]) const {
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  }
  __device__ __forceinline__ void pack(float (&x)[kColumns]) {
    low = make_float4(x[0], x[1], x[2], x[3]);
    high = make_float4(x[4], x[5], x[6], x[7]);
  }
};

__device__ __forceinline__ void store_mean(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16(x);
}
__device__ __forceinline__ void store_mean(float* to, float x) { *to = x; }

struct ScatterParams {
  const void* qkv;
  int64_t pitch;
  const float* norm_q;
  const float* norm_k;
  const float2* rotary;
  const int64_t* first_slot;
  void *q, *pooled_q, *k, *v, *pooled_k;
  float* scales;  // e4m3
  float eps;
  int dim, head_dim;
  int frames, height, width;
  int window_frames, window_height, window_width, window_tokens;
  int block_columns, spatial_blocks, query_blocks, cached_blocks, capacity_blocks;
};

/// Where a token comes from and the rows of the rotary table it takes.
struct TokenSource {
  int row;  // in its sample; -1: padding
  int time, vertical, horizontal;
};

template <typename T, int TOKENS>
struct Lines {
  Columns<T> q[TOKENS], k[TOKENS], v[TOKENS];
};

/// v of tokens [begin, end) in e4m3, transposed: 16 tokens are 16 bytes of a row of 128. `sources`:
/// where those tokens come from; `to`: the first byte of this thread's first column.
template <typename T>
__device__ __forceinline__ void write_values(const T* v, int64_t pitch, const TokenSource* sources,
                                             int begin, int end, uint8_t* to) {
  for (int first = begin; first < end; first += 16) {
    Columns<T> in[16];  // all of them on their way at once
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const int from = sources[first + n - begin].row;
      if (from >= 0) {
        in[n].load(v + from * pitch);
      } else {
        in[n].clear();
      }
    }
    uint32_t words[kColumns][4];
    // Tokens 8 half + 2 w + {0, 1} are bytes 2 half + {0, 1} of word w: fp8_key_place.
#pragma unroll
    for (int w = 0; w < 4; ++w) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float low[kColumns];
        float high[kColumns];
        in[8 * half + 2 * w].unpack(low);
        in[8 * half + 2 * w + 1].unpack(high);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          const uint32_t pair =
              __nv_cvt_float2_to_fp8x2(make_float2(low[i], high[i]), __NV_SATFINITE, __NV_E4M3);
          words[i][w] = half == 0 ? pair : words[i][w] | pair << 16;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      *reinterpret_cast<uint4*>(to + 128 * i + first) =
          make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
    }
  }
}

template <typename T, int TOKENS, int MAX_THREADS, int CTAS, int PARTS, bool FP8>
__global__ void __launch_bounds__(MAX_THREADS, CTAS)
    scatter_kernel(const __grid_constant__ ScatterParams p) {
  extern __shared__ float4 scatter_memory[];
  // [2][2 * TOKENS][kMaxWarps] partial sums of squares, [2][dim] sums of q and k, then where the
  // tokens come from.
  auto* partial = reinterpret_cast<float*>(scatter_memory);
  float* sums = partial + 2 * 2 * TOKENS * kMaxWarps;
  auto* sources = reinterpret_cast<TokenSource*>(sums + 2 * p.dim);

  const int part = static_cast<int>(blockIdx.x) % PARTS;
  const int index = static_cast<int>(blockIdx.x) / PARTS;
  const int sample = index / p.query_blocks;
  const int block = index % p.query_blocks;
  const int temporal = block / p.spatial_blocks;
  const int space = block % p.spatial_blocks;
  const int half = p.head_dim / 2;
  const int share = (p.window_tokens + PARTS - 1) / PARTS;
  const int begin = part * share;
  const int end = min(begin + share, p.window_tokens);
  const auto thread = static_cast<int>(threadIdx.x);
  const auto threads = static_cast<int>(blockDim.x);
  for (int i = begin + thread; i < end; i += threads) {
    const int in_frame = p.window_height * p.window_width;
    const int frame = temporal * p.window_frames + i / in_frame;
    const int y = space / p.block_columns * p.window_height + i % in_frame / p.window_width;
    const int x = space % p.block_columns * p.window_width + i % p.window_width;
    const bool real = frame < p.frames && y < p.height && x < p.width;
    // Padding is zeros at any angle that the table has.
    sources[i - begin] = {real ? (frame * p.height + y) * p.width + x : -1, real ? frame * half : 0,
                          (p.frames + (real ? y : 0)) * half,
                          (p.frames + p.height + (real ? x : 0)) * half};
  }
  for (int i = thread; i < 2 * 2 * TOKENS * kMaxWarps; i += threads) partial[i] = 0.0F;
  __syncthreads();

  const int column = thread * kColumns;
  const bool active = column < p.dim;
  const int pair = column % p.head_dim / 2;  // head_dim is a multiple of 8
  const int spatial_pairs = p.head_dim / 6;
  const int time_pairs = half - 2 * spatial_pairs;
  float weight_q[kColumns];
  float weight_k[kColumns];
  float sum_q[kColumns] = {};
  float sum_k[kColumns] = {};
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    weight_q[i] = active ? p.norm_q[column + i] : 0.0F;
    weight_k[i] = active ? p.norm_k[column + i] : 0.0F;
  }
  float factor_q = 1.0F;
  float factor_k = 1.0F;
  if (FP8) {  // 16 threads to a head
    const Fp8HeadScales scales = fp8_head_scales(weight_q, weight_k, static_cast<float>(p.dim));
    factor_q = 1.0F / scales.q;
    factor_k = 1.0F / scales.k;
    // The same for every CTA; thousands of them writing one address would queue up there.
    if (blockIdx.x == 0 && active && thread % 16 == 0) {
      p.scales[thread / 16] = scales.q * scales.k;
    }
  }
  int slot = static_cast<int>(*p.first_slot) + p.cached_blocks + temporal;
  if (slot >= p.capacity_blocks) slot -= p.capacity_blocks;
  const int64_t cache_block =
      (static_cast<int64_t>(sample) * p.capacity_blocks + slot) * p.spatial_blocks + space;
  const int64_t tokens = static_cast<int64_t>(p.frames) * p.height * p.width;
  const T* source = static_cast<const T*>(p.qkv) + sample * tokens * p.pitch + column;
  using Out = std::conditional_t<FP8, uint8_t, T>;
  const int64_t q_first = static_cast<int64_t>(index) * p.window_tokens * p.dim;
  const int64_t k_first = cache_block * p.window_tokens * p.dim;
  Out* q_out = static_cast<Out*>(p.q) + q_first + column;
  Out* k_out = static_cast<Out*>(p.k) + k_first + column;
  Out* v_out = static_cast<Out*>(p.v) + k_first + (FP8 ? 128 * column : column);
  const int warps = (threads + 31) / 32;
  const float inverse_dim = 1.0F / static_cast<float>(p.dim);

  const auto fetch = [&](Lines<T, TOKENS>& lines, int first) {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      const int from = first + t < end ? sources[first + t - begin].row : -1;
      if (from >= 0 && active) {
        const T* row = source + from * p.pitch;
        lines.q[t].load(row);
        lines.k[t].load(row + p.dim);
        if (!FP8) lines.v[t].load(row + 2 * p.dim);
      } else {
        lines.q[t].clear();
        lines.k[t].clear();
        if (!FP8) lines.v[t].clear();
      }
    }
  };
  // `round` alternates, so that one barrier separates the partial sums of two rounds.
  const auto process = [&](Lines<T, TOKENS>& lines, int first, int round) {
    float squares[2 * TOKENS];
    float x[kColumns];
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      squares[t] = 0.0F;
      squares[TOKENS + t] = 0.0F;
      lines.q[t].unpack(x);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) squares[t] = fmaf(x[i], x[i], squares[t]);
      lines.k[t].unpack(x);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        squares[TOKENS + t] = fmaf(x[i], x[i], squares[TOKENS + t]);
      }
    }
    constexpr int kLanes = 32 / (2 * TOKENS);  // that end with the same total
    const float total = sum_each(squares);
    float* totals = partial + round * 2 * TOKENS * kMaxWarps;
    if (thread % kLanes == 0) totals[thread % 32 / kLanes * kMaxWarps + thread / 32] = total;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if constexpr (!FP8) {
        if (first + t < end && active) {
          lines.v[t].store(v_out + static_cast<int64_t>(first + t) * p.dim);
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (first + t >= end || !active) continue;
      const int64_t offset = static_cast<int64_t>(first + t) * p.dim;
      float square_q = 0.0F;
      float square_k = 0.0F;
      for (int w = 0; w < warps; w += 4) {
        const float4 a = *reinterpret_cast<const float4*>(totals + t * kMaxWarps + w);
        const float4 b = *reinterpret_cast<const float4*>(totals + (TOKENS + t) * kMaxWarps + w);
        square_q += (a.x + a.y) + (a.z + a.w);
        square_k += (b.x + b.y) + (b.z + b.w);
      }
      const float inverse_q = rsqrtf(square_q * inverse_dim + p.eps);
      const float inverse_k = rsqrtf(square_k * inverse_dim + p.eps);
      const TokenSource token = sources[first + t - begin];
      float2 turn[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = pair + i;
        const int row = at < time_pairs                   ? token.time
                        : at < time_pairs + spatial_pairs ? token.vertical
                                                          : token.horizontal;
        turn[i] = __ldg(p.rotary + row + at);
      }
      const auto finish = [&](Columns<T>& line, const float(&weight)[kColumns], float inverse,
                              float factor, float(&sum)[kColumns], Out* out) {
        line.unpack(x);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float a = x[2 * i] * inverse * weight[2 * i];
          const float b = x[2 * i + 1] * inverse * weight[2 * i + 1];
          x[2 * i] = a * turn[i].x - b * turn[i].y;
          x[2 * i + 1] = b * turn[i].x + a * turn[i].y;
        }
        if constexpr (FP8) {
          *reinterpret_cast<Pack<uint8_t, kColumns>*>(out) = to_fp8(x, factor);
          line.pack(x);  // the means are those of bf16
        } else {
          line.pack(x);
          line.store(out);
        }
#pragma unroll
        for (int i = 0; i < kColumns; ++i) sum[i] += x[i];
      };
      finish(lines.q[t], weight_q, inverse_q, factor_q, sum_q, q_out + offset);
      finish(lines.k[t], weight_k, inverse_k, factor_k, sum_k, k_out + offset);
    }
  };
  Lines<T, TOKENS> now;
  Lines<T, TOKENS> next;
  fetch(now, begin);
  if constexpr (FP8) {
    if (active) write_values(source + 2 * p.dim, p.pitch, sources, begin, end, v_out);
  }
  for (int first = begin; first < end; first += 2 * TOKENS) {
    fetch(next, first + TOKENS);
    process(now, first, 0);
    if (first + TOKENS >= end) break;
    fetch(now, first + 2 * TOKENS);
    process(next, first + TOKENS, 1);
  }

  if (active) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      sums[column + i] = sum_q[i];
      sums[p.dim + column + i] = sum_k[i];
    }
  }
  if (PARTS > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  const float inverse_count = 1.0F / static_cast<float>(p.window_tokens);
  const int groups = 2 * p.dim / 4;  // of four columns; no group holds columns of q and of k
  const int slice = (groups + PARTS - 1) / PARTS;
  T* mean_q = static_cast<T*>(p.pooled_q) + static_cast<int64_t>(index) * p.dim;
  T* mean_k = static_cast<T*>(p.pooled_k) + cache_block * p.dim;
  for (int g = part * slice + thread; g < min((part + 1) * slice, groups); g += threads) {
    float4 share_of[PARTS];
#pragma unroll
    for (int other = 0; other < PARTS; ++other) {
      const float* from = PARTS > 1 ? cluster_part(sums, other) : sums;
      share_of[other] = reinterpret_cast<const float4*>(from)[g];
    }
    float4 sum = share_of[0];
#pragma unroll
    for (int other = 1; other < PARTS; ++other) {
      sum.x += share_of[other].x;
      sum.y += share_of[other].y;
      sum.z += share_of[other].z;
      sum.w += share_of[other].w;
    }
    T* to = 4 * g < p.dim ? mean_q + 4 * g : mean_k + (4 * g - p.dim);
    store_mean(to, sum.x * inverse_count);
    store_mean(to + 1, sum.y * inverse_count);
    store_mean(to + 2, sum.z * inverse_count);
    store_mean(to + 3, sum.w * inverse_count);
  }
  if (PARTS > 1) {  // nobody leaves while its sums are read
    cluster_arrive();
    cluster_wait();
  }
}

template <typename T, int TOKENS, int MAX_THREADS, int CTAS, int PARTS, bool FP8>
cudaError_t launch(const ScatterParams& params, int64_t blocks, int threads, cudaStream_t stream) {
  auto* kernel = scatter_kernel<T, TOKENS, MAX_THREADS, CTAS, PARTS, FP8>;
  const int share = (params.window_tokens + PARTS - 1) / PARTS;
  const size_t bytes = (2 * 2 * TOKENS * kMaxWarps + 2 * static_cast<size_t>(params.dim)) * 4 +
                       static_cast<size_t>(share) * sizeof(TokenSource);
  if (bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks * PARTS));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {PARTS, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = PARTS > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

template <typename T, bool FP8>
cudaError_t launch(const ScatterParams& params, int64_t blocks, bool clustered,
                   const ScatterTuning& tuning, cudaStream_t stream) {
  const int threads = (params.dim / kColumns + 31) / 32 * 32;
  if (threads > 192) {  // wider than the published models
    return clustered ? launch<T, 2, 1024, 1, 4, FP8>(params, blocks, threads, stream)
                     : launch<T, 2, 1024, 1, 1, FP8>(params, blocks, threads, stream);
  }
  constexpr int kTokens = sizeof(T) == 2 ? 4 : 2;
  if (!clustered) return launch<T, kTokens, 192, 2, 1, FP8>(params, blocks, threads, stream);
  return tuning.parts == 8 ? launch<T, kTokens, 192, 2, 8, FP8>(params, blocks, threads, stream)
                           : launch<T, kTokens, 192, 2, 4, FP8>(params, blocks, threads, stream);
}

__global__ void rotary_kernel(float2* table, const int64_t* first_frame, int frames, int height,
                              int width, int head_dim) {
  const int half = head_dim / 2;
  const auto i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= (frames + height + width) * half) return;
  const int row = i / half;
  const int pair = i % half;
  const int spatial = head_dim / 6;
  const int time = half - 2 * spatial;
  const int axis = row < frames ? 0 : row < frames + height ? 1 : 2;
  const int first = axis == 0 ? 0 : time + (axis - 1) * spatial;
  const int count = axis == 0 ? time : spatial;
  const int j = pair - first;
  if (j < 0 || j >= count) return;  // columns of the other axes are not read
  const int64_t position = axis == 0   ? *first_frame + row
                           : axis == 1 ? row - frames
                                       : row - frames - height;
  const double angle = static_cast<double>(position) *
                       pow(10000.0, -static_cast<double>(j) / static_cast<double>(count));
  double sine = 0.0;
  double cosine = 0.0;
  sincos(angle, &sine, &cosine);
  table[i] = make_float2(static_cast<float>(cosine), static_cast<float>(sine));
}

}  // namespace

size_t rotary_table_bytes(const SparseShape& shape) {
  return static_cast<size_t>((shape.frames + shape.height + shape.width) * (shape.head_dim / 2)) *
         sizeof(float2);
}

cudaError_t fill_rotary_table(const SparseShape& shape, const SparsePlace* place, float* table,
                              cudaStream_t stream) {
  const int64_t entries = (shape.frames + shape.height + shape.width) * (shape.head_dim / 2);
  if (entries == 0) return cudaSuccess;
  rotary_kernel<<<static_cast<unsigned>((entries + 127) / 128), 128, 0, stream>>>(
      reinterpret_cast<float2*>(table), &place->first_frame, static_cast<int>(shape.frames),
      static_cast<int>(shape.height), static_cast<int>(shape.width),
      static_cast<int>(shape.head_dim));
  return cudaGetLastError();
}

cudaError_t launch_scatter(const SparseShape& shape, const WindowScatterArgs& args,
                           const ScatterTuning& tuning, cudaStream_t stream) {
  if (shape.head_dim % kColumns != 0 || shape.dim() > 1024 * kColumns) return cudaErrorNotSupported;
  const int64_t blocks = shape.batch * shape.query_blocks();
  if (blocks == 0 || shape.dim() == 0) return cudaSuccess;
  ScatterParams p{};
  p.qkv = args.qkv;
  p.pitch = args.qkv_pitch > 0 ? args.qkv_pitch : 3 * shape.dim();
  p.norm_q = args.norm_q;
  p.norm_k = args.norm_k;
  p.rotary = reinterpret_cast<const float2*>(args.rotary);
  p.first_slot = &args.place->first_slot;
  p.q = args.q;
  p.pooled_q = args.pooled_q;
  p.k = args.k;
  p.v = args.v;
  p.pooled_k = args.pooled_k;
  p.scales = args.scales;
  p.eps = args.eps;
  p.dim = static_cast<int>(shape.dim());
  p.head_dim = static_cast<int>(shape.head_dim);
  p.frames = static_cast<int>(shape.frames);
  p.height = static_cast<int>(shape.height);
  p.width = static_cast<int>(shape.width);
  p.window_frames = static_cast<int>(shape.window_frames);
  p.window_height = static_cast<int>(shape.window_height);
  p.window_width = static_cast<int>(shape.window_width);
  p.window_tokens = static_cast<int>(shape.window_tokens());
  p.block_columns = static_cast<int>(shape.block_columns());
  p.spatial_blocks = static_cast<int>(shape.spatial_blocks());
  p.query_blocks = static_cast<int>(shape.query_blocks());
  p.cached_blocks = static_cast<int>(shape.cached_blocks);
  p.capacity_blocks = static_cast<int>(shape.capacity_blocks);
  int device = 0;
  int major = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      error != cudaSuccess) {
    return error;
  }
  const bool clustered = major >= 9;
  if (args.scales != nullptr) {
    if (shape.type != SparseType::kBF16 || shape.head_dim != 128 || shape.window_tokens() != 128) {
      return cudaErrorNotSupported;
    }
    return launch<__nv_bfloat16, true>(p, blocks, clustered, tuning, stream);
  }
  return shape.type == SparseType::kBF16
             ? launch<__nv_bfloat16, false>(p, blocks, clustered, tuning, stream)
             : launch<float, false>(p, blocks, clustered, tuning, stream);
}

cudaError_t qkv_to_windows(const SparseShape& shape, const WindowScatterArgs& args,
                           cudaStream_t stream) {
  return launch_scatter(shape, args, ScatterTuning{}, stream);
}

}  // namespace ultraflash::cuda
