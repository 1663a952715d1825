// Dense attention for sm_90a on the pipeline of sm90/attend.cuh, in bf16 and in e4m3; bf16 out.
//
// A tile is 128 queries of a head against all keys, head after head, so that CTAs of a wave read
// the same keys from L2. 4680 queries of 12 heads are 444 tiles on 132 multiprocessors: 3 full
// waves and 48 tiles, which would keep 84 multiprocessors idle for a fourth. So the tiles of the
// last wave are cut along the keys into equal runs of key blocks, one run per CTA (two pieces where
// it crosses a tile); pieces leave f32 sums in the workspace (17 MB) and a second kernel joins
// them. Every CTA has the same work to within one key block.
#include <algorithm>
#include <limits>

#include "ops/cuda/dense_sm90.h"
#include "ops/cuda/sm90/attend.cuh"
#include "ops/cuda/sm90/tensor_maps.h"

namespace ultraflash::cuda::sm90 {
namespace {

constexpr int kHeadDim = 128;
constexpr int kPieceFloats = kBlock * kHeadDim + 2 * kBlock;  // sums, then shift and sum of a row

struct DenseParams {
  __nv_bfloat16* out;
  float* pieces;        // [CTAs][2][kPieceFloats]
  const float* scales;  // e4m3: of q k^T, per head
  float scale_log2;
  int queries, keys, heads;
  int query_blocks, key_blocks;
  int whole_tiles;  // of the full waves
  int cut_units;    // key blocks of the tiles that are cut
  int run;          // of them for each CTA
  int64_t out_row;
};

/// What a CTA does in turn: its tiles of the full waves, then its run of the cut ones.
struct Segment {
  int tile;
  int first;  // key block
  int count;  // 0: no more
  int piece;  // -1: a whole tile
};
struct Schedule {
  const DenseParams& p;
  int tile, at, end, piece;
  __device__ Schedule(const DenseParams& params, int cta)
      : p(params),
        tile(cta),
        at(cta * params.run),
        end(min((cta + 1) * params.run, params.cut_units)),
        piece(0) {}
  __device__ Segment next() {
    if (tile < p.whole_tiles) {
      const Segment whole{tile, 0, p.key_blocks, -1};
      tile += static_cast<int>(gridDim.x);
      return whole;
    }
    if (at >= end) return {0, 0, 0, -1};
    const int first = at % p.key_blocks;
    const int count = min(p.key_blocks - first, end - at);
    const Segment part{p.whole_tiles + at / p.key_blocks, first, count, piece++};
    at += count;
    return part;
  }
};

template <class TILES>
__device__ __forceinline__ void produce_dense(const DenseParams& p, const CUtensorMap* q_map,
                                              const CUtensorMap* k_map, const CUtensorMap* v_map,
                                              uint32_t base) {
  using L = AttentionLayout<TILES>;
  RingPlace<L::kStages> ring;
  uint32_t q_parity = 0;
  Schedule schedule(p, static_cast<int>(blockIdx.x));
  while (true) {
    const Segment segment = schedule.next();
    if (segment.count == 0) break;
    const int head = segment.tile / p.query_blocks;
    const int q_row = segment.tile % p.query_blocks * kBlock;
#pragma unroll 1
    for (int i = 0; i <= segment.count; ++i) {
      const int row = (segment.first + i) * kBlock;
      produce_slot<TILES, L>(k_map, v_map, base, ring, i < segment.count ? row : -1,
                             i > 0 ? row - kBlock : -1, head, p.heads, [&] {
                               if (i != 0) return;
                               // The first keys go ahead of the queries, whose place is freed last.
                               barrier_wait(base + L::q_empty(), q_parity ^ 1);
                               q_parity ^= 1;
                               barrier_arrive_expect(base + L::q_full(), L::kTileBytes);
                               copy_box(base + L::kQ, q_map, 0, q_row, head * TILES::kBoxes,
                                        base + L::q_full());
                             });
      ring.advance();
    }
  }
}

__device__ __forceinline__ void store_tile(const DenseParams& p, const Segment& segment, int row0,
                                           const float (&o)[kHeadDim / 2], const RowState& rows) {
  const int64_t column = segment.tile / p.query_blocks * kHeadDim;
  __nv_bfloat16* to[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = segment.tile % p.query_blocks * kBlock + row0 + 8 * r;
    to[r] = query < p.queries ? p.out + query * p.out_row + column : nullptr;
  }
  const float inverse[2] = {1.0F / rows.sum[0], 1.0F / rows.sum[1]};
  store_rows<kHeadDim>(to, o, inverse);
}

__device__ __forceinline__ void store_piece(const DenseParams& p, const Segment& segment, int row0,
                                            const float (&o)[kHeadDim / 2], const RowState& rows) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
  float* piece = p.pieces + (static_cast<int64_t>(blockIdx.x) * 2 + segment.piece) * kPieceFloats;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = row0 + 8 * r;
    if (quarter == 0) {
      piece[kBlock * kHeadDim + row] = rows.shift[r];
      piece[kBlock * kHeadDim + kBlock + row] = rows.sum[r];
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const int at = 4 * i + 2 * r;
      *reinterpret_cast<float2*>(piece + row * kHeadDim + 8 * i + 2 * quarter) =
          make_float2(o[at], o[at + 1]);
    }
  }
}

