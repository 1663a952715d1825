// Products in e4m3 for sm_90a.
//
// Two CTAs of a cluster take tiles of 128 rows below each other and COLUMNS of the same columns:
// each loads its own rows of x and half of the rows of w, which the copy engine hands to both. In a
// CTA a producer thread fills a ring of slots with 128 columns of x and w, and two consumer
// warpgroups multiply 64 rows each. CTAs stay and walk the tiles in strips of kStrip row tiles, so
// that a strip's rows of x are read once from memory and w stays in L2.
//
// The tensor cores add e4m3 products with about 14 bits, so they sum over the 128 columns of a slot
// alone; those sums, times the scale of the row in these columns, are added in f32. One consumer
// starts a few slots after the other and stays behind, so that the tensor cores are busy while
// either adds up or writes out a tile. Where results are e4m3 a tile is 128 columns wide: the
// columns under one scale.
//
// Per slot a CTA's tensor cores need 4 COLUMNS clocks; shared memory, at 128 bytes a clock, 640,
// 736 and 832 for 128, 160 and 192 columns, which is what binds.
#include <algorithm>
#include <limits>

#include "ops/cuda/product_sm90.h"
#include "ops/cuda/sm90/tensor_maps.h"
#include "ops/cuda/sm90/tiles.cuh"

