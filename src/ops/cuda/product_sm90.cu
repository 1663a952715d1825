// Products in e4m3 for sm_90a.
//
// Four CTAs of a cluster take 2 x 2 tiles of 128 rows and 128 columns. Each loads half of its rows
// of x and half of its rows of w; the copy engine hands those of x to the neighbour beside and
// those of w to the one below, so that L2 is asked once for what two CTAs read. In a CTA a producer
// thread fills a ring of slots with 128 columns of x and w, and two consumer warpgroups multiply 64
// rows each. Clusters stay and walk the tiles in strips of kStrip row tiles, so that a strip's rows
// of x are read once from memory and w stays in L2.
//
// The tensor cores add e4m3 products with about 14 bits, so they sum over the 128 columns of a slot
// alone; those sums, times the scale of the row in these columns, are added in f32 while the ones
// of the next slot are being made. Where results are e4m3, a tile's columns are those under one
// scale.
//
// Per slot a CTA's tensor cores need 512 clocks; shared memory, at 128 bytes a clock, 640: 48 KiB
// that they read and 32 KiB that are copied.
#include <algorithm>
#include <limits>

#include "ops/cuda/product_sm90.h"
#include "ops/cuda/sm90/tensor_maps.h"
#include "ops/cuda/sm90/tiles.cuh"

namespace ultraflash::cuda::sm90 {
namespace {

constexpr int kTile = 128;   // rows and columns of a CTA
constexpr int kDepth = 128;  // columns of x in a slot
constexpr int kCluster = 4;
constexpr int kConsumerWarps = 8;
constexpr int kThreads = 384;
constexpr int kStrip = 8;  // pairs of row tiles
constexpr uint32_t kConsumerRegisters = 240;
constexpr uint32_t kProducerRegisters = 24;
constexpr uint32_t kAlign = 1024;  // of the swizzle

struct Layout {
  static constexpr int kStages = 7;
  static constexpr uint32_t kTileBytes = kTile * kDepth;
  static constexpr uint32_t kX = 0;
  static constexpr uint32_t kW = kStages * kTileBytes;
  static constexpr uint32_t kBarriers = kW + kStages * kTileBytes;
  static constexpr uint32_t kBytes = kBarriers + 16 * kStages;
  static constexpr uint32_t x(int s) { return kX + s * kTileBytes; }
  static constexpr uint32_t w(int s) { return kW + s * kTileBytes; }
  static constexpr uint32_t full(int s) { return kBarriers + 8 * s; }
  static constexpr uint32_t empty(int s) { return kBarriers + 8 * (kStages + s); }
};
using L = Layout;

struct ProductParams {
  const float* x_scales;
  const float* w_scales;
  const float* bias;
  void* y;
  float* y_scales;
  int rows, out;
  int depths;                // slots of a tile
  int pairs, columns;        // of tiles
  int64_t x_pitch, y_pitch;  // of scales
  bool gelu;
};

/// The tiles of a CTA, one after the other: those of its cluster, and its place among them.
struct Tiles {
  const ProductParams& p;
  uint32_t rank;  // rows in bit 0, columns in bit 1
  int index;
  int row = 0, column = 0;
  __device__ Tiles(const ProductParams& params, uint32_t cluster_rank)
      : p(params), rank(cluster_rank), index(static_cast<int>(blockIdx.x) / kCluster) {}
  __device__ __forceinline__ bool next() {
    if (index >= p.pairs * p.columns) return false;
    const int strip = index / (kStrip * p.columns);
    const int in_strip = index - strip * kStrip * p.columns;
    const int height = min(kStrip, p.pairs - strip * kStrip);
    row = (2 * (strip * kStrip + in_strip % height) + static_cast<int>(rank & 1)) * kTile;
    column = (2 * (in_strip / height) + static_cast<int>(rank >> 1)) * kTile;
    index += static_cast<int>(gridDim.x) / kCluster;
    return true;
  }
};

struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == L::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void produce(const ProductParams& p, const CUtensorMap* x_map,
                                        const CUtensorMap* w_map, uint32_t base, uint32_t rank) {
  const int down = static_cast<int>(rank & 1);
  const int right = static_cast<int>(rank >> 1);
  // CTAs of the same rows, and of the same columns.
  const auto row_ranks = static_cast<uint16_t>(0b0101 << down);
  const auto column_ranks = static_cast<uint16_t>(0b0011 << 2 * right);
  Ring ring;
  Tiles tiles(p, rank);
  while (tiles.next()) {
#pragma unroll 1
    for (int d = 0; d < p.depths; ++d) {
      const uint32_t full = base + L::full(ring.stage);
      // The consumers of every CTA that gets a part of this slot, or gives one.
      barrier_wait(base + L::empty(ring.stage), ring.parity ^ 1);
      barrier_arrive_expect(full, 2 * L::kTileBytes);
      copy_box_to(base + L::x(ring.stage) + right * (L::kTileBytes / 2), x_map, d * kDepth,
                  tiles.row + right * (kTile / 2), full, row_ranks);
      copy_box_to(base + L::w(ring.stage) + down * (L::kTileBytes / 2), w_map, d * kDepth,
                  tiles.column + down * (kTile / 2), full, column_ranks);
      ring.advance();
    }
  }
}

/// GELU's tanh form with the fast tangent: 5e-4 of x off at most.
__device__ __forceinline__ float gelu_fast(float x) {
  const float u = x * fmaf(0.0356774081F * x, x, 0.7978845608F);
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
  const float half = 0.5F * x;
  return fmaf(half, t, half);
}

/// Sums to results, in place: columns from `column` on, of which the product has `p.out`.
__device__ __forceinline__ void finish(const ProductParams& p, int column, float (&sums)[64]) {
  const int first = column + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int i = 0; i < kTile / 8; ++i) {
    const int at = min(first + 8 * i, p.out - 2);
    const float2 scale = __ldg(reinterpret_cast<const float2*>(p.w_scales + at));
    float2 bias = {0.0F, 0.0F};
    if (p.bias != nullptr) bias = __ldg(reinterpret_cast<const float2*>(p.bias + at));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float& low = sums[4 * i + 2 * r];
      float& high = sums[4 * i + 2 * r + 1];
      low = fmaf(low, scale.x, bias.x);
      high = fmaf(high, scale.y, bias.y);
      if (p.gelu) {
        low = gelu_fast(low);
        high = gelu_fast(high);
      }
    }
  }
}

