// Device code of the block selection: scores, probabilities and their histogram. select_blocks.cu
// has the rest and says how they fit together.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace ultraflash::cuda {

constexpr int kBins = 2048;         // of the histogram the score kernel makes
constexpr int kQueriesPerCta = 16;  // rows of a matrix product
constexpr int kScoreThreads = 256;

/// Probabilities as keys, and the histogram of them.
template <typename T>
struct Key;
template <>
struct Key<__nv_bfloat16> {
  using Bits = uint16_t;
  static constexpr Bits kNone = 0xFFFF;
  // One bin per key down to 2^-16, which is all a threshold ever meets; bin 0 is everything below.
  static constexpr uint32_t kFloor = 0x3F80 - (kBins - 1);
  static constexpr int kUnsortedBits = 14;  // of the keys in bin 0
  static __device__ __forceinline__ float round(float x) {
    return __bfloat162float(__float2bfloat16(x));
  }
  static __device__ __forceinline__ Bits of(float x) {
    return __bfloat16_as_ushort(__float2bfloat16(x));
  }
  static __device__ __forceinline__ float value(Bits bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }
  // Above 1 is only what is not a number; it shares the last bin.
  static __device__ __forceinline__ uint32_t bin(uint32_t key) {
    return min(max(key, kFloor) - kFloor, kBins - 1U);
  }
  static __device__ __forceinline__ bool sorted(uint32_t bin) { return bin > 0; }
  static __device__ __forceinline__ uint32_t first(uint32_t bin) {
    return bin > 0 ? kFloor + bin : 0;
  }
};
template <>
struct Key<float> {
  using Bits = uint32_t;
  static constexpr Bits kNone = 0xFFFFFFFF;
  static constexpr int kUnsortedBits = 19;
  static __device__ __forceinline__ float round(float x) { return x; }
  static __device__ __forceinline__ Bits of(float x) { return __float_as_uint(x); }
  static __device__ __forceinline__ float value(Bits bits) { return __uint_as_float(bits); }
  static __device__ __forceinline__ uint32_t bin(uint32_t key) {
    return min(key >> kUnsortedBits, kBins - 1U);
  }
  static __device__ __forceinline__ bool sorted(uint32_t) { return false; }
  static __device__ __forceinline__ uint32_t first(uint32_t bin) { return bin; }
};

struct SelectParams {
  const void* pooled_q;
  const void* pooled_k;
  const int64_t* first_slot;
  uint32_t* histogram;   // [problems][kBins]
  uint32_t* thresholds;  // [problems]
  void* probabilities;   // [rows][pitch]
  uint8_t* mask;
  int32_t* indices;
  int32_t* counts;
  int64_t rank;  // of the threshold, from the largest
  float inverse_root;
  int heads, head_dim, dim;
  int query_tbs, key_tbs, cached_blocks, capacity_blocks, blocks_per_chunk;
  int rows, columns, spatial;  // window blocks of a frame
  int half, range;             // offsets -half .. range - 1 - half are in range
  int window_rows, window_columns, pitch;
};

/// The part of the local range inside the grid around row or column `at`.
struct Span {
  int first, count;
};
__device__ __forceinline__ Span span(int at, int half, int range, int size) {
  const int first = max(at - half, 0);
  const int last = min(at - half + range - 1, size - 1);
  return {first, last - first + 1};
}

__device__ __forceinline__ int visible_tbs(const SelectParams& p, int query_tb) {
  const int chunk = p.blocks_per_chunk;
  return min(p.key_tbs, ((p.cached_blocks + query_tb) / chunk + 1) * chunk);
}

__device__ __forceinline__ int64_t key_row(const SelectParams& p, int sample, int slot, int space) {
  return (static_cast<int64_t>(sample) * p.capacity_blocks + slot) * p.spatial + space;
}

/// Adds one to bins[bin] for every lane with `counted`, once per distinct bin of the warp: the
/// probabilities of a warp tend to be equal.
__device__ __forceinline__ void count_bin(uint32_t* bins, uint32_t bin, bool counted) {
  const uint32_t peers = __match_any_sync(0xFFFFFFFFU, counted ? bin : 0xFFFFFFFFU);
  if (counted && threadIdx.x % 32 == static_cast<uint32_t>(__ffs(static_cast<int>(peers)) - 1)) {
    atomicAdd(bins + bin, static_cast<uint32_t>(__popc(peers)));
  }
}

__device__ __forceinline__ void multiply_16x8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// What the two ways of making scores share: where a CTA stands.
struct ScoreTask {
  int sample, head, query_tb, tbs;
  int row, first_column, queries;  // query blocks (row, first_column + 0 .. queries - 1)
  Span key_rows, key_columns;      // the union of their windows
};

