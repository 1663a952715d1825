// Cross-attention to the keys of a text, with the RMS norm of the queries before it and, for a
// product in e4m3 after it, the quantisation behind it: softmax(norm(q) k^T scale) v of a head of
// 128 in one pass over q. mma.sync in bf16, sums in f32, sm_80 and later.
//
// A text is padded to 512 rows, and what stands for padding is equal in all of them. So the kernel
// reads the first of those rows alone and counts it as often as it is there: log2(count) is added
// to its score. A prompt of a few dozen tokens leaves one block of 64 keys out of 512.
//
// A CTA takes 32 queries and all heads, a warp each, so that norm and scale of a row are one
// exchange over the CTA. Everything else a warp needs it reads into the very registers that the
// matrix instructions want, 16 bytes a thread at a time, without shared memory: the columns of a
// product's inner axis may come in any order that both operands share, and columns of the result in
// any order at all. With more than 64 keys, sums of f32 wait in shared memory between blocks.
//
// Bound by bytes: q once from memory (14 MB at 4680 rows), k and v once per CTA from L2 (58 MB at
// 64 keys), results once.
#include <algorithm>

#include "ops/cuda/mma.cuh"
#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kHeadDim = 128;
constexpr int kMostHeads = 12;
constexpr int kRows = 32;  // of a CTA: two tiles of 16
constexpr int kTiles = kRows / 16;
constexpr int kKeys = 64;     // of a block
constexpr int kMerged = 32;   // float4 of a thread that wait between blocks
constexpr int kColumns = 64;  // of half a head

__device__ __forceinline__ uint32_t packed(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000U);
}
__device__ __forceinline__ const uint4& quad_at(const bf16* p) {
  return *reinterpret_cast<const uint4*>(p);
}
/// Over the four threads that share a row.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 2));
}

/// What a thread is: row `group` and `group` + 8 of each tile of 16, place `quarter` among the four
/// threads of a row.
struct Thread {
  int head = static_cast<int>(threadIdx.x) / 32;
  int group = static_cast<int>(threadIdx.x) % 32 / 4;
  int quarter = static_cast<int>(threadIdx.x) % 4;
};

/// The rows of q that a thread reads: 16 m + 8 r after the first, as far as there are any.
struct QueryRows {
  const bf16* first;
  int dim;
  int count;
  [[nodiscard]] __device__ __forceinline__ bool present(int m, int r) const {
    return 16 * m + 8 * r < count;
  }
  [[nodiscard]] __device__ __forceinline__ uint4 quad(int m, int r, int step) const {
    return present(m, r) ? quad_at(first + (16 * m + 8 * r) * dim + 32 * step)
                         : make_uint4(0, 0, 0, 0);
  }
};

// The RMS norm of 8 columns, rounded as a pass of its own would.
__device__ __forceinline__ void normalize(uint4& q, float inverse, const float (&weight)[8]) {
  q.x = packed(low_of(q.x) * inverse * weight[0], high_of(q.x) * inverse * weight[1]);
  q.y = packed(low_of(q.y) * inverse * weight[2], high_of(q.y) * inverse * weight[3]);
  q.z = packed(low_of(q.z) * inverse * weight[4], high_of(q.z) * inverse * weight[5]);
  q.w = packed(low_of(q.w) * inverse * weight[6], high_of(q.w) * inverse * weight[7]);
}

// Scores of up to 64 keys, [tile of queries][8 keys][element of a fragment]. Inner columns 4 n to
// 4 n + 3 of 16 are columns 8 n to 8 n + 3, then 8 n + 4 to 8 n + 7, of 32 of the head.
__device__ __forceinline__ void scores(const TextAttentionArgs& a, const Thread& thread,
                                       const QueryRows& rows, const float (&inverse)[kTiles][2],
                                       const bf16* k, int first_key, int keys,
                                       float (&s)[kTiles][8][4]) {
  const bool wide = first_key + kKeys / 2 < keys;
  const auto k_row = static_cast<int>(a.k_row);
#pragma unroll
  for (int t = 0; t < 8; ++t) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][t][i] = 0.0F;
    }
  }
