// Device code of the block selection: scores, probabilities and their histogram. select_blocks.cu
// has the rest and says how they fit together.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ops/cuda/mma.cuh"

namespace ultraflash::cuda {

constexpr int kBins = 2048;  // of the histogram the score kernel makes
constexpr int kPatch = 4;    // a CTA scores 4 x 4 query blocks, the 16 rows of a matrix product
constexpr int kPatchQueries = kPatch * kPatch;
constexpr int kScoreThreads = 512;

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
  uint32_t* largest;     // [rows]: the largest key of a row
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

/// Divides numbers below 2^16 by one below 2^16.
class Divider {
 public:
  explicit __device__ __forceinline__ Divider(int divisor)
      : divisor_(static_cast<uint32_t>(divisor)), magic_(0xFFFFFFFFU / divisor_ + 1) {}
  __device__ __forceinline__ int quotient(int n) const {
    return divisor_ == 1 ? n : static_cast<int>(__umulhi(static_cast<uint32_t>(n), magic_));
  }
  __device__ __forceinline__ int rest(int n) const {
    return n - quotient(n) * static_cast<int>(divisor_);
  }

 private:
  uint32_t divisor_;
  uint32_t magic_;
};

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

/// Where a CTA stands: a problem and a patch of query blocks.
struct ScoreTask {
  int sample, head, query_tb, tbs;
  int row, column;             // of the patch's first query block
  Span key_rows, key_columns;  // the union of the patch's windows
};

/// Query block n of the patch.
struct PatchQuery {
  bool real;
  int space;           // spatial block
  Span rows, columns;  // its window
};
__device__ __forceinline__ PatchQuery patch_query(const SelectParams& p, const ScoreTask& task,
                                                  int n) {
  const int row = task.row + n / kPatch;
  const int column = task.column + n % kPatch;
  return {row < p.rows && column < p.columns, row * p.columns + column,
          span(row, p.half, p.range, p.rows), span(column, p.half, p.range, p.columns)};
}

/// Scores of 16 query blocks by tensor cores. The order of the product axis is free as long as both
/// operands agree, so a lane takes 8 neighbouring elements as its share of two steps.
template <int HEAD_DIM>
__device__ void make_scores(const SelectParams& p, const ScoreTask& task, int first_slot,
                            uint16_t* line) {
  using K = Key<__nv_bfloat16>;
  constexpr int kPairs = HEAD_DIM / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = lane / 4;
  const int quarter = lane % 4;
  const auto* pooled_q = static_cast<const __nv_bfloat16*>(p.pooled_q);
  const auto* pooled_k = static_cast<const __nv_bfloat16*>(p.pooled_k);
  const int64_t first_query =
      (static_cast<int64_t>(task.sample) * p.query_tbs + task.query_tb) * p.spatial;
  const PatchQuery queries[2] = {patch_query(p, task, group), patch_query(p, task, group + 8)};
  uint4 a[2][kPairs];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int s = 0; s < kPairs; ++s) {
      a[r][s] = queries[r].real ? *reinterpret_cast<const uint4*>(
                                      pooled_q + (first_query + queries[r].space) * p.dim +
                                      task.head * HEAD_DIM + 32 * s + 8 * quarter)
                                : make_uint4(0, 0, 0, 0);
    }
  }
  const int keys = task.key_rows.count * task.key_columns.count;  // of a temporal block
  const int groups = (keys + 7) / 8;
  const Divider by_groups(groups);
  const Divider by_columns(task.key_columns.count);
  for (int i = warp; i < task.tbs * groups; i += kScoreThreads / 32) {
    const int tb = by_groups.quotient(i);
    const int first = (i - tb * groups) * 8;
    int slot = first_slot + tb;
    if (slot >= p.capacity_blocks) slot -= p.capacity_blocks;
    const int own = min(first + group, keys - 1);  // past the end: computed, not stored
    const int own_row = by_columns.quotient(own);
    const int space = (task.key_rows.first + own_row) * p.columns + task.key_columns.first + own -
                      own_row * task.key_columns.count;
    const __nv_bfloat16* key = pooled_k + key_row(p, task.sample, slot, space) * p.dim +
                               task.head * HEAD_DIM + 8 * quarter;
    uint4 b[kPairs];
#pragma unroll
    for (int s = 0; s < kPairs; ++s) b[s] = *reinterpret_cast<const uint4*>(key + 32 * s);
    float d[4] = {};
#pragma unroll
    for (int s = 0; s < kPairs; ++s) {
      multiply_add(d, a[0][s], a[1][s], b[s]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int at = first + 2 * quarter + n;
      const int at_row = by_columns.quotient(at);
      const int row = task.key_rows.first + at_row;
      const int column = task.key_columns.first + at - at_row * task.key_columns.count;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int window_row = row - queries[r].rows.first;
        const int window_column = column - queries[r].columns.first;
        if (queries[r].real && at < keys && window_row >= 0 && window_row < queries[r].rows.count &&
            window_column >= 0 && window_column < queries[r].columns.count) {
          line[(group + 8 * r) * p.pitch + (tb * p.window_rows + window_row) * p.window_columns +
               window_column] = K::of(K::round(d[2 * r + n]) * p.inverse_root);
        }
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
  const int window = p.window_rows * p.window_columns;
  for (int i = static_cast<int>(threadIdx.x); i < kPatchQueries * task.tbs * window;
       i += kScoreThreads) {
    const int n = i / (task.tbs * window);
    const int entry = i - n * task.tbs * window;
    const int tb = entry / window;
    const int window_row = entry % window / p.window_columns;
    const int window_column = entry % p.window_columns;
    const PatchQuery query = patch_query(p, task, n);
    if (!query.real || window_row >= query.rows.count || window_column >= query.columns.count) {
      continue;
    }
    int slot = first_slot + tb;
    if (slot >= p.capacity_blocks) slot -= p.capacity_blocks;
    const T* q = pooled_q +
                 ((static_cast<int64_t>(task.sample) * p.query_tbs + task.query_tb) * p.spatial +
                  query.space) *
                     p.dim +
                 task.head * p.head_dim;
    const T* k =
        pooled_k +
        key_row(p, task.sample, slot,
                (query.rows.first + window_row) * p.columns + query.columns.first + window_column) *
            p.dim +
        task.head * p.head_dim;
    float sum = 0.0F;
    for (int d = 0; d < p.head_dim; ++d) {
      sum = fmaf(static_cast<float>(q[d]), static_cast<float>(k[d]), sum);
    }
    // Scores may be negative: their bits are kept as they are and read back as numbers.
    line[n * p.pitch + entry] = K::of(K::round(sum) * p.inverse_root);
  }
}

/// Scores of a row -> probabilities, by one warp, HELD per lane in registers at a time. `bins`
/// counts them. Returns the largest key.
template <typename T>
__device__ uint32_t softmax_row(const SelectParams& p, typename Key<T>::Bits* row, uint32_t* bins) {
  using K = Key<T>;
  constexpr int kHeld = 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto over_lanes = [](float x, bool largest) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xFFFFFFFFU, x, step);
      x = largest ? fmaxf(x, other) : x + other;
    }
    return x;
  };
  // A row of the published models fits into registers; a longer one is read again in each pass.
  const bool held = p.pitch <= 32 * kHeld;
  float x[kHeld];
  float maximum = -INFINITY;
  for (int start = 0; start < p.pitch; start += 32 * kHeld) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int e = start + 32 * i + lane;
      x[i] = e < p.pitch && row[e] != K::kNone ? K::value(row[e]) : -INFINITY;
      maximum = fmaxf(maximum, x[i]);
    }
  }
  maximum = over_lanes(maximum, /*largest=*/true);
  float sum = 0.0F;
  for (int start = 0; start < p.pitch; start += 32 * kHeld) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!held) {
        const int e = start + 32 * i + lane;
        x[i] = e < p.pitch && row[e] != K::kNone ? K::value(row[e]) : -INFINITY;
      }
      x[i] = expf(x[i] - maximum);  // 0 where there is nothing
      sum += x[i];
    }
  }
  sum = over_lanes(sum, /*largest=*/false);
  uint32_t largest = 0;
  for (int start = 0; start < p.pitch; start += 32 * kHeld) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int e = start + 32 * i + lane;
      const bool inside = e < p.pitch && row[e] != K::kNone;
      if (!held) x[i] = inside ? expf(K::value(row[e]) - maximum) : 0.0F;
      uint32_t key = 0;
      if (inside) {
        row[e] = K::of(x[i] / sum);
        key = row[e];
        largest = max(largest, key);
      }
      count_bin(bins, K::bin(key), inside);
    }
  }
  return __reduce_max_sync(0xFFFFFFFFU, largest);
}