__device__ __forceinline__ void store_bf16(const ProductParams& p, int row, int column,
                                           const float (&sums)[64]) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    auto* to = static_cast<__nv_bfloat16*>(p.y) + static_cast<int64_t>(row + 8 * r) * p.out;
#pragma unroll
    for (int group = 0; group < kTile / 32; ++group) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (4 * group + i) + 2 * r;
        w[i] = pack(sums[at], sums[at + 1]);
      }
      transpose_quad(w);
      const int at = column + 32 * group + 8 * quarter;
      if (row + 8 * r < p.rows && at < p.out) {
        *reinterpret_cast<uint4*>(to + at) = make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }
}

/// A consumer warpgroup's way through the slots of a tile. The sums of a slot are being made while
/// those of the one before are added up.
struct Consumer {
  uint32_t base, rank;
  int consumer, lane;
  Ring ring;    // the slot whose products are queued next
  Ring oldest;  // the one that is given back next

  __device__ __forceinline__ Consumer(uint32_t shared_base, uint32_t cluster_rank)
      : base(shared_base),
        rank(cluster_rank),
        consumer(static_cast<int>(threadIdx.x) / 128 - 1),
        lane(static_cast<int>(threadIdx.x) % 32) {}

  /// Queues the products of the next slot.
  __device__ __forceinline__ void issue(float (&part)[64]) {
    barrier_wait(base + L::full(ring.stage), ring.parity);
    const uint32_t x = tile_start(base + L::x(ring.stage) + consumer * 64 * kDepth, 16);
    const uint32_t w = tile_start(base + L::w(ring.stage), 16);
    pin(part);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint64_t a = tile_descriptor(x + 2 * step);
      const uint64_t b = tile_descriptor(w + 2 * step);
      if (step == 0) {
        product8_64x128<true>(part, a, b);
      } else {
        product8_64x128<false>(part, a, b);
      }
    }
    wgmma_commit();
    ring.advance();
  }
  /// Takes the sums of the oldest slot and gives it back, to the CTAs that fill it: this one and
  /// its neighbours beside and below.
  __device__ __forceinline__ void add(float (&sums)[64], float (&part)[64],
                                      const float (&scale)[2]) {
    pin(part);
    if (lane < 3) {
      barrier_arrive_at(base + L::empty(oldest.stage), rank ^ static_cast<uint32_t>(lane));
    }
    oldest.advance();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float& sum = sums[4 * i + 2 * r + n];
          sum = fmaf(part[4 * i + 2 * r + n], scale[r], sum);
        }
      }
    }
  }

  __device__ __forceinline__ void multiply(const ProductParams& p, int row, float (&sums)[64]) {
    const float* scales[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) scales[r] = p.x_scales + min(row + 8 * r, p.rows - 1);
    const auto load = [&](int d, float(&scale)[2]) {
      scale[0] = __ldg(scales[0] + d * p.x_pitch);
      scale[1] = __ldg(scales[1] + d * p.x_pitch);
    };
#pragma unroll
    for (float& sum : sums) sum = 0.0F;
    float even[64];
    float odd[64];
    float even_scale[2];
    float odd_scale[2];
#pragma unroll 1
    for (int d = 0; d < p.depths; d += 2) {
      load(d, even_scale);
      issue(even);
      if (d > 0) {
        wgmma_wait<1>();
        add(sums, odd, odd_scale);
      }
      if (d + 1 == p.depths) {
        wgmma_wait<0>();
        add(sums, even, even_scale);
        return;
      }
      load(d + 1, odd_scale);
      issue(odd);
      wgmma_wait<1>();
      add(sums, even, even_scale);
    }
    wgmma_wait<0>();
    add(sums, odd, odd_scale);
  }
};

