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
#include "ops/cuda/sparse/select_scores.cuh"
#include "ops/cuda/sparse/tile_order.h"

namespace ultraflash::cuda {
namespace {

constexpr int kListWarps = 8;
constexpr int kMostScoreBytes = 200 * 1024;  // shared memory of the score kernel

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
  constexpr int kPerLoad = 16 / sizeof(Bits);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kListWarps + threadIdx.x / 32;
  if (index >= rows) return;
  const auto problem = static_cast<int>(index / p.spatial);
  const auto space = static_cast<int>(index % p.spatial);
  const int query_tb = problem % p.query_tbs;
  const uint32_t threshold = p.thresholds[problem];
  const bool empty = p.largest[index] < threshold;
  const auto* row =
      reinterpret_cast<const uint4*>(static_cast<const Bits*>(p.probabilities) + index * p.pitch);
  const Span key_rows = span(space / p.columns, p.half, p.range, p.rows);
  const Span key_columns = span(space % p.columns, p.half, p.range, p.columns);
  const int diagonal = p.cached_blocks == 0 ? query_tb * p.spatial + space : -1;
  const int key_blocks = p.key_tbs * p.spatial;
  const int vectors = p.pitch / kPerLoad;
  int32_t* list = p.indices + index * key_blocks;
  uint8_t* mask = p.mask != nullptr ? p.mask + index * key_blocks : nullptr;
  if (mask != nullptr) clear_row(mask, key_blocks);

  int count = 0;
  for (int start = 0; start < vectors; start += 32) {
    Bits keys[kPerLoad];
    const bool loaded = start + lane < vectors;
    if (loaded) *reinterpret_cast<uint4*>(keys) = __ldg(row + start + lane);
    // The entries of this lane, as they lie in the window; what is taken is one bit each.
    const int first = (start + lane) * kPerLoad;
    int column = first % p.window_columns;
    int window_row = first / p.window_columns % p.window_rows;
    int tb = first / (p.window_columns * p.window_rows);
    int blocks[kPerLoad];
    uint32_t taken = 0;
#pragma unroll
    for (int i = 0; i < kPerLoad; ++i) {
      blocks[i] =
          tb * p.spatial + (key_rows.first + window_row) * p.columns + key_columns.first + column;
      // Entry 0 is the first allowed block: the oldest, at the window's first row and column.
      const bool take =
          loaded && keys[i] != K::kNone &&
          (keys[i] >= threshold || (empty && first + i == 0) || blocks[i] == diagonal);
      taken |= take ? 1U << i : 0;
      if (++column == p.window_columns) {
        column = 0;
        if (++window_row == p.window_rows) window_row = 0, ++tb;
      }
    }
    const int own = __popc(taken);
    int through = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(0xFFFFFFFFU, through, step);
      if (lane >= step) through += before;
    }
    int at = count + through - own;
#pragma unroll
    for (int i = 0; i < kPerLoad; ++i) {
      if ((taken >> i & 1) == 0) continue;
      list[at++] = blocks[i];
      if (mask != nullptr) mask[blocks[i]] = 1;
    }
    count += __shfl_sync(0xFFFFFFFFU, through, 31);
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
  const auto bytes = static_cast<int64_t>(p.pitch) * kPatchQueries * sizeof(typename Key<T>::Bits);
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
  const int64_t patches = ((shape.block_rows() + kPatch - 1) / kPatch) *
                          ((shape.block_columns() + kPatch - 1) / kPatch);
  // Grid y, and the numbers that Divider takes.
  if (problems > 65535 || shape.key_blocks() > 65535) return cudaErrorNotSupported;
  const dim3 grid(static_cast<unsigned>(patches), static_cast<unsigned>(problems));
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
         aligned(problems * static_cast<size_t>(shape.spatial_blocks()) * 4) +
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
  p.largest = reinterpret_cast<uint32_t*>(memory);
  memory += aligned(static_cast<size_t>(problems * shape.spatial_blocks()) * 4);
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