__device__ __forceinline__ void put_score(const SelectParams& p, const ScoreTask& task,
                                          typename Key<__nv_bfloat16>::Bits* line, int query,
                                          int tb, int window_row, int column, float product) {
  using K = Key<__nv_bfloat16>;
  if (query >= task.queries) return;
  const Span window = span(task.first_column + query, p.half, p.range, p.columns);
  const int at = column - window.first;
  if (at < 0 || at >= window.count) return;
  line[query * p.pitch + (tb * p.window_rows + window_row) * p.window_columns + at] =
      K::of(K::round(product) * p.inverse_root);
}

/// Scores of 16 query blocks by tensor cores. The order of the product axis is free as long as both
/// operands agree, so a lane takes 8 neighbouring elements as its share of two steps.
template <int HEAD_DIM>
__device__ void make_scores(const SelectParams& p, const ScoreTask& task, int first_slot,
                            uint16_t* line) {
  constexpr int kPairs = HEAD_DIM / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = lane / 4;
  const int quarter = lane % 4;
  const auto* pooled_q = static_cast<const __nv_bfloat16*>(p.pooled_q);
  const auto* pooled_k = static_cast<const __nv_bfloat16*>(p.pooled_k);
  const int64_t query_block =
      (static_cast<int64_t>(task.sample) * p.query_tbs + task.query_tb) * p.spatial +
      task.row * p.columns + task.first_column;
  uint4 a[2][kPairs];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int s = 0; s < kPairs; ++s) {
      const int query = group + 8 * r;
      a[r][s] = query < task.queries
                    ? *reinterpret_cast<const uint4*>(pooled_q + (query_block + query) * p.dim +
                                                      task.head * HEAD_DIM + 32 * s + 8 * quarter)
                    : make_uint4(0, 0, 0, 0);
    }
  }
  const int groups = (task.key_columns.count + 7) / 8;
  const int per_tb = task.key_rows.count * groups;
  const int tasks = task.tbs * per_tb;
  const auto load = [&](int i, uint4(&b)[kPairs]) {
    int slot = first_slot + i / per_tb;
    if (slot >= p.capacity_blocks) slot -= p.capacity_blocks;
    const int window_row = i % per_tb / groups;
    // Past the end: computed, not stored.
    const int column = min(task.key_columns.first + i % groups * 8 + group, p.columns - 1);
    const __nv_bfloat16* key =
        pooled_k +
        key_row(p, task.sample, slot, (task.key_rows.first + window_row) * p.columns + column) *
            p.dim +
        task.head * HEAD_DIM + 8 * quarter;
#pragma unroll
    for (int s = 0; s < kPairs; ++s) b[s] = *reinterpret_cast<const uint4*>(key + 32 * s);
  };
  uint4 next[kPairs];
  if (warp < tasks) load(warp, next);
  for (int i = warp; i < tasks; i += kScoreThreads / 32) {
    uint4 b[kPairs];
#pragma unroll
    for (int s = 0; s < kPairs; ++s) b[s] = next[s];
    if (i + kScoreThreads / 32 < tasks) load(i + kScoreThreads / 32, next);
    float d[4] = {};
#pragma unroll
    for (int s = 0; s < kPairs; ++s) {
      multiply_16x8(d, a[0][s].x, a[1][s].x, a[0][s].y, a[1][s].y, b[s].x, b[s].y);
      multiply_16x8(d, a[0][s].z, a[1][s].z, a[0][s].w, a[1][s].w, b[s].z, b[s].w);
    }
    const int first = task.key_columns.first + i % groups * 8;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int at = first + 2 * quarter + n % 2;
      if (at < task.key_columns.first + task.key_columns.count) {
        put_score(p, task, line, group + n / 2 * 8, i / per_tb, i % per_tb / groups, at, d[n]);
      }
    }
  }
}

/// Scores one by one: f32, and head sizes the tensor cores' kernel does not know.
template <typename T>
__device__ void make_scores_plain(const SelectParams& p, const ScoreTask& task, int first_slot,
                                  typename Key<T>::Bits* line) {
  using K = Key<T>;
  const auto* pooled_q = static_cast<const T*>(p.pooled_q);
  const auto* pooled_k = static_cast<const T*>(p.pooled_k);
  const int64_t query_block =
      (static_cast<int64_t>(task.sample) * p.query_tbs + task.query_tb) * p.spatial +
      task.row * p.columns + task.first_column;
  const int pairs = task.queries * task.tbs * task.key_rows.count * p.window_columns;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kScoreThreads) {
    const int at = i % p.window_columns;
    const int window_row = i / p.window_columns % task.key_rows.count;
    const int tb = i / (p.window_columns * task.key_rows.count) % task.tbs;
    const int query = i / (p.window_columns * task.key_rows.count * task.tbs);
    const Span window = span(task.first_column + query, p.half, p.range, p.columns);
    if (at >= window.count) continue;
    int slot = first_slot + tb;
    if (slot >= p.capacity_blocks) slot -= p.capacity_blocks;
    const T* q = pooled_q + (query_block + query) * p.dim + task.head * p.head_dim;
    const T* k = pooled_k +
                 key_row(p, task.sample, slot,
                         (task.key_rows.first + window_row) * p.columns + window.first + at) *
                     p.dim +
                 task.head * p.head_dim;
    float sum = 0.0F;
    for (int d = 0; d < p.head_dim; ++d) {
      sum = fmaf(static_cast<float>(q[d]), static_cast<float>(k[d]), sum);
    }
    // f32 scores may be negative: their bits are kept as they are and read back as floats.
    line[query * p.pitch + (tb * p.window_rows + window_row) * p.window_columns + at] =
        K::of(K::round(sum) * p.inverse_root);
  }
}

