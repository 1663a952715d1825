// Dense attention for sm_90a with the machinery of the block-sparse kernel: one producer warp that
// copies K and V into a ring, two consumer warpgroups of 64 queries each (sparse/sm90_attention.cuh
// says how they share the tensor cores). bf16 in and out, f32 accumulation, P rounded to bf16.
//
// What differs is who does what. A tile is 128 queries of a head against all keys, head after head,
// so that CTAs of a wave read the same keys from L2. 4680 queries of 12 heads are 444 tiles on 132
// multiprocessors: 3 full waves and 48 tiles, which would keep 84 multiprocessors idle for a
// fourth. So the tiles of the last wave are cut along the keys into equal runs of key blocks, one
// run per CTA (two pieces where it crosses a tile); pieces leave f32 sums in the workspace (17 MB)
// and a second kernel joins them. Every CTA has the same work to within one key block.
#include <cudaTypedefs.h>

#include <algorithm>
#include <limits>

#include "ops/cuda/dense_sm90.h"
#include "ops/cuda/sparse/sm90_attention.cuh"

namespace ultraflash::cuda::sm90 {
namespace {

constexpr int kHeadDim = 128;
using Layout = AttentionLayout<kHeadDim>;
constexpr int kPieceFloats = kBlock * kHeadDim + 2 * kBlock;  // sums, then shift and sum of a row

struct DenseParams {
  __nv_bfloat16* out;
  float* pieces;  // [CTAs][2][kPieceFloats]
  float scale_log2;
  int queries, keys;
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

__device__ __forceinline__ void produce_dense(const DenseParams& p, const CUtensorMap* q_map,
                                              const CUtensorMap* k_map, const CUtensorMap* v_map,
                                              uint32_t base) {
  using L = Layout;
  RingPlace<L::kStages> ring;
  uint32_t q_parity = 0;
  Schedule schedule(p, static_cast<int>(blockIdx.x));
  while (true) {
    const Segment segment = schedule.next();
    if (segment.count == 0) break;
    const int z = segment.tile / p.query_blocks * L::kBoxes;
    const int q_row = segment.tile % p.query_blocks * kBlock;
#pragma unroll 1
    for (int i = 0; i < segment.count; ++i) {
      const int row = (segment.first + i) * kBlock;
      const uint32_t k_full = base + L::k_full(ring.stage);
      const uint32_t v_full = base + L::v_full(ring.stage);
      barrier_wait(base + L::k_empty(ring.stage), ring.parity ^ 1);
      barrier_arrive_expect(k_full, L::kTileBytes);
      copy_box(base + L::kK + ring.stage * L::kTileBytes, k_map, 0, row, z, k_full);
      if (i == 0) {  // the first keys go ahead of the queries, whose place is freed last
        barrier_wait(base + L::q_empty(), q_parity ^ 1);
        q_parity ^= 1;
        barrier_arrive_expect(base + L::q_full(), L::kTileBytes);
        copy_box(base + L::kQ, q_map, 0, q_row, z, base + L::q_full());
      }
      barrier_wait(base + L::v_empty(ring.stage), ring.parity ^ 1);
      barrier_arrive_expect(v_full, L::kTileBytes);
      copy_box(base + L::kV + ring.stage * L::kTileBytes, v_map, 0, row, z, v_full);
      ring.advance();
    }
  }
}

/// Scores past the last key become minus infinity, so that they weigh nothing.
__device__ __forceinline__ void mask_scores(float (&s)[64], int valid) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const bool past = 8 * i + 2 * quarter + n >= valid;
      if (past) s[4 * i + n] = s[4 * i + 2 + n] = -INFINITY;
    }
  }
}

__device__ __forceinline__ void store_tile(const DenseParams& p, const Segment& segment, int row0,
                                           const float (&o)[kHeadDim / 2],
                                           const float (&inverse)[2]) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
  const int head = segment.tile / p.query_blocks;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = segment.tile % p.query_blocks * kBlock + row0 + 8 * r;
    if (query >= p.queries) continue;
    __nv_bfloat16* out = p.out + query * p.out_row + head * kHeadDim + 2 * quarter;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const int at = 4 * i + 2 * r;
      *reinterpret_cast<uint32_t*>(out + 8 * i) = pack(o[at] * inverse[r], o[at + 1] * inverse[r]);
    }
  }
}

