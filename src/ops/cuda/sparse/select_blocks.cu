// Block selection of the sparse SR DiT without a round trip to the host.
//
//   scores     one CTA per 16 neighbouring query blocks of a (head, query temporal block): products
//              of the block means with every key block in range (m16n8k16 in bf16), softmax per
//              row, a histogram of the probabilities
//   threshold  one CTA per (head, query temporal block): the (top_k + 1)-th largest probability of
//              the whole matrix, where blocks out of range count as zeros
//   lists      one warp per query block: mask, list and count
//   order      one CTA: in which order attention takes its tiles (tile_order.cu)
//
// A probability is never negative, so its bits order like its value: 16-bit keys for bf16, 32-bit
// keys for f32. Probabilities lie in scratch as [row][key temporal block][window row][window
// column], the window being the part of the local range inside the grid, with kNone where there is
// nothing. Bound by latency; the products are 0.6 GFLOP at 2K.
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>

#include "ops/cuda/sparse/block_sparse.h"
#include "ops/cuda/sparse/tile_order.h"

namespace ultraflash::cuda {
namespace {

constexpr int kBins = 2048;         // of the histogram the score kernel makes
constexpr int kQueriesPerCta = 16;  // rows of a matrix product
constexpr int kScoreThreads = 256;
constexpr int kListWarps = 8;
constexpr int kMostScoreBytes = 200 * 1024;  // shared memory of the score kernel

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

/// Inclusive sum over the CTA's threads (1024), in the order of `place` = 0 .. 1023.
__device__ __forceinline__ uint32_t scan_1024(uint32_t value, uint32_t* warp_sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t before = __shfl_up_sync(0xFFFFFFFFU, value, step);
    if (lane >= step) value += before;
  }
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();
  if (warp == 0) {
    uint32_t sum = warp_sums[lane];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t before = __shfl_up_sync(0xFFFFFFFFU, sum, step);
      if (lane >= step) sum += before;
    }
    warp_sums[lane] = sum;
  }
  __syncthreads();
  if (warp > 0) value += warp_sums[warp - 1];
  __syncthreads();
  return value;
}

template <typename T>
__global__ void __launch_bounds__(1024) threshold_kernel(const __grid_constant__ SelectParams p) {
  using K = Key<T>;
  using Bits = typename K::Bits;
  __shared__ uint32_t bins[1024];
  __shared__ uint32_t warp_sums[32];
  __shared__ uint32_t found[2];  // bin, entries above it
  const auto problem = static_cast<int>(blockIdx.x);
  const auto thread = static_cast<int>(threadIdx.x);
  const uint32_t* histogram = p.histogram + static_cast<int64_t>(problem) * kBins;
  auto rank = static_cast<uint32_t>(p.rank);
  if (thread == 0) found[0] = 0xFFFFFFFF;
  // Thread t holds the bins 2047 - 2t and 2046 - 2t: sums run from the largest values down.
  const uint32_t high = histogram[kBins - 1 - 2 * thread];
  const uint32_t low = histogram[kBins - 2 - 2 * thread];
  const uint32_t through = scan_1024(high + low, warp_sums);
  const uint32_t above = through - high - low;
  if (rank >= above && rank < through) {
    const bool in_high = rank < above + high;
    found[0] = static_cast<uint32_t>(kBins - (in_high ? 1 : 2) - 2 * thread);
    found[1] = in_high ? above : above + high;
  }
  __syncthreads();
  const uint32_t first_bin = found[0];
  if (first_bin == 0xFFFFFFFF || K::sorted(first_bin)) {
    // Fewer blocks in range than are to be kept: the threshold is 0.
    if (thread == 0) {
      p.thresholds[problem] = first_bin == 0xFFFFFFFF ? 0 : K::first(first_bin);
    }
    return;
  }
  uint32_t prefix = K::first(first_bin);
  rank -= found[1];
  const Bits* entries = static_cast<const Bits*>(p.probabilities) +
                        static_cast<int64_t>(problem) * p.spatial * p.pitch;
  const int64_t count = static_cast<int64_t>(p.spatial) * p.pitch;
  constexpr int kPerLoad = 16 / sizeof(Bits);
  for (int shift = K::kUnsortedBits; shift > 0;) {
    const int bits = min(shift, 10);
    const int next = shift - bits;
    bins[thread] = 0;
    __syncthreads();
    for (int64_t start = 0; start < count; start += 1024 * kPerLoad) {
      const int64_t at = start + thread * kPerLoad;
      Bits loaded[kPerLoad];
      if (at < count) {
        *reinterpret_cast<uint4*>(loaded) = *reinterpret_cast<const uint4*>(entries + at);
      }
#pragma unroll
      for (int i = 0; i < kPerLoad; ++i) {
        const uint32_t key = at < count ? loaded[i] : K::kNone;
        const bool counted =
            key != K::kNone &&
            (shift == K::kUnsortedBits ? K::bin(key) == first_bin : key >> shift == prefix);
        if (__any_sync(0xFFFFFFFFU, counted)) {
          count_bin(bins, key >> next & ((1U << bits) - 1), counted);
        }
      }
    }
    __syncthreads();
    const int bin = (1 << bits) - 1 - thread;
    const uint32_t here = bin >= 0 ? bins[bin] : 0;
    const uint32_t sum = scan_1024(here, warp_sums);
    if (bin >= 0 && rank >= sum - here && rank < sum) {
      found[0] = static_cast<uint32_t>(bin);
      found[1] = sum - here;
    }
    __syncthreads();
    prefix = prefix << bits | found[0];
    rank -= found[1];
    shift = next;
    __syncthreads();
  }
  if (thread == 0) p.thresholds[problem] = prefix;
}