#pragma unroll 1
  for (int step = 0; step < kHeadDim / 32; ++step) {
    uint4 q[kTiles][2];
    uint4 key[8];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) q[m][r] = rows.quad(m, r, step);
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (t >= 4 && !wide) break;
      key[t] = quad_at(k + min(first_key + 8 * t + thread.group, keys - 1) * k_row + 32 * step);
    }
    float weight[8];
    const float* from = a.norm_q + thread.head * kHeadDim + 32 * step + 8 * thread.quarter;
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + 4);
    weight[0] = low.x, weight[1] = low.y, weight[2] = low.z, weight[3] = low.w;
    weight[4] = high.x, weight[5] = high.y, weight[6] = high.z, weight[7] = high.w;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) normalize(q[m][r], inverse[m][r], weight);
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (t >= 4 && !wide) break;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        multiply_add(s[m][t], q[m][0], q[m][1], key[t]);
      }
    }
  }
}

// Largest score and sum of weights of each of a thread's rows so far; `factor` is what sums of
// earlier blocks are worth now.
struct Softmax {
  float largest[kTiles][2];
  float sum[kTiles][2];
  float factor[kTiles][2];
};

// Weights of the keys of a block in the form of left operands: [tile][16 keys][register].
__device__ __forceinline__ void weights_of(float (&s)[kTiles][8][4], float scale_log2, int last_key,
                                           float last_bias, Softmax& rows,
                                           uint32_t (&w)[kTiles][4][4]) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Keys 2 quarter + {0, 1} of 8; `last_key` counts from the first of them.
        const int key = 8 * t + i % 2;
        float x = s[m][t][i] * scale_log2;
        if (key == last_key) x += last_bias;
        if (key > last_key) x = -INFINITY;
        s[m][t][i] = x;
        top[i / 2] = fmaxf(top[i / 2], x);
      }
    }
    float sum[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float now = fmaxf(rows.largest[m][r], quad_max(top[r]));
      rows.factor[m][r] = exp2f(rows.largest[m][r] - now);  // 0 for the first block
      rows.largest[m][r] = now;
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][t][i] = exp2f(s[m][t][i] - rows.largest[m][i / 2]);
        sum[i / 2] += s[m][t][i];
      }
      w[m][t / 2][t % 2 * 2] = packed(s[m][t][0], s[m][t][1]);
      w[m][t / 2][t % 2 * 2 + 1] = packed(s[m][t][2], s[m][t][3]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.sum[m][r] = rows.sum[m][r] * rows.factor[m][r] + sum[r];
    }
  }
}

// Weights times 64 columns of v, [tile][columns 8 n + t][element of a fragment].
__device__ __forceinline__ void weighted_values(const TextAttentionArgs& a, const Thread& thread,
                                                const bf16* v, int first_key, int keys,
                                                const uint32_t (&w)[kTiles][4][4],
                                                float (&o)[kTiles][8][4]) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[m][t][i] = 0.0F;
    }
  }
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    if (first_key + 32 * pair >= keys) break;
    uint4 value[2][4];
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int key = first_key + 32 * pair + 16 * u + 2 * thread.quarter;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = min(key + i % 2 + i / 2 * 8, keys - 1);  // weights past the last are 0
        value[u][i] = quad_at(v + row * static_cast<int>(a.v_row));
      }
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const auto* words = reinterpret_cast<const uint32_t(*)[4]>(&value[u]);
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        const unsigned halves = t % 2 == 0 ? 0x5410 : 0x7632;
        const uint32_t b0 = __byte_perm(words[0][t / 2], words[1][t / 2], halves);
        const uint32_t b1 = __byte_perm(words[2][t / 2], words[3][t / 2], halves);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const uint32_t(&weight)[4] = w[m][2 * pair + u];
          multiply_add(o[m][t], weight[0], weight[1], weight[2], weight[3], b0, b1);
        }
      }
    }
  }
}

/// The 16 columns of a thread's row r: column 16 quarter + 8 e + t of the half is element
/// 2 r + e of fragment t.
__device__ __forceinline__ float column_of(const float (&o)[8][4], int r, int column) {
  return o[column % 8][2 * r + column / 8];
}

// 8 words of a thread in shared memory.
__device__ __forceinline__ void keep(const uint32_t (&words)[8], float4* at, int threads) {
  auto* to = reinterpret_cast<uint4*>(at);
  to[0] = make_uint4(words[0], words[1], words[2], words[3]);
  to[threads] = make_uint4(words[4], words[5], words[6], words[7]);
}
__device__ __forceinline__ void kept(const float4* at, int threads, uint32_t (&words)[8]) {
  const auto* from = reinterpret_cast<const uint4*>(at);
  const uint4 low = from[0];
  const uint4 high = from[threads];
  words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
  words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
}