__device__ __forceinline__ void store_piece(const DenseParams& p, const Segment& segment, int row0,
                                            const float (&o)[kHeadDim / 2], const RowState& rows) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
  float* piece = p.pieces + (static_cast<int64_t>(blockIdx.x) * 2 + segment.piece) * kPieceFloats;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = row0 + 8 * r;
    const float sum = row_sum(rows.sum[r]);
    if (quarter == 0) {
      piece[kBlock * kHeadDim + row] = rows.shift[r];
      piece[kBlock * kHeadDim + kBlock + row] = sum;
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const int at = 4 * i + 2 * r;
      *reinterpret_cast<float2*>(piece + row * kHeadDim + 8 * i + 2 * quarter) =
          make_float2(o[at], o[at + 1]);
    }
  }
}

__device__ __forceinline__ void consume_dense(const DenseParams& p, uint32_t base) {
  using L = Layout;
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const bool signals = threadIdx.x % 32 == 0;
  const uint32_t q = base + L::kQ + consumer * 64 * 128;
  const int row0 = consumer * 64 + warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  const int last_keys = p.keys - (p.key_blocks - 1) * kBlock;
  // Named barriers 1 and 2: "consumer i may use the tensor cores"; its partner arrives, it waits.
  const uint32_t mine = 1 + consumer;
  const uint32_t partner = 2 - consumer;
  if (consumer == 1) named_arrive(partner, 256);

  float s[64];
  float o[kHeadDim / 2];
  uint32_t weights[32];
  RowState rows;
  RingPlace<L::kStages> k_ring;
  RingPlace<L::kStages> v_ring;
  uint32_t q_parity = 0;
  Schedule schedule(p, static_cast<int>(blockIdx.x));
  while (true) {
    const Segment segment = schedule.next();
    if (segment.count == 0) break;
    // The block that ends in padding, counted from the first of this segment.
    const int masked = last_keys < kBlock ? p.key_blocks - 1 - segment.first : segment.count;
    barrier_wait(base + L::q_full(), q_parity);
    q_parity ^= 1;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) o[i] = 0.0F;
    barrier_wait(base + L::k_full(k_ring.stage), k_ring.parity);
    pin(s);
    wgmma_fence();
    issue_scores<kHeadDim>(s, q, base + L::kK + k_ring.stage * L::kTileBytes);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    if (signals) {
      barrier_arrive(base + L::k_empty(k_ring.stage));
      if (segment.count == 1) barrier_arrive(base + L::q_empty());
    }
    k_ring.advance();
    if (masked == 0) mask_scores(s, last_keys);
    first_softmax(s, p.scale_log2, rows, weights);
    for (int j = 1; j < segment.count; ++j) {
      barrier_wait(base + L::v_full(v_ring.stage), v_ring.parity);
      barrier_wait(base + L::k_full(k_ring.stage), k_ring.parity);
      pin(s);
      pin(o);
      pin(weights);
      named_sync(mine, 256);
      wgmma_fence();
      issue_output<kHeadDim>(o, weights, base + L::kV + v_ring.stage * L::kTileBytes);
      issue_scores<kHeadDim>(s, q, base + L::kK + k_ring.stage * L::kTileBytes);
      wgmma_commit();
      named_arrive(partner, 256);
      wgmma_wait<0>();
      pin(s);
      pin(o);
      pin(weights);
      if (signals) {
        barrier_arrive(base + L::v_empty(v_ring.stage));
        barrier_arrive(base + L::k_empty(k_ring.stage));
        if (j == segment.count - 1) barrier_arrive(base + L::q_empty());
      }
      v_ring.advance();
      k_ring.advance();
      if (j == masked) mask_scores(s, last_keys);
      next_softmax(s, p.scale_log2, rows, weights, o);
    }
    barrier_wait(base + L::v_full(v_ring.stage), v_ring.parity);
    pin(o);
    pin(weights);
    wgmma_fence();
    issue_output<kHeadDim>(o, weights, base + L::kV + v_ring.stage * L::kTileBytes);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    if (signals) barrier_arrive(base + L::v_empty(v_ring.stage));
    v_ring.advance();
    if (segment.piece < 0) {
      const float inverse[2] = {1.0F / row_sum(rows.sum[0]), 1.0F / row_sum(rows.sum[1])};
      store_tile(p, segment, row0, o, inverse);
    } else {
      store_piece(p, segment, row0, o, rows);
    }
  }
  // Pairs with the partner's last arrival, so that no barrier is left half full.
  if (consumer == 0) named_sync(mine, 256);
}

