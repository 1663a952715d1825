// Block-sparse attention for sm_90a on the pipeline of sm90/attend.cuh, in bf16 and in e4m3; bf16
// out.
//
// One tile = 128 queries (a window block) of one head. The producer warp follows the list of the
// tile. CTAs stay and draw tiles from a counter, in the order of tile_order.cu. Bound by the tensor
// cores (in bf16 2048 of their clocks per pair of blocks, beside 1056 clocks of exponentials and
// 64 KiB from L2; in e4m3 1024), and in a long run by the power limit.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cuda/sm90/attend.cuh"
#include "ops/cuda/sm90/tensor_maps.h"
#include "ops/cuda/sparse/sm90_attention.h"

namespace ultraflash::cuda::sm90 {
namespace {

struct AttentionParams {
  const int32_t* indices;
  const int32_t* counts;
  const int32_t* order;
  const int64_t* first_slot;
  uint32_t* ticket;
  __nv_bfloat16* out;
  const float* scales;  // e4m3: of q k^T, per head
  float scale_log2;     // log2(e) / sqrt(head_dim)
  int tiles, heads, dim;
  int query_blocks, key_blocks, spatial_blocks, block_columns, capacity_blocks;
  int frames, height, width;
  int window_frames, window_height, window_width;
};

/// What the producer tells the consumers of a tile.
struct TileInfo {
  int count;  // blocks of its list; negative: no more tiles
  int head;
  int frame, y, x;  // of its first token
  int first_frame;  // frames of the samples before its own
};

// Two tiles: the consumers may write out one while the producer announces the next.
template <class TILES>
using Layout = AttentionLayout<TILES, 2 * sizeof(TileInfo)>;

template <class TILES>
__device__ __forceinline__ void produce(const AttentionParams& p, const CUtensorMap* q_map,
                                        const CUtensorMap* k_map, const CUtensorMap* v_map,
                                        uint32_t base, TileInfo* tile_info) {
  using L = Layout<TILES>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto first_slot = static_cast<int>(*p.first_slot);
  RingPlace<L::kStages> ring;
  uint32_t q_parity = 0;
  auto turn = static_cast<int>(blockIdx.x);
  while (true) {
    const bool more = turn < p.tiles;
    int next = 0;
    if (more && lane == 0) {
      next = static_cast<int>(gridDim.x + atomicAdd(p.ticket, 1U));
    }
    const int tile = more ? p.order[turn] : -1;
    const int count = more ? p.counts[tile] : 0;
    const int block = more ? tile % p.query_blocks : 0;
    const int batch_head = more ? tile / p.query_blocks : 0;
    const int head = batch_head % p.heads;
    const int sample = batch_head / p.heads;
    const auto announce = [&](bool load) {  // lane 0: the tile and its queries
      barrier_wait(base + L::q_empty(), q_parity ^ 1);
      q_parity ^= 1;
      const int space = block % p.spatial_blocks;
      tile_info[q_parity] = {more ? count : -1,
                             head,
                             block / p.spatial_blocks * p.window_frames,
                             space / p.block_columns * p.window_height,
                             space % p.block_columns * p.window_width,
                             sample * p.frames};
      if (load) {
        barrier_arrive_expect(base + L::q_full(), L::kTileBytes);
        copy_box(base + L::kQ, q_map, 0, (sample * p.query_blocks + block) * kBlock,
                 head * TILES::kBoxes, base + L::q_full());
      } else {
        barrier_arrive(base + L::q_full());
      }
    };
    if (count == 0 && lane == 0) announce(/*load=*/false);
    int last = -1;  // row of the block before
    const int32_t* list = p.indices + static_cast<int64_t>(more ? tile : 0) * p.key_blocks;
#pragma unroll 1
    for (int start = 0; start < count; start += 32) {
      int row = 0;
      if (start + lane < count) {
        const int key = list[start + lane];
        const int temporal = key / p.spatial_blocks;
        int slot = first_slot + temporal;
        if (slot >= p.capacity_blocks) slot -= p.capacity_blocks;
        row = ((sample * p.capacity_blocks + slot) * p.spatial_blocks + key -
               temporal * p.spatial_blocks) *
              kBlock;
      }
      const int length = min(32, count - start);
#pragma unroll 1
      for (int i = 0; i < length; ++i) {
        const int y = __shfl_sync(0xFFFFFFFFU, row, i);
        if (lane == 0) {
          // The first keys go ahead of the queries, whose place is freed last.
          produce_slot<TILES, L>(k_map, v_map, base, ring, y, last, head, p.heads, [&] {
            if (start + i == 0) announce(/*load=*/true);
          });
        }
        last = y;
        ring.advance();
      }
    }
    if (count > 0) {
      if (lane == 0) {
        produce_slot<TILES, L>(k_map, v_map, base, ring, /*key=*/-1, last, head, p.heads, [] {});
      }
      ring.advance();
    }
    if (!more) break;
    turn = __shfl_sync(0xFFFFFFFFU, next, 0);
  }
  // The last CTA to finish leaves the counter as it found it.
  if (lane == 0) {
    __threadfence();
    if (atomicAdd(p.ticket + 1, 1U) == gridDim.x - 1) {
      p.ticket[0] = 0;
      p.ticket[1] = 0;
    }
  }
}

/// Where in a window block a row stands.
struct WindowPlace {
  int frame, y, x;
};

template <class TILES>
__device__ __forceinline__ void consume(const AttentionParams& p, uint32_t base,
                                        const TileInfo* tile_info) {
  using L = Layout<TILES>;
  Consumer<TILES, L, /*TURNS=*/TILES::kRun == 0> consumer(base);
  WindowPlace places[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = consumer.row() + 8 * r;
    places[r] = {row / (p.window_height * p.window_width), row / p.window_width % p.window_height,
                 row % p.window_width};
  }
  Output<TILES> out;
  RowState rows;
  uint32_t q_parity = 0;
  while (true) {
    barrier_wait(base + L::q_full(), q_parity);
    q_parity ^= 1;
    const TileInfo& tile = tile_info[q_parity];
    const int count = tile.count;
    if (count < 0) break;
    float inverse[2] = {0.0F, 0.0F};
    if (count == 0) {
      out.clear();
      __syncwarp();
      if (consumer.signals) barrier_arrive(base + L::q_empty());
    } else {
      float c = p.scale_log2;
      if constexpr (TILES::kRun > 0) c *= p.scales[tile.head];
      consumer.template attend<false>(count, kBlock, c, out, rows);
      inverse[0] = 1.0F / rows.sum[0];
      inverse[1] = 1.0F / rows.sum[1];
    }
    __nv_bfloat16* to[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int frame = tile.frame + places[r].frame;
      const int y = tile.y + places[r].y;
      const int x = tile.x + places[r].x;
      const bool real = frame < p.frames && y < p.height && x < p.width;
      const int64_t token =
          (static_cast<int64_t>(tile.first_frame + frame) * p.height + y) * p.width + x;
      to[r] = real ? p.out + token * p.dim + tile.head * TILES::kHeadDim : nullptr;
    }
    store_rows<TILES::kHeadDim>(to, out.o, inverse);
  }
  consumer.finish();
}

template <class TILES>
__global__ void __launch_bounds__(kThreads, 1)
    attention_kernel(const __grid_constant__ CUtensorMap q_map,
                     const __grid_constant__ CUtensorMap k_map,
                     const __grid_constant__ CUtensorMap v_map,
                     const __grid_constant__ AttentionParams p) {
  using L = Layout<TILES>;
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + L::kAlign - 1) & ~(L::kAlign - 1);
  auto* tile_info =
      reinterpret_cast<TileInfo*>(shared + (base - shared_address(shared)) + L::kExtra);
  if (threadIdx.x == 0) init_barriers<L>(base, &q_map, &k_map, &v_map);
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<L::kProducerRegisters>();
    if (threadIdx.x < 32) produce<TILES>(p, &q_map, &k_map, &v_map, base, tile_info);
  } else {
    take_registers<L::kConsumerRegisters>();
    consume<TILES>(p, base, tile_info);
  }
}

