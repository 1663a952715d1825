// Order of the tiles of block-sparse attention: a stable counting sort in one CTA.
//
// Most tiles go in the order that keeps their keys in L2: head by head, in strips of kStrip window
// columns, and the temporal blocks of one place after each other, since they share their keys. (At
// 2K, 132 tiles at a time touch 80 MB of keys and values. A simulation of an L2 of 29 MB, the size
// that reproduces the measured traffic, gives 13.5 KB from memory per pair in this order, 26.6 in
// raster order; at 1K 6.4 and 10.1.)
// Two kinds of tiles leave that order for the sake of balance: those with more than twice the mean
// number of blocks go first, longest first, and the last ones, two per multiprocessor, are sorted
// by length, so that all finish together.
#include "ops/cuda/sparse/tile_order.h"

namespace ultraflash::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kStrip = 5;  // window columns
constexpr int kLong = 6;   // classes of long tiles: by factors of two above twice the mean
constexpr int kLast = 12;  // classes of last tiles: by sixths of the mean
constexpr int kClasses = kLong + 1 + kLast;
constexpr int kPlaceBytes = kClasses * kThreads * 4;

struct OrderParams {
  const int32_t* counts;
  int32_t* order;
  int tiles, query_blocks, query_tbs, spatial, rows, columns;
  int last;     // how many tiles are sorted by length at the end
  bool staged;  // shared memory holds a Staged per tile
};

/// A tile at its place of the order that keeps keys in L2.
struct Staged {
  int tile, count;
};

/// Tile n of that order.
__device__ __forceinline__ int tile_at(const OrderParams& p, int n) {
  const int batch_head = n / p.query_blocks;
  const int place = n % p.query_blocks / p.query_tbs;
  const int tb = n % p.query_tbs;  // query_blocks is a multiple of query_tbs
  const int strip = place / (kStrip * p.rows);
  const int width = min(kStrip, p.columns - strip * kStrip);
  const int inside = place - strip * kStrip * p.rows;
  const int space = inside / width * p.columns + strip * kStrip + inside % width;
  return batch_head * p.query_blocks + tb * p.spatial + space;
}

/// The place of a tile: the other way round.
__device__ __forceinline__ int place_of(const OrderParams& p, int tile) {
  const int batch_head = tile / p.query_blocks;
  const int block = tile - batch_head * p.query_blocks;
  const int tb = block / p.spatial;
  const int space = block - tb * p.spatial;
  const int row = space / p.columns;
  const int column = space - row * p.columns;
  const int strip = column / kStrip;
  const int width = min(kStrip, p.columns - strip * kStrip);
  const int inside = row * width + column - strip * kStrip;
  return batch_head * p.query_blocks + (strip * kStrip * p.rows + inside) * p.query_tbs + tb;
}

/// Sums over the CTA, in the order of the threads: what comes before this thread.
__device__ __forceinline__ int64_t sum_before(int64_t value, int64_t* warp_sums, int64_t* total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int64_t through = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t before = __shfl_up_sync(0xFFFFFFFFU, through, step);
    if (lane >= step) through += before;
  }
  if (lane == 31) warp_sums[warp] = through;
  __syncthreads();
  int64_t base = 0;
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) base += warp_sums[w];
    *total += warp_sums[w];
  }
  __syncthreads();
  return base + through - value;
}

__global__ void __launch_bounds__(kThreads) order_kernel(const __grid_constant__ OrderParams p) {
  __shared__ int64_t warp_sums[kWarps];
  extern __shared__ int32_t places[];  // [kClasses][kThreads], then the staged tiles
  auto* staged = reinterpret_cast<Staged*>(places + kClasses * kThreads);
  const auto thread = static_cast<int>(threadIdx.x);
  int64_t sum = 0;
#pragma unroll 4
  for (int tile = thread; tile < p.tiles; tile += kThreads) {
    const int count = p.counts[tile];
    sum += count;
    if (p.staged) staged[place_of(p, tile)] = {tile, count};
  }
  for (int c = 0; c < kClasses; ++c) places[c * kThreads + thread] = 0;
  int64_t total = 0;
  sum_before(sum, warp_sums, &total);
  const float mean = fmaxf(static_cast<float>(total) / static_cast<float>(p.tiles), 1.0F);
  const float inverse_mean = 1.0F / mean;
  const auto tile_of = [&](int n) {
    if (p.staged) return staged[n];
    const int tile = tile_at(p, n);
    return Staged{tile, p.counts[tile]};
  };
  const auto class_of = [&](int n, int count) {
    const float length = static_cast<float>(count) * inverse_mean;
    if (length > 2.0F) {
      return kLong - 1 - min(static_cast<int>(log2f(0.5F * length)), kLong - 1);
    }
    if (n < p.tiles - p.last) return kLong;
    return kLong + kLast - min(static_cast<int>(length * (kLast / 2)), kLast - 1);
  };
  const int share = (p.tiles + kThreads - 1) / kThreads;
  const int begin = min(thread * share, p.tiles);
  const int end = min(begin + share, p.tiles);
  for (int n = begin; n < end; ++n) {
    ++places[class_of(n, tile_of(n).count) * kThreads + thread];
  }
  __syncthreads();
  // Sums over all of `places` in order; a thread takes kClasses entries that follow each other.
  int64_t own = 0;
  for (int i = 0; i < kClasses; ++i) own += places[thread * kClasses + i];
  auto place = static_cast<int32_t>(sum_before(own, warp_sums, &total));
  for (int i = 0; i < kClasses; ++i) {
    const int32_t value = places[thread * kClasses + i];
    places[thread * kClasses + i] = place;
    place += value;
  }
  __syncthreads();
  for (int n = begin; n < end; ++n) {
    const Staged tile = tile_of(n);
    p.order[places[class_of(n, tile.count) * kThreads + thread]++] = tile.tile;
  }
}

}  // namespace

cudaError_t order_tiles(const SparseShape& shape, const SparseLists& lists, cudaStream_t stream) {
  const int64_t tiles = shape.batch * shape.heads * shape.query_blocks();
  if (lists.order == nullptr || tiles == 0) return cudaSuccess;
  if (tiles > 0x7FFFFFFF - kThreads) return cudaErrorNotSupported;
  int device = 0;
  int multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  OrderParams p{};
  p.counts = lists.counts;
  p.order = lists.order;
  p.tiles = static_cast<int>(tiles);
  p.query_blocks = static_cast<int>(shape.query_blocks());
  p.query_tbs = static_cast<int>(shape.query_temporal_blocks());
  p.spatial = static_cast<int>(shape.spatial_blocks());
  p.rows = static_cast<int>(shape.block_rows());
  p.columns = static_cast<int>(shape.block_columns());
  p.last = 2 * multiprocessors;
  int most_bytes = 0;
  error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  const int64_t staged_bytes = tiles * static_cast<int64_t>(sizeof(Staged));
  p.staged = kPlaceBytes + staged_bytes + 1024 <= most_bytes;  // 1024: what the kernel has besides
  const int64_t bytes = kPlaceBytes + (p.staged ? staged_bytes : 0);
  error = cudaFuncSetAttribute(order_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  order_kernel<<<1, kThreads, static_cast<size_t>(bytes), stream>>>(p);
  return cudaGetLastError();
}

}  // namespace ultraflash::cuda