template <class TILES>
__device__ __forceinline__ void consume_dense(const DenseParams& p, uint32_t base) {
  using L = AttentionLayout<TILES>;
  const int last_keys = p.keys - (p.key_blocks - 1) * kBlock;
  Consumer<TILES, L, /*TURNS=*/true> consumer(base);
  Output<TILES> out;
  RowState rows;
  uint32_t q_parity = 0;
  Schedule schedule(p, static_cast<int>(blockIdx.x));
  while (true) {
    const Segment segment = schedule.next();
    if (segment.count == 0) break;
    const bool ends = segment.first + segment.count == p.key_blocks;
    float c = p.scale_log2;
    if constexpr (TILES::kRun > 0) c *= p.scales[segment.tile / p.query_blocks];
    barrier_wait(base + L::q_full(), q_parity);
    q_parity ^= 1;
    consumer.template attend<true>(segment.count, ends ? last_keys : kBlock, c, out, rows);
    if (segment.piece < 0) {
      store_tile(p, segment, consumer.row(), out.o, rows);
    } else {
      store_piece(p, segment, consumer.row(), out.o, rows);
    }
  }
  consumer.finish();
}

template <class TILES>
__global__ void __launch_bounds__(kThreads, 1)
    dense_kernel(const __grid_constant__ CUtensorMap q_map,
                 const __grid_constant__ CUtensorMap k_map,
                 const __grid_constant__ CUtensorMap v_map, const __grid_constant__ DenseParams p) {
  using L = AttentionLayout<TILES>;
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + L::kAlign - 1) & ~(L::kAlign - 1);
  if (threadIdx.x == 0) init_barriers<L>(base, &q_map, &k_map, &v_map);
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<L::kProducerRegisters>();
    if (threadIdx.x == 0) produce_dense<TILES>(p, &q_map, &k_map, &v_map, base);
  } else {
    take_registers<L::kConsumerRegisters>();
    consume_dense<TILES>(p, base);
  }
}

