// Device code of block-sparse attention for sm_90a.
//
// One tile = 128 queries (a window block) of one head. A CTA has one producer warp, which follows
// the list of the tile and copies K and V blocks of 128 keys into a ring in shared memory, and two
// consumer warpgroups of 64 queries each. Per key block a consumer computes S = Q K^T (m64n128k16,
// both operands in shared memory), P = exp2(S c - shift) in f32, and O += P V with P from
// registers. O += P V of one block and S of the next are issued together, and the consumers take
// turns: while one computes exponentials, the other keeps the tensor cores busy. The shift is the
// row maximum of a tile's first block and moves when a later sum tells that it must (next_softmax).
// CTAs stay and draw tiles from a counter, in the order of tile_order.cu.
//
// bf16 in and out, f32 accumulation; P is rounded to bf16 for P V, its sum is not.
// Shared memory at head_dim 128: Q 32 KiB + 3 x (K 32 KiB + V 32 KiB). Registers: 232 per consumer
// thread (S 64, O 64, P 32), 40 per producer thread. Bound by the tensor cores (2048 of their
// clocks per pair of blocks, beside 1056 clocks of exponentials and 64 KiB from L2), and in a long
// run by the power limit. Structure after FlashAttention-3 (arXiv 2407.08608), sections 3.1
// and 3.2; the lazy shift is that of FlashAttention-4 taken further.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ops/cuda/sm90/ptx.cuh"

namespace ultraflash::cuda::sm90 {

constexpr int kBlock = 128;    // tokens of a query tile and of a key block
constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerWarps = 8;
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr uint32_t kProducerRegisters = 40;
constexpr uint32_t kConsumerRegisters = 232;
constexpr uint32_t kBoxBytes = kBlock * 128;  // 128 rows of 64 bf16

struct AttentionParams {
  const int32_t* indices;
  const int32_t* counts;
  const int32_t* order;
  const int64_t* first_slot;
  uint32_t* ticket;
  __nv_bfloat16* out;
  float scale_log2;  // log2(e) / sqrt(head_dim)
  int tiles, heads, dim;
  int query_blocks, key_blocks, spatial_blocks, block_columns, capacity_blocks;
  int frames, height, width;
  int window_frames, window_height, window_width;
};

/// What the producer tells the consumers of a tile.
struct TileInfo {
  int count;        // blocks of its list; negative: no more tiles
  int column;       // first of its head in a row of the output
  int frame, y, x;  // of its first token
  int first_frame;  // frames of the samples before its own
};

template <int HEAD_DIM>
struct AttentionLayout {
  static constexpr int kBoxes = HEAD_DIM / 64;
  static constexpr uint32_t kTileBytes = kBoxes * kBoxBytes;
  // As many as fit: 3 at head_dim 128, and the copy of a block takes less time than its products.
  static constexpr int kStages = HEAD_DIM == 128 ? 3 : 5;
  static constexpr uint32_t kQ = 0;
  static constexpr uint32_t kK = kTileBytes;
  static constexpr uint32_t kV = kK + kStages * kTileBytes;
  static constexpr uint32_t kBarriers = kV + kStages * kTileBytes;
  // full and empty of Q, K and V, then two tiles: the consumers may write out one while the
  // producer announces the next.
  static constexpr uint32_t kBarrierCount = 2 + 4 * kStages;
  static constexpr uint32_t kTileInfo = kBarriers + 8 * kBarrierCount;
  static constexpr uint32_t kBytes = kTileInfo + 2 * sizeof(TileInfo);
  static constexpr uint32_t kAlign = 1024;  // of the swizzle