__device__ __forceinline__ void store_fp8(uint8_t* to, const uint32_t (&words)[8], float factor) {
  float x[16];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[2 * i] = low_of(words[i]);
    x[2 * i + 1] = high_of(words[i]);
  }
  *reinterpret_cast<Pack<uint8_t, 16>*>(to) = to_fp8(x, factor);
}

template <bool FP8>
__global__ void __launch_bounds__(32 * kMostHeads, 1)
    text_attention_kernel(const __grid_constant__ TextAttentionArgs a) {
  __shared__ __align__(16) float exchange[2][kRows][kMostHeads];
  extern __shared__ float4 merged[];  // [kMerged][threads]
  const Thread thread;
  const auto threads = static_cast<int>(blockDim.x);
  const int64_t dim = int64_t{a.heads} * kHeadDim;
  const int first_row = static_cast<int>(blockIdx.x) * kRows + thread.group;
  const int64_t row0 = int64_t{blockIdx.y} * a.queries + first_row;
  const int head_column = thread.head * kHeadDim;

  // Inverse root mean squares of the rows, over all heads.
  const QueryRows q{static_cast<const bf16*>(a.q) + row0 * dim + head_column + 8 * thread.quarter,
                    static_cast<int>(dim), static_cast<int>(a.queries) - first_row};
  float inverse[kTiles][2];
  {
    uint4 in[kTiles][2][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int step = 0; step < 4; ++step) in[m][r][step] = q.quad(m, r, step);
      }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float square = 0.0F;
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const uint32_t words[4] = {in[m][r][step].x, in[m][r][step].y, in[m][r][step].z,
                                     in[m][r][step].w};
#pragma unroll
          for (const uint32_t word : words) {
            square += low_of(word) * low_of(word);
            square += high_of(word) * high_of(word);
          }
        }
        square = quad_sum(square);
        if (thread.quarter == 0) exchange[0][16 * m + 8 * r + thread.group][thread.head] = square;
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float square = 0.0F;
      for (int h = 0; h < a.heads; ++h) {
        square += exchange[0][16 * m + 8 * r + thread.group][h];
      }
      inverse[m][r] = 1.0F / sqrtf(square / static_cast<float>(dim) + a.eps);
    }
  }

  const auto all_keys = static_cast<int>(a.keys);
  int keys = all_keys;
  if (a.distinct != nullptr) {
    keys = static_cast<int>(min(max(*a.distinct, int64_t{1}), int64_t{all_keys}));
  }
  const float last_bias = log2f(static_cast<float>(all_keys - keys + 1));
  const bf16* k =
      static_cast<const bf16*>(a.k) + blockIdx.y * a.k_batch + head_column + 8 * thread.quarter;
  const bf16* v =
      static_cast<const bf16*>(a.v) + blockIdx.y * a.v_batch + head_column + 8 * thread.group;
  Softmax softmax;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      softmax.largest[m][r] = -INFINITY;
      softmax.sum[m][r] = 0.0F;
    }
  }
  float top[kTiles][2] = {};