template <typename T, int HEAD_DIM>  // HEAD_DIM 0: plain
__global__ void __launch_bounds__(kScoreThreads)
    score_kernel(const __grid_constant__ SelectParams p) {
  using K = Key<T>;
  using Bits = typename K::Bits;
  __shared__ uint32_t bins[kBins];
  extern __shared__ uint4 score_memory[];  // [kQueriesPerCta][pitch] of Bits
  auto* line = reinterpret_cast<Bits*>(score_memory);
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const auto problem = static_cast<int>(blockIdx.y);
  const int strips = (p.columns + kQueriesPerCta - 1) / kQueriesPerCta;
  ScoreTask task;
  task.query_tb = problem % p.query_tbs;
  task.head = problem / p.query_tbs % p.heads;
  task.sample = problem / (p.query_tbs * p.heads);
  task.tbs = visible_tbs(p, task.query_tb);
  task.row = static_cast<int>(blockIdx.x) / strips;
  task.first_column = static_cast<int>(blockIdx.x) % strips * kQueriesPerCta;
  task.queries = min(kQueriesPerCta, p.columns - task.first_column);
  task.key_rows = span(task.row, p.half, p.range, p.rows);
  const Span low = span(task.first_column, p.half, p.range, p.columns);
  const Span high = span(task.first_column + task.queries - 1, p.half, p.range, p.columns);
  task.key_columns = {low.first, high.first + high.count - low.first};
  const auto first_slot = static_cast<int>(*p.first_slot);
  constexpr int kPerVector = 16 / sizeof(Bits);
  const int vectors = p.pitch / kPerVector;  // of a row
  for (int i = thread; i < kBins; i += kScoreThreads) bins[i] = 0;
  for (int i = thread; i < task.queries * vectors; i += kScoreThreads) {
    score_memory[i] = make_uint4(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF);  // kNone
  }
  __syncthreads();
  if constexpr (HEAD_DIM > 0) {
    make_scores<HEAD_DIM>(p, task, first_slot, line);
  } else {
    make_scores_plain<T>(p, task, first_slot, line);
  }
  __syncthreads();

  const int64_t first_row =
      static_cast<int64_t>(problem) * p.spatial + task.row * p.columns + task.first_column;
  for (int query = warp; query < task.queries; query += kScoreThreads / 32) {
    Bits* row = line + query * p.pitch;
    float maximum = -INFINITY;
    for (int e = lane; e < p.pitch; e += 32) {
      if (row[e] != K::kNone) maximum = fmaxf(maximum, K::value(row[e]));
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      maximum = fmaxf(maximum, __shfl_xor_sync(0xFFFFFFFFU, maximum, step));
    }
    float sum = 0.0F;
    for (int e = lane; e < p.pitch; e += 32) {
      if (row[e] != K::kNone) sum += expf(K::value(row[e]) - maximum);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, step);
    for (int e = lane; e - lane < p.pitch; e += 32) {
      const bool inside = e < p.pitch && row[e] != K::kNone;
      uint32_t bin = 0;
      if (inside) {
        row[e] = K::of(expf(K::value(row[e]) - maximum) / sum);
        bin = K::bin(row[e]);
      }
      count_bin(bins, bin, inside);
    }
    __syncwarp();
    auto* out = reinterpret_cast<uint4*>(static_cast<Bits*>(p.probabilities) +
                                         (first_row + query) * p.pitch);
    for (int i = lane; i < vectors; i += 32) out[i] = score_memory[query * vectors + i];
  }
  __syncthreads();
  uint32_t* histogram = p.histogram + static_cast<int64_t>(problem) * kBins;
  for (int i = thread; i < kBins; i += kScoreThreads) {
    if (bins[i] != 0) atomicAdd(histogram + i, bins[i]);
  }
}

}  // namespace ultraflash::cuda