/// Zeros a row of the mask, 16 bytes at a time where the rows allow it.
__device__ __forceinline__ void clear_row(uint8_t* row, int bytes) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (bytes % 16 == 0) {
    for (int i = lane; i < bytes / 16; i += 32) {
      reinterpret_cast<uint4*>(row)[i] = make_uint4(0, 0, 0, 0);
    }
  } else {
    for (int i = lane; i < bytes; i += 32) row[i] = 0;
  }
  __syncwarp();
}

template <typename T>
__global__ void __launch_bounds__(32 * kListWarps)
    list_kernel(const __grid_constant__ SelectParams p, int64_t rows) {
  using K = Key<T>;
  using Bits = typename K::Bits;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kListWarps + threadIdx.x / 32;
  if (index >= rows) return;
  const auto problem = static_cast<int>(index / p.spatial);
  const auto space = static_cast<int>(index % p.spatial);
  const int query_tb = problem % p.query_tbs;
  const uint32_t threshold = p.thresholds[problem];
  const Bits* row = static_cast<const Bits*>(p.probabilities) + index * p.pitch;
  const Span key_rows = span(space / p.columns, p.half, p.range, p.rows);
  const Span key_columns = span(space % p.columns, p.half, p.range, p.columns);
  const int entries = visible_tbs(p, query_tb) * p.window_rows * p.window_columns;
  const int diagonal = p.cached_blocks == 0 ? query_tb * p.spatial + space : -1;
  const int key_blocks = p.key_tbs * p.spatial;
  int32_t* list = p.indices + index * key_blocks;
  uint8_t* mask = p.mask != nullptr ? p.mask + index * key_blocks : nullptr;
  if (mask != nullptr) clear_row(mask, key_blocks);

  bool chosen = false;
  for (int e = lane; e < entries; e += 32) {
    chosen = chosen || (row[e] != K::kNone && row[e] >= threshold);
  }
  const bool empty = !__any_sync(0xFFFFFFFFU, chosen);
  int count = 0;
  // The place of entry e in the window goes along with e, by carries rather than divisions.
  int column = lane % p.window_columns;
  int window_row = lane / p.window_columns % p.window_rows;
  int tb = lane / (p.window_columns * p.window_rows);
  const int column_step = 32 % p.window_columns;
  const int row_step = 32 / p.window_columns % p.window_rows;
  const int tb_step = 32 / (p.window_columns * p.window_rows);
  for (int e = lane; e - lane < entries; e += 32) {
    bool take = false;
    int key = 0;
    if (e < entries && row[e] != K::kNone) {
      key = tb * p.spatial + (key_rows.first + window_row) * p.columns + key_columns.first + column;
      // Entry 0 is the first allowed block: the oldest, at the window's first row and column.
      take = row[e] >= threshold || (empty && e == 0) || key == diagonal;
    }
    const uint32_t taken = __ballot_sync(0xFFFFFFFFU, take);
    if (take) {
      list[count + __popc(taken & ((1U << lane) - 1))] = key;
      if (mask != nullptr) mask[key] = 1;
    }
    count += __popc(taken);
    column += column_step;
    window_row += row_step;
    tb += tb_step;
    if (column >= p.window_columns) column -= p.window_columns, ++window_row;
    if (window_row >= p.window_rows) window_row -= p.window_rows, ++tb;
  }
  if (lane == 0) p.counts[index] = count;
}