namespace ultraflash::cuda::sm90 {
namespace {

constexpr int kTileRows = 128;  // of a CTA
constexpr int kDepth = 128;     // columns of x in a slot
constexpr int kConsumerWarps = 8;
constexpr int kThreads = 384;
constexpr int kLag = 2;    // slots between the consumers
constexpr int kStrip = 8;  // pairs of row tiles
constexpr uint32_t kConsumerRegisters = 240;
constexpr uint32_t kProducerRegisters = 24;
constexpr uint32_t kAlign = 1024;  // of the swizzle

template <int COLUMNS>
struct Layout {
  static constexpr int kStages = COLUMNS == 128 ? 6 : 5;
  static constexpr uint32_t kXBytes = kTileRows * kDepth;
  static constexpr uint32_t kWBytes = COLUMNS * kDepth;
  static constexpr uint32_t kX = 0;
  static constexpr uint32_t kW = kStages * kXBytes;
  static constexpr uint32_t kBarriers = kW + kStages * kWBytes;
  static constexpr uint32_t kBytes = kBarriers + 16 * kStages;
  static_assert(kWBytes / 2 % kAlign == 0, "half of w keeps the swizzle");
  static constexpr uint32_t x(int s) { return kX + s * kXBytes; }
  static constexpr uint32_t w(int s) { return kW + s * kWBytes; }
  static constexpr uint32_t full(int s) { return kBarriers + 8 * s; }
  static constexpr uint32_t empty(int s) { return kBarriers + 8 * (kStages + s); }
};

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

/// The tiles of a cluster, one after the other.
struct Tiles {
  const ProductParams& p;
  int index;
  int pair = 0, column = 0;
  explicit __device__ Tiles(const ProductParams& params)
      : p(params), index(static_cast<int>(blockIdx.x) / 2) {}
  __device__ __forceinline__ bool next() {
    if (index >= p.pairs * p.columns) return false;
    const int strip = index / (kStrip * p.columns);
    const int in_strip = index - strip * kStrip * p.columns;
    const int height = min(kStrip, p.pairs - strip * kStrip);
    pair = strip * kStrip + in_strip % height;
    column = in_strip / height;
    index += static_cast<int>(gridDim.x) / 2;
    return true;
  }
};

template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <int COLUMNS>
__device__ __forceinline__ void produce(const ProductParams& p, const CUtensorMap* x_map,
                                        const CUtensorMap* w_map, uint32_t base, uint32_t rank) {
  using L = Layout<COLUMNS>;
  Ring<L::kStages> ring;
  Tiles tiles(p);
  while (tiles.next()) {
    const int row = (2 * tiles.pair + static_cast<int>(rank)) * kTileRows;
    const int column = tiles.column * COLUMNS + static_cast<int>(rank) * (COLUMNS / 2);
#pragma unroll 1
    for (int d = 0; d < p.depths; ++d) {
      const uint32_t full = base + L::full(ring.stage);
      // The consumers of both CTAs: what is copied goes to both.
      barrier_wait(base + L::empty(ring.stage), ring.parity ^ 1);
      barrier_arrive_expect(full, L::kXBytes + L::kWBytes);
      copy_box(base + L::x(ring.stage), x_map, d * kDepth, row, full);
      copy_box_to(base + L::w(ring.stage) + rank * (L::kWBytes / 2), w_map, d * kDepth, column,
                  full, 0b11);
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
template <int COLUMNS>
__device__ __forceinline__ void finish(const ProductParams& p, int column,
                                       float (&sums)[COLUMNS / 2]) {
  const int first = column + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int i = 0; i < COLUMNS / 8; ++i) {
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

template <int COLUMNS>
__device__ __forceinline__ void store_bf16(const ProductParams& p, int row, int column,
                                           const float (&sums)[COLUMNS / 2]) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    auto* to = static_cast<__nv_bfloat16*>(p.y) + static_cast<int64_t>(row + 8 * r) * p.out;
#pragma unroll
    for (int group = 0; group < COLUMNS / 32; ++group) {
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

template <int COLUMNS, bool QUANTISES>
__device__ __forceinline__ void consume(const ProductParams& p, uint32_t base, uint32_t rank) {
  using L = Layout<COLUMNS>;
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int my_row = consumer * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;
  bool leads = consumer == 0;  // and has not let the other one start
  const int lag = min(kLag, p.depths) - 1;
  Ring<L::kStages> ring;
  Tiles tiles(p);
  bool first = true;
  while (tiles.next()) {
    if (first && consumer == 1) named_sync(1, 256);
    first = false;
    const int row = (2 * tiles.pair + static_cast<int>(rank)) * kTileRows + my_row;
    const float* scales[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) scales[r] = p.x_scales + min(row + 8 * r, p.rows - 1);
    float sums[COLUMNS / 2];
#pragma unroll
    for (float& sum : sums) sum = 0.0F;
    float part[COLUMNS / 2];
#pragma unroll 1
    for (int d = 0; d < p.depths; ++d) {
      const float scale[2] = {__ldg(scales[0] + d * p.x_pitch), __ldg(scales[1] + d * p.x_pitch)};
      barrier_wait(base + L::full(ring.stage), ring.parity);
      const uint32_t x = tile_start(base + L::x(ring.stage) + consumer * 64 * kDepth, 16);
      const uint32_t w = tile_start(base + L::w(ring.stage), 16);
      pin(part);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        product8(part, tile_descriptor(x + 2 * step), tile_descriptor(w + 2 * step),
                 step == 0 ? 0 : 1);
      }
      wgmma_commit();
      if (leads && d == lag) {
        named_arrive(1, 256);
        leads = false;
      }
      wgmma_wait<0>();
      pin(part);
      if (lane < 2) barrier_arrive_at(base + L::empty(ring.stage), static_cast<uint32_t>(lane));
      ring.advance();
#pragma unroll
      for (int i = 0; i < COLUMNS / 8; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          sums[4 * i + 2 * r] = fmaf(part[4 * i + 2 * r], scale[r], sums[4 * i + 2 * r]);
          sums[4 * i + 2 * r + 1] =
              fmaf(part[4 * i + 2 * r + 1], scale[r], sums[4 * i + 2 * r + 1]);
        }
      }
    }
    finish<COLUMNS>(p, tiles.column * COLUMNS, sums);
    if constexpr (QUANTISES) {
      Fp8Rows to;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const bool real = row + 8 * r < p.rows;
        to.to[r] = real ? static_cast<uint8_t*>(p.y) + static_cast<int64_t>(row + 8 * r) * p.out +
                              tiles.column * COLUMNS
                        : nullptr;
        to.scale[r] = p.y_scales + tiles.column * p.y_pitch + row + 8 * r;
      }
      store_rows_fp8(to, sums, {1.0F, 1.0F});
    } else {
      store_bf16<COLUMNS>(p, row, tiles.column * COLUMNS, sums);
    }
  }
}

template <int COLUMNS, bool QUANTISES>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ CUtensorMap x_map,
                   const __grid_constant__ CUtensorMap w_map,
                   const __grid_constant__ ProductParams p) {
  using L = Layout<COLUMNS>;
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + kAlign - 1) & ~(kAlign - 1);
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&x_map);
    prefetch_tensor_map(&w_map);
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(base + L::full(s), 1);
      barrier_init(base + L::empty(s), 2 * kConsumerWarps);
    }
    fence_barrier_init();
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce<COLUMNS>(p, &x_map, &w_map, base, rank);
  } else {
    take_registers<kConsumerRegisters>();
    consume<COLUMNS, QUANTISES>(p, base, rank);
  }
  // Until here the other CTA arrives at barriers of this one.
  __syncwarp();
  cluster_sync();
}