  static constexpr uint32_t q_full() { return kBarriers; }
  static constexpr uint32_t q_empty() { return kBarriers + 8; }
  static constexpr uint32_t k_full(int s) { return kBarriers + 8 * (2 + s); }
  static constexpr uint32_t k_empty(int s) { return kBarriers + 8 * (2 + kStages + s); }
  static constexpr uint32_t v_full(int s) { return kBarriers + 8 * (2 + 2 * kStages + s); }
  static constexpr uint32_t v_empty(int s) { return kBarriers + 8 * (2 + 3 * kStages + s); }
};

/// Place in a ring of barriers: index and parity of the phase to wait for.
template <int STAGES>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// --- producer -----------------------------------------------------------------------------------

template <int HEAD_DIM>
__device__ __forceinline__ void produce(const AttentionParams& p, const CUtensorMap* q_map,
                                        const CUtensorMap* k_map, const CUtensorMap* v_map,
                                        uint32_t base, TileInfo* tile_info) {
  using L = AttentionLayout<HEAD_DIM>;
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
    const int z = head * L::kBoxes;
    const auto announce = [&](bool load) {  // lane 0: the tile and its queries
      barrier_wait(base + L::q_empty(), q_parity ^ 1);
      q_parity ^= 1;
      const int space = block % p.spatial_blocks;
      tile_info[q_parity] = {more ? count : -1,
                             head * HEAD_DIM,
                             block / p.spatial_blocks * p.window_frames,
                             space / p.block_columns * p.window_height,
                             space % p.block_columns * p.window_width,
                             sample * p.frames};
      if (load) {
        barrier_arrive_expect(base + L::q_full(), L::kTileBytes);
        copy_box(base + L::kQ, q_map, 0, (sample * p.query_blocks + block) * kBlock, z,
                 base + L::q_full());
      } else {
        barrier_arrive(base + L::q_full());
      }
    };
    if (count == 0 && lane == 0) announce(/*load=*/false);
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
          const uint32_t k_full = base + L::k_full(ring.stage);
          const uint32_t v_full = base + L::v_full(ring.stage);
          barrier_wait(base + L::k_empty(ring.stage), ring.parity ^ 1);
          barrier_arrive_expect(k_full, L::kTileBytes);
          copy_box(base + L::kK + ring.stage * L::kTileBytes, k_map, 0, y, z, k_full);
          // The first keys go ahead of the queries, whose place is freed last.
          if (start + i == 0) announce(/*load=*/true);
          barrier_wait(base + L::v_empty(ring.stage), ring.parity ^ 1);
          barrier_arrive_expect(v_full, L::kTileBytes);
          copy_box(base + L::kV + ring.stage * L::kTileBytes, v_map, 0, y, z, v_full);
        }
        ring.advance();
      }
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

// --- consumers ----------------------------------------------------------------------------------

/// The larger of the values of the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
}
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

/// Of a thread's two rows, lane / 4 and lane / 4 + 8 of its warp's 16: what is taken off the scaled
/// scores before exp2, and the sum of the thread's own columns.
struct RowState {
  float shift[2];
  float sum[2];
};

/// weights = exp2(s c - shift), rounded in pairs into the layout of the A operand of P V, which is
/// that of the accumulators of S; `sum` receives the sums before rounding.
__device__ __forceinline__ void exponentials(const float (&s)[64], const float (&shift)[2], float c,
                                             uint32_t (&weights)[32], float (&sum)[2]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float low = exp2_fast(fmaf(s[4 * i + 2 * r], c, -shift[r]));
      const float high = exp2_fast(fmaf(s[4 * i + 2 * r + 1], c, -shift[r]));
      weights[2 * i + r] = pack(low, high);
      sum[r] = i == 0 ? low + high : sum[r] + (low + high);
    }
  }
}

/// The largest scaled score of each row.
__device__ __forceinline__ void row_tops(const float (&s)[64], float c, float (&top)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float a = fmaxf(s[2 * r], s[2 * r + 1]);
    float b = fmaxf(s[4 + 2 * r], s[4 + 2 * r + 1]);
#pragma unroll
    for (int i = 2; i < 16; i += 2) {
      a = fmaxf(a, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
      b = fmaxf(b, fmaxf(s[4 * i + 4 + 2 * r], s[4 * i + 4 + 2 * r + 1]));
    }
    top[r] = fmaxf(a, b);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) top[r] = row_max(top[r]) * c;
}

__device__ __forceinline__ void first_softmax(const float (&s)[64], float c, RowState& rows,
                                              uint32_t (&weights)[32]) {
  row_tops(s, c, rows.shift);
  exponentials(s, rows.shift, c, weights, rows.sum);
}

/// Softmax needs no maximum, only a shift that keeps exp2 finite and the largest weight from
/// vanishing. So the shift stays that of the earlier blocks, and a block costs no maximum and no
/// exchange, until the sums tell that a score is far above it.
constexpr float kMostSum = 65536.0F;

template <int COUNT>
__device__ __forceinline__ void next_softmax(const float (&s)[64], float c, RowState& rows,
                                             uint32_t (&weights)[32], float (&o)[COUNT]) {
  float sum[2];
  exponentials(s, rows.shift, c, weights, sum);
  const bool high = !(sum[0] <= kMostSum && sum[1] <= kMostSum);  // or not a number
  if (__any_sync(0xFFFFFFFFU, high)) {
    float top[2];
    row_tops(s, c, top);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], rows.shift[r]);
      const float factor = exp2_fast(rows.shift[r] - top[r]);
      rows.shift[r] = top[r];
      rows.sum[r] *= factor;