__global__ void __launch_bounds__(32 * kListWarps)
    mask_list_kernel(const uint8_t* mask, int32_t* indices, int32_t* counts, int key_blocks,
                     int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kListWarps + threadIdx.x / 32;
  if (index >= rows) return;
  int count = 0;
  for (int start = 0; start < key_blocks; start += 32) {
    const int key = start + lane;
    const bool take = key < key_blocks && mask[index * key_blocks + key] != 0;
    const uint32_t taken = __ballot_sync(0xFFFFFFFFU, take);
    if (take) {
      indices[index * key_blocks + count + __popc(taken & ((1U << lane) - 1))] = key;
    }
    count += __popc(taken);
  }
  if (lane == 0) counts[index] = count;
}

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

struct Window {
  int64_t rows, columns, pitch;
};
Window window_of(const SparseShape& shape, const SparseSelection& selection) {
  Window window{};
  window.rows = std::min(selection.local_range, shape.block_rows());
  window.columns = std::min(selection.local_range, shape.block_columns());
  // A multiple of the entries of a 16-byte load.
  window.pitch = (shape.key_temporal_blocks() * window.rows * window.columns + 7) / 8 * 8;
  return window;
}

template <typename T, int HEAD_DIM>
cudaError_t launch_scores(const SelectParams& p, dim3 grid, cudaStream_t stream) {
  auto* kernel = score_kernel<T, HEAD_DIM>;
  const auto bytes = static_cast<int64_t>(p.pitch) * kQueriesPerCta * sizeof(typename Key<T>::Bits);
  if (bytes > kMostScoreBytes) return cudaErrorNotSupported;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  kernel<<<grid, kScoreThreads, static_cast<size_t>(bytes), stream>>>(p);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_select(const SparseShape& shape, const SelectParams& p, cudaStream_t stream) {
  const int64_t problems = shape.batch * shape.heads * shape.query_temporal_blocks();
  const int64_t strips = (shape.block_columns() + kQueriesPerCta - 1) / kQueriesPerCta;
  if (problems > 65535) return cudaErrorNotSupported;  // grid y
  const dim3 grid(static_cast<unsigned>(shape.block_rows() * strips),
                  static_cast<unsigned>(problems));
  cudaError_t error = cudaSuccess;
  if (sizeof(T) == 4) {
    error = launch_scores<T, 0>(p, grid, stream);
  } else if (p.head_dim == 128) {
    error = launch_scores<__nv_bfloat16, 128>(p, grid, stream);
  } else if (p.head_dim == 64) {
    error = launch_scores<__nv_bfloat16, 64>(p, grid, stream);
  } else {
    error = launch_scores<T, 0>(p, grid, stream);
  }
  if (error != cudaSuccess) return error;
  threshold_kernel<T><<<static_cast<unsigned>(problems), 1024, 0, stream>>>(p);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const int64_t rows = problems * shape.spatial_blocks();
  list_kernel<T>
      <<<static_cast<unsigned>((rows + kListWarps - 1) / kListWarps), 32 * kListWarps, 0, stream>>>(
          p, rows);
  return cudaGetLastError();
}

}  // namespace