template <typename T, int HEAD_DIM>  // HEAD_DIM 0: plain
__global__ void __launch_bounds__(kScoreThreads, 2)
    score_kernel(const __grid_constant__ SelectParams p) {
  using K = Key<T>;
  using Bits = typename K::Bits;
  __shared__ uint32_t bins[kBins];
  extern __shared__ uint4 score_memory[];  // [kPatchQueries][pitch] of Bits
  auto* line = reinterpret_cast<Bits*>(score_memory);
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const auto problem = static_cast<int>(blockIdx.y);
  const int patches = (p.columns + kPatch - 1) / kPatch;  // side by side
  ScoreTask task;
  task.query_tb = problem % p.query_tbs;
  task.head = problem / p.query_tbs % p.heads;
  task.sample = problem / (p.query_tbs * p.heads);
  task.tbs = visible_tbs(p, task.query_tb);
  task.row = static_cast<int>(blockIdx.x) / patches * kPatch;
  task.column = static_cast<int>(blockIdx.x) % patches * kPatch;
  const auto all_of = [&](int first, int size) {
    const Span low = span(first, p.half, p.range, size);
    const Span high = span(min(first + kPatch, size) - 1, p.half, p.range, size);
    return Span{low.first, high.first + high.count - low.first};
  };
  task.key_rows = all_of(task.row, p.rows);
  task.key_columns = all_of(task.column, p.columns);
  constexpr int kPerVector = 16 / sizeof(Bits);
  const int vectors = p.pitch / kPerVector;  // of a row
  for (int i = thread; i < kBins; i += kScoreThreads) bins[i] = 0;
  for (int i = thread; i < kPatchQueries * vectors; i += kScoreThreads) {
    score_memory[i] = make_uint4(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF);  // kNone
  }
  __syncthreads();
  const auto first_slot = static_cast<int>(*p.first_slot);
  if constexpr (HEAD_DIM > 0) {
    make_scores<HEAD_DIM>(p, task, first_slot, line);
  } else {
    make_scores_plain<T>(p, task, first_slot, line);
  }
  __syncthreads();
  for (int n = thread / 32; n < kPatchQueries; n += kScoreThreads / 32) {
    const PatchQuery query = patch_query(p, task, n);
    if (!query.real) continue;
    const uint32_t largest = softmax_row<T>(p, line + n * p.pitch, bins);
    const int64_t row = static_cast<int64_t>(problem) * p.spatial + query.space;
    if (lane == 0) p.largest[row] = largest;
    __syncwarp();
    auto* out = reinterpret_cast<uint4*>(static_cast<Bits*>(p.probabilities) + row * p.pitch);
    for (int i = lane; i < vectors; i += 32) out[i] = score_memory[n * vectors + i];
  }
  __syncthreads();
  uint32_t* histogram = p.histogram + static_cast<int64_t>(problem) * kBins;
  for (int i = thread; i < kBins; i += kScoreThreads) {
    if (bins[i] != 0) atomicAdd(histogram + i, bins[i]);
  }
}

}  // namespace ultraflash::cuda