/// Joins the pieces of a cut tile, in the order of their keys: a warp per row, 4 columns a lane.
__global__ void __launch_bounds__(256) join_kernel(const __grid_constant__ DenseParams p) {
  const int cut = static_cast<int>(blockIdx.x);
  const int tile = p.whole_tiles + cut;
  const int row = static_cast<int>(blockIdx.y) * 8 + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int query = tile % p.query_blocks * kBlock + row;
  if (query >= p.queries) return;
  const int begin = cut * p.key_blocks;
  const int end = begin + p.key_blocks;
  float shift = -INFINITY;
  float sum = 0.0F;
  float4 o = {0.0F, 0.0F, 0.0F, 0.0F};
  for (int cta = begin / p.run; cta * p.run < end; ++cta) {
    // The first piece of a run lies in the tile where the run begins.
    const int piece = cta * p.run < begin ? 1 : 0;
    const float* data = p.pieces + (static_cast<int64_t>(cta) * 2 + piece) * kPieceFloats;
    const float its_shift = data[kBlock * kHeadDim + row];
    const float its_sum = data[kBlock * kHeadDim + kBlock + row];
    const float4 its = *reinterpret_cast<const float4*>(data + row * kHeadDim + 4 * lane);
    const float top = fmaxf(shift, its_shift);
    const float a = exp2f(shift - top);
    const float b = exp2f(its_shift - top);
    sum = sum * a + its_sum * b;
    o.x = o.x * a + its.x * b;
    o.y = o.y * a + its.y * b;
    o.z = o.z * a + its.z * b;
    o.w = o.w * a + its.w * b;
    shift = top;
  }
  const float inverse = 1.0F / sum;
  __nv_bfloat16* out = p.out + query * p.out_row + tile / p.query_blocks * kHeadDim + 4 * lane;
  *reinterpret_cast<uint2*>(out) =
      make_uint2(pack(o.x * inverse, o.y * inverse), pack(o.z * inverse, o.w * inverse));
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4096;  // queries or keys

template <class TILES>
cudaError_t launch(const CUtensorMap (&maps)[3], DenseParams p, int multiprocessors,
                   cudaStream_t stream) {
  p.query_blocks = (p.queries + kBlock - 1) / kBlock;
  p.key_blocks = (p.keys + kBlock - 1) / kBlock;
  const int tiles = p.query_blocks * p.heads;
  p.whole_tiles = tiles / multiprocessors * multiprocessors;
  p.cut_units = (tiles - p.whole_tiles) * p.key_blocks;
  p.run = std::max((p.cut_units + multiprocessors - 1) / multiprocessors, 1);

  using L = AttentionLayout<TILES>;
  constexpr int kBytes = L::kBytes + L::kAlign;
  auto* kernel = dense_kernel<TILES>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      error != cudaSuccess) {
    return error;
  }
  kernel<<<multiprocessors, kThreads, kBytes, stream>>>(maps[0], maps[1], maps[2], p);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  if (p.cut_units == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(tiles - p.whole_tiles), kBlock / 8);
  join_kernel<<<grid, 256, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

bool dense_supports(const kernels::AttentionArgs& a) {
  return a.dtype == DType::kBF16 && a.head_dim == kHeadDim && a.batch == 1 && a.bias == nullptr &&
         a.key_lengths == nullptr && a.place == nullptr && a.keys > 0 && a.queries > 0 &&
         a.keys < kMost && a.queries < kMost && a.scale > 0.0F && a.q_row % 8 == 0 &&
         a.k_row % 8 == 0 && a.v_row % 8 == 0 && a.out_row % 8 == 0 && aligned(a.q) &&
         aligned(a.k) && aligned(a.v) && aligned(a.out);
}

size_t dense_workspace_bytes(int multiprocessors) {
  return static_cast<size_t>(multiprocessors) * 2 * kPieceFloats * sizeof(float);
}

cudaError_t dense_attention(const kernels::AttentionArgs& a, int multiprocessors, void* workspace,
                            cudaStream_t stream) {
  if (!dense_supports(a)) return cudaErrorNotSupported;
  const int64_t columns = int64_t{a.heads} * kHeadDim;
  CUtensorMap maps[3];
  if (!map_rows_bf16(&maps[0], a.q, a.queries, columns, kHeadDim, a.q_row) ||
      !map_rows_bf16(&maps[1], a.k, a.keys, columns, kHeadDim, a.k_row) ||
      !map_rows_bf16(&maps[2], a.v, a.keys, columns, kHeadDim, a.v_row)) {
    return cudaErrorInvalidValue;
  }
  DenseParams p{};
  p.out = static_cast<__nv_bfloat16*>(a.out);
  p.pieces = static_cast<float*>(workspace);
  p.scale_log2 = a.scale * 1.4426950408889634F;
  p.queries = static_cast<int>(a.queries);
  p.keys = static_cast<int>(a.keys);
  p.heads = a.heads;
  p.out_row = a.out_row;
  return launch<Bf16Tiles<kHeadDim>>(maps, p, multiprocessors, stream);
}

cudaError_t dense_attention_fp8(const DenseFp8Args& a, int multiprocessors, void* workspace,
                                cudaStream_t stream) {
  if (a.queries <= 0 || a.keys <= 0 || a.queries >= kMost || a.keys >= kMost || a.heads <= 0 ||
      !(a.scale > 0.0F) || !aligned(a.q) || !aligned(a.k) || !aligned(a.v) || !aligned(a.out)) {
    return cudaErrorNotSupported;
  }
  const int64_t columns = int64_t{a.heads} * kHeadDim;
  const int64_t key_blocks = (a.keys + kBlock - 1) / kBlock;
  CUtensorMap maps[3];
  if (!map_rows_fp8(&maps[0], a.q, a.queries, columns, columns) ||
      !map_rows_fp8(&maps[1], a.k, a.keys, columns, columns) ||
      !map_values_fp8(&maps[2], a.v, key_blocks, a.heads)) {
    return cudaErrorInvalidValue;
  }
  DenseParams p{};
  p.out = static_cast<__nv_bfloat16*>(a.out);
  p.pieces = static_cast<float*>(workspace);
  p.scales = a.scales;
  p.scale_log2 = a.scale * 1.4426950408889634F;
  p.queries = static_cast<int>(a.queries);
  p.keys = static_cast<int>(a.keys);
  p.heads = a.heads;
  p.out_row = columns;
  return launch<Fp8Tiles>(maps, p, multiprocessors, stream);
}

}  // namespace ultraflash::cuda::sm90