__global__ void __launch_bounds__(kThreads, 1)
    dense_kernel(const __grid_constant__ CUtensorMap q_map,
                 const __grid_constant__ CUtensorMap k_map,
                 const __grid_constant__ CUtensorMap v_map, const __grid_constant__ DenseParams p) {
  using L = Layout;
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + L::kAlign - 1) & ~(L::kAlign - 1);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q_map);
    prefetch_tensor_map(&k_map);
    prefetch_tensor_map(&v_map);
    barrier_init(base + L::q_full(), 1);
    barrier_init(base + L::q_empty(), kConsumerWarps);
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(base + L::k_full(s), 1);
      barrier_init(base + L::k_empty(s), kConsumerWarps);
      barrier_init(base + L::v_full(s), 1);
      barrier_init(base + L::v_empty(s), kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce_dense(p, &q_map, &k_map, &v_map, base);
  } else {
    take_registers<kConsumerRegisters>();
    consume_dense(p, base);
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

PFN_cuTensorMapEncodeTiled_v12000 find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

/// `rows` rows of heads * 128 bf16, `row_stride` apart, as [2 * heads][rows][64], in boxes of 128
/// rows and one head. Rows past the end read as zeros.
bool make_map(CUtensorMap* map, const void* data, int64_t rows, int heads, int64_t row_stride) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encoder();
  if (encode == nullptr) return false;
  const cuuint64_t sizes[3] = {64, static_cast<cuuint64_t>(rows),
                               static_cast<cuuint64_t>(2 * heads)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(row_stride) * 2, 128};
  const cuuint32_t box[3] = {64, kBlock, 2};
  const cuuint32_t steps[3] = {1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

bool dense_supports(const kernels::AttentionArgs& a) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4096;
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
  CUtensorMap maps[3];
  if (!make_map(&maps[0], a.q, a.queries, a.heads, a.q_row) ||
      !make_map(&maps[1], a.k, a.keys, a.heads, a.k_row) ||
      !make_map(&maps[2], a.v, a.keys, a.heads, a.v_row)) {
    return cudaErrorInvalidValue;
  }
  DenseParams p{};
  p.out = static_cast<__nv_bfloat16*>(a.out);
  p.pieces = static_cast<float*>(workspace);
  p.scale_log2 = a.scale * 1.4426950408889634F;
  p.queries = static_cast<int>(a.queries);
  p.keys = static_cast<int>(a.keys);
  p.query_blocks = (p.queries + kBlock - 1) / kBlock;
  p.key_blocks = (p.keys + kBlock - 1) / kBlock;
  p.out_row = a.out_row;
  const int tiles = p.query_blocks * a.heads;
  p.whole_tiles = tiles / multiprocessors * multiprocessors;
  p.cut_units = (tiles - p.whole_tiles) * p.key_blocks;
  p.run = std::max((p.cut_units + multiprocessors - 1) / multiprocessors, 1);

  constexpr int kBytes = Layout::kBytes + Layout::kAlign;
  if (const cudaError_t error =
          cudaFuncSetAttribute(dense_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      error != cudaSuccess) {
    return error;
  }
  dense_kernel<<<multiprocessors, kThreads, kBytes, stream>>>(maps[0], maps[1], maps[2], p);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  if (p.cut_units == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(tiles - p.whole_tiles), kBlock / 8);
  join_kernel<<<grid, 256, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace ultraflash::cuda::sm90