int64_t pairs_of(int64_t rows) { return (rows + 2 * kTileRows - 1) / (2 * kTileRows); }

template <int COLUMNS, bool QUANTISES>
cudaError_t launch(const ProductFp8Args& a, int clusters, cudaStream_t stream) {
  using L = Layout<COLUMNS>;
  constexpr int kBytes = L::kBytes + kAlign;
  static_assert(kBytes <= 227 * 1024, "shared memory of a CTA");
  CUtensorMap x_map;
  CUtensorMap w_map;
  if (!map_matrix_fp8(&x_map, a.x, a.rows, a.in, kTileRows) ||
      !map_matrix_fp8(&w_map, a.w, a.out, a.in, COLUMNS / 2)) {
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
  p.columns = static_cast<int>((a.out + COLUMNS - 1) / COLUMNS);
  p.x_pitch = a.x_pitch;
  p.y_pitch = scale_pitch(a.rows);
  p.gelu = a.activation == Activation::kGeluTanh;
  auto* kernel = product_kernel<COLUMNS, QUANTISES>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      error != cudaSuccess) {
    return error;
  }
  kernel<<<2 * std::min(p.pairs * p.columns, clusters), kThreads, kBytes, stream>>>(x_map, w_map,
                                                                                    p);
  return cudaGetLastError();
}

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

bool product_fp8_supports(const ProductFp8Args& a) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 256;  // rows or columns
  return a.rows > 0 && a.rows < kMost && a.x_pitch >= a.rows && a.in > 0 && a.in < kMost &&
         a.in % kDepth == 0 && a.out > 0 && a.out < kMost &&
         a.out % (a.y_scales != nullptr ? kScaleColumns : 8) == 0 &&
         pairs_of(a.rows) * a.out < kMost * 256 && aligned(a.x, 16) && aligned(a.w, 16) &&
         aligned(a.y, 16) && aligned(a.w_scales, 8) && aligned(a.bias, 8) &&
         (a.activation == Activation::kNone || a.activation == Activation::kGeluTanh);
}

cudaError_t product_fp8(const ProductFp8Args& a, int multiprocessors, cudaStream_t stream) {
  if (!product_fp8_supports(a)) return cudaErrorNotSupported;
  const int clusters = std::max(multiprocessors / 2, 1);
  if (a.y_scales != nullptr) return launch<128, true>(a, clusters, stream);
  // Clocks of the widths, times the tiles of the busiest cluster.
  const auto clocks = [&](int64_t columns, int64_t of_slot) {
    const int64_t tiles = pairs_of(a.rows) * ((a.out + columns - 1) / columns);
    return (tiles + clusters - 1) / clusters * of_slot;
  };
  const int64_t of_128 = clocks(128, 640);
  const int64_t of_160 = clocks(160, 736);
  const int64_t of_192 = clocks(192, 832);
  if (of_192 <= of_160 && of_192 <= of_128) return launch<192, false>(a, clusters, stream);
  return of_160 <= of_128 ? launch<160, false>(a, clusters, stream)
                          : launch<128, false>(a, clusters, stream);
}

}  // namespace ultraflash::cuda::sm90