#pragma unroll 1
  for (int first = 0; first < keys; first += kKeys) {
    const bool last = first + kKeys >= keys;
    uint32_t w[kTiles][4][4];
    {
      float s[kTiles][8][4];
      scores(a, thread, q, inverse, k, first, keys, s);
      weights_of(s, a.scale * 1.44269504F, keys - 1 - first - 2 * thread.quarter, last_bias,
                 softmax, w);
    }
    float over_sum[kTiles][2] = {};
    if (last) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) over_sum[m][r] = 1.0F / quad_sum(softmax.sum[m][r]);
      }
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float o[kTiles][8][4];
      weighted_values(a, thread, v + kColumns * half, first, keys, w, o);
      if (first > 0 || !last) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int t = 0; t < 8; ++t) {
            float4& at = merged[((half * kTiles + m) * 8 + t) * threads + threadIdx.x];
            if (first > 0) {
              const float4 before = at;
              o[m][t][0] += before.x * softmax.factor[m][0];
              o[m][t][1] += before.y * softmax.factor[m][0];
              o[m][t][2] += before.z * softmax.factor[m][1];
              o[m][t][3] += before.w * softmax.factor[m][1];
            }
            if (!last) at = make_float4(o[m][t][0], o[m][t][1], o[m][t][2], o[m][t][3]);
          }
        }
      }
      if (!last) continue;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          uint32_t words[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            words[i] = packed(column_of(o[m], r, 2 * i) * over_sum[m][r],
                              column_of(o[m], r, 2 * i + 1) * over_sum[m][r]);
          }
          if constexpr (FP8) {
#pragma unroll
            for (const uint32_t word : words) {
              top[m][r] = fmaxf(top[m][r], fmaxf(fabsf(low_of(word)), fabsf(high_of(word))));
            }
            keep(words, merged + (half * kMerged / 2 + (m * 2 + r) * 2) * threads + threadIdx.x,
                 threads);
          } else if (q.present(m, r)) {
            const int64_t row = row0 + 16 * m + 8 * r;
            auto* to =
                reinterpret_cast<uint4*>(static_cast<bf16*>(a.out) + row * dim + head_column +
                                         kColumns * half + 16 * thread.quarter);
            to[0] = make_uint4(words[0], words[1], words[2], words[3]);
            to[1] = make_uint4(words[4], words[5], words[6], words[7]);
          }
        }
      }
    }
  }
  if constexpr (FP8) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        top[m][r] = quad_max(top[m][r]);
        if (thread.quarter == 0)
          exchange[1][16 * m + 8 * r + thread.group][thread.head] = top[m][r];
      }
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t row = row0 + 16 * m + 8 * r;
        float largest = 0.0F;
        for (int h = 0; h < a.heads; ++h) {
          largest = fmaxf(largest, exchange[1][16 * m + 8 * r + thread.group][h]);
        }
        const Fp8Scale scale = fp8_scale(largest);
        if (!q.present(m, r)) continue;
        if (thread.quarter == 0 && thread.head == 0) a.out_scales[row] = scale.scale;
        auto* to = static_cast<uint8_t*>(a.out) + row * dim + head_column + 16 * thread.quarter;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t words[8];
          kept(merged + (half * kMerged / 2 + (m * 2 + r) * 2) * threads + threadIdx.x, threads,
               words);
          store_fp8(to + kColumns * half, words, scale.factor);
        }
      }
    }
  }
}

constexpr int kStaticBytes = 2 * kRows * kMostHeads * static_cast<int>(sizeof(float));

// What waits between blocks of keys, or in e4m3 for the scale of its row: 192 KiB for 12 heads.
int shared_bytes(const TextAttentionArgs& a) {
  return 32 * a.heads * kMerged * static_cast<int>(sizeof(float4));
}

}  // namespace

bool text_attention_takes(const TextAttentionArgs& a) {
  int device = 0;
  int most = 0;
  UF_CUDA_TRY(cudaGetDevice(&device));
  UF_CUDA_TRY(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return shared_bytes(a) + kStaticBytes <= most && a.heads >= 1 && a.heads <= kMostHeads &&
         a.keys >= 1 && a.keys < 1 << 20 &&
         a.keys * std::max(a.k_row, a.v_row) < int64_t{1} << 31 &&
         a.queries * a.batch < int64_t{1} << 31 && a.batch < 1 << 16 && a.k_row % 8 == 0 &&
         a.v_row % 8 == 0 && a.k_batch % 8 == 0 && a.v_batch % 8 == 0 && packable(a.q) &&
         packable(a.k) && packable(a.v) && packable(a.out) && packable(a.norm_q);
}

void text_attention(const TextAttentionArgs& a, cudaStream_t stream) {
  if (a.batch * a.queries == 0) return;
  require(text_attention_takes(a), "text_attention: at most 12 heads of 128 and rows of 16 bytes");
  const int threads = 32 * a.heads;
  const int bytes = shared_bytes(a);
  const auto go = [&](auto kernel) {
    UF_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const dim3 grid(ceil_div(a.queries, kRows), static_cast<unsigned>(a.batch));
    kernel<<<grid, static_cast<unsigned>(threads), static_cast<size_t>(bytes), stream>>>(a);
  };
  if (a.out_scales != nullptr) {
    go(text_attention_kernel<true>);
  } else {
    go(text_attention_kernel<false>);
  }
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