template <bool QUANTISES>
__device__ __forceinline__ void consume(const ProductParams& p, uint32_t base, uint32_t rank) {
  Consumer consumer(base, rank);
  const int my_row =
      consumer.consumer * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 + consumer.lane / 4;
  Tiles tiles(p, rank);
  while (tiles.next()) {
    const int row = tiles.row + my_row;
    float sums[64];
    consumer.multiply(p, row, sums);
    if (tiles.column >= p.out) continue;
    finish(p, tiles.column, sums);
    if constexpr (QUANTISES) {
      Fp8Rows to;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const bool real = row + 8 * r < p.rows;
        to.to[r] = real ? static_cast<uint8_t*>(p.y) + static_cast<int64_t>(row + 8 * r) * p.out +
                              tiles.column
                        : nullptr;
        to.scale[r] = p.y_scales + tiles.column / kTile * p.y_pitch + row + 8 * r;
      }
      store_rows_fp8(to, sums, {1.0F, 1.0F});
    } else {
      store_bf16(p, row, tiles.column, sums);
    }
  }
}

template <bool QUANTISES>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ CUtensorMap x_map,
                   const __grid_constant__ CUtensorMap w_map,
                   const __grid_constant__ ProductParams p) {
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + kAlign - 1) & ~(kAlign - 1);
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&x_map);
    prefetch_tensor_map(&w_map);
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(base + L::full(s), 1);
      barrier_init(base + L::empty(s), 3 * kConsumerWarps);
    }
    fence_barrier_init();
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce(p, &x_map, &w_map, base, rank);
  } else {
    take_registers<kConsumerRegisters>();
    consume<QUANTISES>(p, base, rank);
  }
  // Until here other CTAs arrive at barriers of this one and fill its slots.
  __syncwarp();
  cluster_sync();
}

int64_t pairs_of(int64_t count) { return (count + 2 * kTile - 1) / (2 * kTile); }

constexpr int kBytes = L::kBytes + kAlign;
static_assert(kBytes <= 227 * 1024, "shared memory of a CTA");

/// Clusters that run at once; the multiprocessors of some groups do not divide by four.
template <bool QUANTISES>
int clusters_at_once() {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kCluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (cudaFuncSetAttribute(product_kernel<QUANTISES>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kBytes) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&count, product_kernel<QUANTISES>, &config) != cudaSuccess) {
    return 0;
  }
  return count;
}

template <bool QUANTISES>
cudaError_t launch(const ProductFp8Args& a, int multiprocessors, cudaStream_t stream) {
  // GPUs of one machine are taken to be alike.
  static const int kAtOnce = clusters_at_once<QUANTISES>();
  const int clusters = std::min(kAtOnce, multiprocessors / kCluster);
  if (clusters <= 0) return cudaErrorNotSupported;
  CUtensorMap x_map;
  CUtensorMap w_map;
  if (!map_matrix_fp8(&x_map, a.x, a.rows, a.in, kTile / 2) ||
      !map_matrix_fp8(&w_map, a.w, a.out, a.in, kTile / 2)) {
    return cudaErrorInvalidValue;
  }
  ProductParams p{};
  p.x_scales = a.x_scales;
  p.w_scales = a.w_scales;
  p.bias = a.bias;
  p.y = a.y;
  p.y_scales = a.y_scales;
  p.rows = static_cast<int>(a.rows);
  p.out = static_cast<int>(a.out);
  p.depths = static_cast<int>(a.in / kDepth);
  p.pairs = static_cast<int>(pairs_of(a.rows));
  p.columns = static_cast<int>(pairs_of(a.out));
  p.x_pitch = a.x_pitch;
  p.y_pitch = scale_pitch(a.rows);
  p.gelu = a.activation == Activation::kGeluTanh;
  auto* kernel = product_kernel<QUANTISES>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      error != cudaSuccess) {
    return error;
  }
  kernel<<<kCluster * std::min(p.pairs * p.columns, clusters), kThreads, kBytes, stream>>>(
      x_map, w_map, p);
  return cudaGetLastError();
}

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

bool product_fp8_supports(const ProductFp8Args& a) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 256;  // rows or columns
  return a.rows > 0 && a.rows < kMost && a.x_pitch >= a.rows && a.in > 0 && a.in < kMost &&
         a.in % kDepth == 0 && a.out > 0 && a.out < kMost &&
         a.out % (a.y_scales != nullptr ? kScaleColumns : 8) == 0 &&
         pairs_of(a.rows) * pairs_of(a.out) < kMost && aligned(a.x, 16) && aligned(a.w, 16) &&
         aligned(a.y, 16) && aligned(a.w_scales, 8) && aligned(a.bias, 8) &&
         (a.activation == Activation::kNone || a.activation == Activation::kGeluTanh);
}

cudaError_t product_fp8(const ProductFp8Args& a, int multiprocessors, cudaStream_t stream) {
  if (!product_fp8_supports(a)) return cudaErrorNotSupported;
  return a.y_scales != nullptr ? launch<true>(a, multiprocessors, stream)
                               : launch<false>(a, multiprocessors, stream);
}

}  // namespace ultraflash::cuda::sm90