template <class TILES>
cudaError_t launch(const CUtensorMap (&maps)[3], const AttentionParams& params, int ctas,
                   cudaStream_t stream) {
  using L = Layout<TILES>;
  constexpr int kBytes = L::kBytes + L::kAlign;
  auto* kernel = attention_kernel<TILES>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<ctas, kThreads, kBytes, stream>>>(maps[0], maps[1], maps[2], params);
  return cudaGetLastError();
}

}  // namespace

bool attention_supports(const SparseShape& shape) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  // Rows of the tensor maps and list lengths are 32-bit numbers.
  return shape.type == SparseType::kBF16 && (shape.head_dim == 64 || shape.head_dim == 128) &&
         shape.window_tokens() == kBlock &&
         shape.batch * shape.capacity_blocks * shape.spatial_blocks() * kBlock <= kMost &&
         shape.batch * shape.heads * shape.query_blocks() <= kMost &&
         shape.batch * shape.query_blocks() * kBlock <= kMost;
}

cudaError_t launch_attention(const SparseShape& shape, const BlockSparseArgs& args,
                             const AttentionTuning& tuning, cudaStream_t stream) {
  if (!attention_supports(shape)) return cudaErrorNotSupported;
  if (args.scales != nullptr && shape.head_dim != 128) return cudaErrorNotSupported;
  const int64_t tiles = shape.batch * shape.heads * shape.query_blocks();
  if (tiles == 0) return cudaSuccess;
  int device = 0;
  int multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess) {
    return error;
  }
  CUtensorMap maps[3];
  const int64_t query_rows = shape.batch * shape.query_blocks() * kBlock;
  const int64_t key_rows = shape.batch * shape.capacity_blocks * shape.spatial_blocks() * kBlock;
  const bool fp8 = args.scales != nullptr;
  const bool mapped =
      fp8 ? map_rows_fp8(&maps[0], args.q, query_rows, shape.dim(), shape.dim()) &&
                map_rows_fp8(&maps[1], args.k, key_rows, shape.dim(), shape.dim()) &&
                map_values_fp8(&maps[2], args.v, key_rows / kBlock, shape.heads)
          : map_rows_bf16(&maps[0], args.q, query_rows, shape.dim(), shape.head_dim, shape.dim()) &&
                map_rows_bf16(&maps[1], args.k, key_rows, shape.dim(), shape.head_dim,
                              shape.dim()) &&
                map_rows_bf16(&maps[2], args.v, key_rows, shape.dim(), shape.head_dim, shape.dim());
  if (!mapped) return cudaErrorInvalidValue;
  AttentionParams params{};
  params.indices = args.lists.indices;
  params.counts = args.lists.counts;
  params.order = args.lists.order;
  params.first_slot = &args.place->first_slot;
  params.ticket = args.ticket;
  params.out = static_cast<__nv_bfloat16*>(args.out);
  params.scales = args.scales;
  params.scale_log2 =
      static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(shape.head_dim)));
  params.tiles = static_cast<int>(tiles);
  params.heads = static_cast<int>(shape.heads);
  params.dim = static_cast<int>(shape.dim());
  params.query_blocks = static_cast<int>(shape.query_blocks());
  params.key_blocks = static_cast<int>(shape.key_blocks());
  params.spatial_blocks = static_cast<int>(shape.spatial_blocks());
  params.block_columns = static_cast<int>(shape.block_columns());
  params.capacity_blocks = static_cast<int>(shape.capacity_blocks);
  params.frames = static_cast<int>(shape.frames);
  params.height = static_cast<int>(shape.height);
  params.width = static_cast<int>(shape.width);
  params.window_frames = static_cast<int>(shape.window_frames);
  params.window_height = static_cast<int>(shape.window_height);
  params.window_width = static_cast<int>(shape.window_width);
  int64_t ctas = std::min<int64_t>(tiles, multiprocessors);
  if (tuning.max_ctas > 0) ctas = std::min(ctas, tuning.max_ctas);
  const int grid = static_cast<int>(ctas);
  if (fp8) return launch<Fp8Tiles>(maps, params, grid, stream);
  return shape.head_dim == 128 ? launch<Bf16Tiles<128>>(maps, params, grid, stream)
                               : launch<Bf16Tiles<64>>(maps, params, grid, stream);
}

}  // namespace ultraflash::cuda::sm90