#pragma unroll
      for (int i = 0; i < COUNT / 4; ++i) {
        o[4 * i + 2 * r] *= factor;
        o[4 * i + 2 * r + 1] *= factor;
      }
    }
    exponentials(s, rows.shift, c, weights, sum);
  }
  rows.sum[0] += sum[0];
  rows.sum[1] += sum[1];
}

/// Queues s = q k^T. q: the 64 rows of this consumer.
template <int HEAD_DIM>
__device__ __forceinline__ void issue_scores(float (&s)[64], uint32_t q, uint32_t k) {
  const uint32_t q_start = tile_start(q, 16);
  const uint32_t k_start = tile_start(k, 16);
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; ++step) {
    const uint32_t offset = (step / 4 * kBoxBytes + step % 4 * 32) / 16;
    const uint64_t a = tile_descriptor(q_start + offset);
    const uint64_t b = tile_descriptor(k_start + offset);
    if (step == 0) {
      product_64x128<true>(s, a, b);
    } else {
      product_64x128<false>(s, a, b);
    }
  }
}

/// Queues o += p v.
template <int HEAD_DIM>
__device__ __forceinline__ void issue_output(float (&o)[HEAD_DIM / 2], uint32_t (&p)[32],
                                             uint32_t v) {
  const uint32_t v_start = tile_start(v, kBoxBytes);
#pragma unroll
  for (int step = 0; step < kBlock / 16; ++step) {
    product_registers(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3],
                      tile_descriptor(v_start + step * 16 * 128 / 16));
  }
}

/// Where in a window block a row stands.
struct WindowPlace {
  int frame, y, x;
};

/// Writes a thread's two rows to their tokens, unless they are padding. The four lanes of a row
/// exchange values so that each stores 16 bytes at a time.
template <int HEAD_DIM>
__device__ __forceinline__ void store_rows(const AttentionParams& p, const TileInfo& tile,
                                           const WindowPlace (&places)[2],
                                           const float (&o)[HEAD_DIM / 2],
                                           const float (&inverse)[2]) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int frame = tile.frame + places[r].frame;
    const int y = tile.y + places[r].y;
    const int x = tile.x + places[r].x;
    const bool real = frame < p.frames && y < p.height && x < p.width;
    const int64_t token =
        (static_cast<int64_t>(tile.first_frame + frame) * p.height + y) * p.width + x;
    __nv_bfloat16* out = p.out + token * p.dim + tile.column;
#pragma unroll
    for (int group = 0; group < HEAD_DIM / 32; ++group) {
      uint32_t w[4];  // columns 32 * group + 8 * i + 2 * quarter + {0, 1}
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (4 * group + i) + 2 * r;
        w[i] = pack(o[at] * inverse[r], o[at + 1] * inverse[r]);
      }
      // Transpose of a 4x4 across the lanes of a row: afterwards w[i] are columns
      // 32 * group + 8 * quarter + 2 * i + {0, 1}.
      const bool odd = (quarter & 1) != 0;
      const bool high = (quarter & 2) != 0;
      uint32_t send = odd ? w[0] : w[1];
      uint32_t got = __shfl_xor_sync(0xFFFFFFFFU, send, 1);
      (odd ? w[0] : w[1]) = got;
      send = odd ? w[2] : w[3];
      got = __shfl_xor_sync(0xFFFFFFFFU, send, 1);
      (odd ? w[2] : w[3]) = got;
      send = high ? w[0] : w[2];
      got = __shfl_xor_sync(0xFFFFFFFFU, send, 2);
      (high ? w[0] : w[2]) = got;
      send = high ? w[1] : w[3];
      got = __shfl_xor_sync(0xFFFFFFFFU, send, 2);
      (high ? w[1] : w[3]) = got;
      if (real) {
        *reinterpret_cast<uint4*>(out + 32 * group + 8 * quarter) =
            make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }
}