size_t select_blocks_scratch_bytes(const SparseShape& shape, const SparseSelection& selection) {
  const auto problems =
      static_cast<size_t>(shape.batch * shape.heads * shape.query_temporal_blocks());
  const size_t entry = shape.type == SparseType::kBF16 ? 2 : 4;
  return aligned(problems * kBins * 4) + aligned(problems * 4) +
         aligned(problems *
                 static_cast<size_t>(shape.spatial_blocks() * window_of(shape, selection).pitch) *
                 entry);
}

cudaError_t select_blocks(const SparseShape& shape, const SparseSelection& selection,
                          const void* pooled_q, const void* pooled_k, const SparsePlace* place,
                          const SparseLists& lists, void* scratch, cudaStream_t stream) {
  const int64_t problems = shape.batch * shape.heads * shape.query_temporal_blocks();
  if (problems * shape.spatial_blocks() == 0) return cudaSuccess;
  const Window window = window_of(shape, selection);
  auto* memory = static_cast<uint8_t*>(scratch);
  SelectParams p{};
  p.pooled_q = pooled_q;
  p.pooled_k = pooled_k;
  p.first_slot = &place->first_slot;
  p.histogram = reinterpret_cast<uint32_t*>(memory);
  memory += aligned(static_cast<size_t>(problems) * kBins * 4);
  p.thresholds = reinterpret_cast<uint32_t*>(memory);
  memory += aligned(static_cast<size_t>(problems) * 4);
  p.probabilities = memory;
  p.mask = lists.mask;
  p.indices = lists.indices;
  p.counts = lists.counts;
  p.rank = std::min(selection.top_k, shape.spatial_blocks() * shape.key_blocks() - 1);
  p.inverse_root = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  p.heads = static_cast<int>(shape.heads);
  p.head_dim = static_cast<int>(shape.head_dim);
  p.dim = static_cast<int>(shape.dim());
  p.query_tbs = static_cast<int>(shape.query_temporal_blocks());
  p.key_tbs = static_cast<int>(shape.key_temporal_blocks());
  p.cached_blocks = static_cast<int>(shape.cached_blocks);
  p.capacity_blocks = static_cast<int>(shape.capacity_blocks);
  // A range or chunk beyond the grid is the whole grid.
  p.blocks_per_chunk =
      static_cast<int>(std::min(selection.blocks_per_chunk, shape.key_temporal_blocks()));
  p.rows = static_cast<int>(shape.block_rows());
  p.columns = static_cast<int>(shape.block_columns());
  p.spatial = static_cast<int>(shape.spatial_blocks());
  p.half = static_cast<int>(selection.local_range / 2);
  p.range = static_cast<int>(selection.local_range);
  p.window_rows = static_cast<int>(window.rows);
  p.window_columns = static_cast<int>(window.columns);
  p.pitch = static_cast<int>(window.pitch);
  cudaError_t error =
      cudaMemsetAsync(p.histogram, 0, static_cast<size_t>(problems) * kBins * 4, stream);
  if (error != cudaSuccess) return error;
  error = shape.type == SparseType::kBF16 ? launch_select<__nv_bfloat16>(shape, p, stream)
                                          : launch_select<float>(shape, p, stream);
  if (error != cudaSuccess) return error;
  return order_tiles(shape, lists, stream);
}

cudaError_t lists_from_mask(const SparseShape& shape, const uint8_t* mask, const SparseLists& lists,
                            cudaStream_t stream) {
  const int64_t rows = shape.batch * shape.heads * shape.query_blocks();
  if (rows == 0) return cudaSuccess;
  mask_list_kernel<<<static_cast<unsigned>((rows + kListWarps - 1) / kListWarps), 32 * kListWarps,
                     0, stream>>>(mask, lists.indices, lists.counts,
                                  static_cast<int>(shape.key_blocks()), rows);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  return order_tiles(shape, lists, stream);
}

}  // namespace ultraflash::cuda