template <int HEAD_DIM>
__device__ __forceinline__ void consume(const AttentionParams& p, uint32_t base,
                                        const TileInfo* tile_info) {
  using L = AttentionLayout<HEAD_DIM>;
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const bool signals = threadIdx.x % 32 == 0;
  const uint32_t q = base + L::kQ + consumer * 64 * 128;
  WindowPlace places[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = consumer * 64 + warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r;
    places[r] = {row / (p.window_height * p.window_width), row / p.window_width % p.window_height,
                 row % p.window_width};
  }
  // Named barriers 1 and 2: "consumer i may use the tensor cores"; its partner arrives, it waits.
  const uint32_t mine = 1 + consumer;
  const uint32_t partner = 2 - consumer;
  if (consumer == 1) named_arrive(partner, 256);

  float s[64];
  float o[HEAD_DIM / 2];
  uint32_t weights[32];
  RowState rows;
  RingPlace<L::kStages> k_ring;
  RingPlace<L::kStages> v_ring;
  uint32_t q_parity = 0;
  while (true) {
    barrier_wait(base + L::q_full(), q_parity);
    q_parity ^= 1;
    const TileInfo& tile = tile_info[q_parity];
    const int count = tile.count;
    if (count < 0) break;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) o[i] = 0.0F;
    float inverse[2] = {0.0F, 0.0F};
    if (count == 0) {
      __syncwarp();
      if (signals) barrier_arrive(base + L::q_empty());
    } else {
      barrier_wait(base + L::k_full(k_ring.stage), k_ring.parity);
      pin(s);
      wgmma_fence();
      issue_scores<HEAD_DIM>(s, q, base + L::kK + k_ring.stage * L::kTileBytes);
      wgmma_commit();
      wgmma_wait<0>();
      pin(s);
      if (signals) {
        barrier_arrive(base + L::k_empty(k_ring.stage));
        if (count == 1) barrier_arrive(base + L::q_empty());
      }
      k_ring.advance();
      first_softmax(s, p.scale_log2, rows, weights);
      for (int j = 1; j < count; ++j) {
        barrier_wait(base + L::v_full(v_ring.stage), v_ring.parity);
        barrier_wait(base + L::k_full(k_ring.stage), k_ring.parity);
        pin(s);
        pin(o);
        pin(weights);
        named_sync(mine, 256);
        wgmma_fence();
        issue_output<HEAD_DIM>(o, weights, base + L::kV + v_ring.stage * L::kTileBytes);
        issue_scores<HEAD_DIM>(s, q, base + L::kK + k_ring.stage * L::kTileBytes);
        wgmma_commit();
        named_arrive(partner, 256);
        wgmma_wait<0>();
        pin(s);
        pin(o);
        pin(weights);
        if (signals) {
          barrier_arrive(base + L::v_empty(v_ring.stage));
          barrier_arrive(base + L::k_empty(k_ring.stage));
          if (j == count - 1) barrier_arrive(base + L::q_empty());
        }
        v_ring.advance();
        k_ring.advance();
        next_softmax(s, p.scale_log2, rows, weights, o);
      }
      barrier_wait(base + L::v_full(v_ring.stage), v_ring.parity);
      pin(o);
      pin(weights);
      wgmma_fence();
      issue_output<HEAD_DIM>(o, weights, base + L::kV + v_ring.stage * L::kTileBytes);
      wgmma_commit();
      inverse[0] = 1.0F / row_sum(rows.sum[0]);
      inverse[1] = 1.0F / row_sum(rows.sum[1]);
      wgmma_wait<0>();
      pin(o);
      if (signals) barrier_arrive(base + L::v_empty(v_ring.stage));
      v_ring.advance();
    }
    store_rows<HEAD_DIM>(p, tile, places, o, inverse);
  }
  // Pairs with the partner's last arrival, so that no barrier is left half full.
  if (consumer == 0) named_sync(mine, 256);
}

template <int HEAD_DIM>
__global__ void __launch_bounds__(kThreads, 1)
    attention_kernel(const __grid_constant__ CUtensorMap q_map,
                     const __grid_constant__ CUtensorMap k_map,
                     const __grid_constant__ CUtensorMap v_map,
                     const __grid_constant__ AttentionParams p) {
// A build for several architectures compiles this file for each; only sm_90a has the instructions,
// and the host code launches it nowhere else.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = AttentionLayout<HEAD_DIM>;
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + L::kAlign - 1) & ~(L::kAlign - 1);
  auto* tile_info =
      reinterpret_cast<TileInfo*>(shared + (base - shared_address(shared)) + L::kTileInfo);
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
    if (threadIdx.x < 32) produce<HEAD_DIM>(p, &q_map, &k_map, &v_map, base, tile_info);
  } else {
    take_registers<kConsumerRegisters>();
    consume<HEAD_DIM>(p, base, tile_info);
  }
#endif
}

}  // namespace ultraflash::cuda::sm90
