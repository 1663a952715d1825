// The pipeline of attention on sm_90a, dense and block-sparse, bf16 and e4m3.
//
// A CTA has one producer warp, which copies Q, and K and V of key blocks into a ring in shared
// memory, and two consumer warpgroups of 64 queries each. Per key block a consumer computes
// S = Q K^T (both operands in shared memory), P = exp2(S c - shift) in f32, and O += P V with P
// from registers. O += P V of one block and S of the next are issued together, so a slot of the
// ring holds K of a block and V of the one before. The consumers may take turns: while one computes
// exponentials, the other keeps the tensor cores busy. In bf16 those bound the loop. In e4m3 a
// consumer's own instructions do, so it goes on as soon as S is there, while O += P V still runs;
// its partner's turn begins then and not, as in bf16, when both products are queued. Short lists of
// key blocks go faster without turns.
//
// Shared memory at head_dim 128: Q 32 KiB + 3 x (K 32 KiB + V 32 KiB) in bf16, half of it per tile
// and 6 slots in e4m3. Registers: 232 or 240 per consumer thread (S 64, O 64 and in e4m3 64 more,
// P 32 or 16), 40 or 24 per producer thread. Structure after FlashAttention-3 (arXiv 2407.08608),
// sections 3.1 and 3.2; the lazy shift is that of FlashAttention-4 taken further.
#pragma once

#include "ops/cuda/sm90/tiles.cuh"

namespace ultraflash::cuda::sm90 {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerWarps = 8;
constexpr int kThreads = 128 * (1 + kConsumers);

/// Shared memory of a CTA, with EXTRA bytes for its own use behind the barriers.
template <class TILES, uint32_t EXTRA = 0>
struct AttentionLayout {
  static constexpr uint32_t kTileBytes = TILES::kTileBytes;
  static constexpr int kStages = TILES::kStages;
  static constexpr uint32_t kQ = 0;
  static constexpr uint32_t kK = kTileBytes;
  static constexpr uint32_t kV = kK + kStages * kTileBytes;
  static constexpr uint32_t kBarriers = kV + kStages * kTileBytes;
  static constexpr uint32_t kBarrierCount = 2 + 2 * kStages;  // full and empty of Q and the slots
  static constexpr uint32_t kExtra = kBarriers + 8 * kBarrierCount;
  static constexpr uint32_t kBytes = kExtra + EXTRA;
  static constexpr uint32_t kAlign = 1024;  // of the swizzle
  static constexpr uint32_t kConsumerRegisters = TILES::kRun > 0 ? 240 : 232;
  static constexpr uint32_t kProducerRegisters = TILES::kRun > 0 ? 24 : 40;

  static constexpr uint32_t q_full() { return kBarriers; }
  static constexpr uint32_t q_empty() { return kBarriers + 8; }
  static constexpr uint32_t full(int s) { return kBarriers + 8 * (2 + s); }
  static constexpr uint32_t empty(int s) { return kBarriers + 8 * (2 + kStages + s); }
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

/// By one thread, before the barrier that all threads of the CTA pass first.
template <class LAYOUT>
__device__ __forceinline__ void init_barriers(uint32_t base, const CUtensorMap* q_map,
                                              const CUtensorMap* k_map, const CUtensorMap* v_map) {
  prefetch_tensor_map(q_map);
  prefetch_tensor_map(k_map);
  prefetch_tensor_map(v_map);
  barrier_init(base + LAYOUT::q_full(), 1);
  barrier_init(base + LAYOUT::q_empty(), kConsumerWarps);
  for (int s = 0; s < LAYOUT::kStages; ++s) {
    barrier_init(base + LAYOUT::full(s), 1);
    barrier_init(base + LAYOUT::empty(s), kConsumerWarps);
  }
  fence_barrier_init();
}

/// One thread of the producer warp fills a slot: K of the block at row `key`, then what `between`
/// copies, then V of the block at row `value`; -1: none. In bf16 a block is rows [row, row + 128)
/// of a head; in e4m3 its V is block row / 128.
template <class TILES, class LAYOUT, class Between>
__device__ __forceinline__ void produce_slot(const CUtensorMap* k_map, const CUtensorMap* v_map,
                                             uint32_t base, const RingPlace<TILES::kStages>& ring,
                                             int key, int value, int head, int heads,
                                             const Between& between) {
  const uint32_t full = base + LAYOUT::full(ring.stage);
  barrier_wait(base + LAYOUT::empty(ring.stage), ring.parity ^ 1);
  barrier_arrive_expect(full, ((key >= 0 ? 1 : 0) + (value >= 0 ? 1 : 0)) * LAYOUT::kTileBytes);
  if (key >= 0) {
    copy_box(base + LAYOUT::kK + ring.stage * LAYOUT::kTileBytes, k_map, 0, key,
             head * TILES::kBoxes, full);
  }
  between();
  if (value < 0) return;
  const uint32_t v = base + LAYOUT::kV + ring.stage * LAYOUT::kTileBytes;
  if constexpr (TILES::kRun > 0) {
    copy_box(v, v_map, 0, 0, value / kBlock * heads + head, full);
  } else {
    copy_box(v, v_map, 0, value, head * TILES::kBoxes, full);
  }
}

/// A consumer warpgroup and its place in the ring.
template <class TILES, class LAYOUT, bool TURNS>
struct Consumer {
  static constexpr int kStages = TILES::kStages;
  uint32_t base;
  int consumer;
  uint32_t q;  // its 64 rows
  bool signals;
  // Named barriers 1 and 2: "consumer i may use the tensor cores"; its partner arrives, it waits.
  uint32_t mine;
  uint32_t partner;
  RingPlace<kStages> ring;

  // What comes out of an exchange between lanes stays in a register; the assembler would compute it
  // anew for every block otherwise.
  explicit __device__ __forceinline__ Consumer(uint32_t shared_base)
      : base(__shfl_sync(0xFFFFFFFFU, shared_base, 0)),
        consumer(__shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128 - 1, 0)),
        q(base + LAYOUT::kQ + consumer * 64 * 128),
        signals(threadIdx.x % 32 == 0),
        mine(1 + consumer),
        partner(2 - consumer) {
    if (TURNS && consumer == 1) named_arrive(partner, 256);
  }
  /// The first of a thread's two rows of the tile.
  [[nodiscard]] __device__ __forceinline__ int row() const {
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
    return consumer * 64 + warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
  /// Pairs with the partner's last arrival, so that no barrier is left half full.
  __device__ __forceinline__ void finish() const {
    if (TURNS && consumer == 0) named_sync(mine, 256);
  }

  /// Attention of a tile whose queries have arrived over its `count` > 0 next key blocks. MASKED:
  /// the last of them has `valid` keys.
  template <bool MASKED>
  __device__ __forceinline__ void attend(int count, int valid, float c, Output<TILES>& out,
                                         RowState& rows) {
    if constexpr (TILES::kRun > 0) {
      attend_fp8<MASKED>(count, valid, c, out, rows);
    } else {
      attend_blocks<MASKED>(count, valid, c, out, rows);
    }
  }

 private:
  /// The weights of the first block, and the shift that they give the tile.
  template <bool MASKED>
  __device__ __forceinline__ void first_block(int count, int valid, float c, float (&s)[64],
                                              uint32_t (&weights)[TILES::kWeights],
                                              Output<TILES>& out, RowState& rows) {
    out.clear();
    barrier_wait(base + LAYOUT::full(ring.stage), ring.parity);
    pin(s);
    wgmma_fence();
    TILES::issue_scores(s, q, key_tile());
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    release(ring.stage);
    if (count == 1) release_queries();
    ring.advance();
    if (MASKED && count == 1 && valid < kBlock) mask_scores(s, valid);
    first_shift<TILES>(s, c, rows);
    static_cast<void>(TILES::exponentials(s, rows.shift, c, weights, rows.sum));
  }

  template <bool MASKED>
  __device__ __forceinline__ void attend_blocks(int count, int valid, float c, Output<TILES>& out,
                                                RowState& rows) {
    float s[64];
    uint32_t weights[TILES::kWeights];
    first_block<MASKED>(count, valid, c, s, weights, out, rows);
    for (int j = 1; j < count; ++j) {
      barrier_wait(base + LAYOUT::full(ring.stage), ring.parity);
      pin(s);
      pin(out.o);
      pin(weights);
      if (TURNS) named_sync(mine, 256);
      wgmma_fence();
      TILES::issue_output(out.o, weights, value_tile());
      TILES::issue_scores(s, q, key_tile());
      wgmma_commit();
      if (TURNS) named_arrive(partner, 256);
      wgmma_wait<0>();
      pin(s);
      pin(out.o);
      pin(weights);
      release(ring.stage);
      if (j == count - 1) release_queries();
      ring.advance();
      if (MASKED && j == count - 1 && valid < kBlock) mask_scores(s, valid);
      next_softmax<TILES>(s, c, rows, weights, out);
    }
    barrier_wait(base + LAYOUT::full(ring.stage), ring.parity);
    pin(out.o);
    pin(weights);
    wgmma_fence();
    TILES::issue_output(out.o, weights, value_tile());
    wgmma_commit();
    rows.sum[0] = row_sum(rows.sum[0]);
    rows.sum[1] = row_sum(rows.sum[1]);
    wgmma_wait<0>();
    pin(out.o);
    release(ring.stage);
    ring.advance();
  }

  /// In e4m3, where a consumer's own instructions bound the loop: exponentials begin as soon as S
  /// is there, while O += P V of the block before still runs.
  template <bool MASKED>
  __device__ __forceinline__ void attend_fp8(int count, int valid, float c, Output<TILES>& out,
                                             RowState& rows) {
    float s[64];
    uint32_t weights[TILES::kWeights];
    first_block<MASKED>(count, valid, c, s, weights, out, rows);
    bool ready = barrier_test(base + LAYOUT::full(ring.stage), ring.parity);
    bool fresh = true;  // what is queued next begins a run
    int left = count - 2;
    while (left >= 0) {
      RingPlace<kStages> place;
      bool mask = false;
      // Blocks whose weights come out as they should. The code for the others stands behind this
      // loop, whose instructions lie close together then; it must not wait for products, which only
      // all warps of the group may do together.
#pragma unroll 1
      while (true) {
        if (!ready) barrier_wait(base + LAYOUT::full(ring.stage), ring.parity);
        pin(s);
        pin(weights);
        if (TURNS) named_sync(mine, 256);
        wgmma_fence();
        TILES::issue_scores(s, q, key_tile());
        wgmma_commit();
        if (fresh) out.collect();
        pin(out.o);
        wgmma_fence();
        TILES::issue_output(out.o, weights, value_tile(), fresh);
        wgmma_commit();
        fresh = !fresh;
        place = ring;
        ring.advance();
        ready = barrier_test(base + LAYOUT::full(ring.stage), ring.parity);
        wgmma_wait<1>();
        pin(s);
        if (TURNS) {
          named_arrive(partner, 256);
          end_of_block(q);
        }
        // The tensor cores still read the weights of the block before.
        uint32_t next[TILES::kWeights];
        float sum[2];
        mask = MASKED && left == 0 && valid < kBlock;
        const bool high = TILES::exponentials(s, rows.shift, c, next, sum) || mask;
        const bool rare = __any_sync(0xFFFFFFFFU, high);
        end_of_block(__float_as_uint(c));  // or it would wait before the exponentials
        wgmma_wait<0>();
        pin(out.o);
        pin(weights);
        if (rare) break;
#pragma unroll
        for (int i = 0; i < TILES::kWeights; ++i) weights[i] = next[i];
        rows.sum[0] += sum[0];
        rows.sum[1] += sum[1];
        release(place.stage);
        if (--left < 0) break;
      }
      if (left >= 0) {
        TILES::scores_again(s, q + warp_now() % 4 * 16 * 128, tile(LAYOUT::kK, place.stage));
        if (mask) mask_scores(s, valid);
        move_shift<TILES>(s, c, rows, out);
        float sum[2];
        static_cast<void>(TILES::exponentials(s, rows.shift, c, weights, sum));
        rows.sum[0] += sum[0];
        rows.sum[1] += sum[1];
        release(place.stage);
        --left;
      }
    }
    if (count > 1) release_queries();
    if (!ready) barrier_wait(base + LAYOUT::full(ring.stage), ring.parity);
    if (fresh) out.collect();
    pin(out.o);
    pin(weights);
    wgmma_fence();
    TILES::issue_output(out.o, weights, value_tile(), fresh);
    wgmma_commit();
    rows.sum[0] = row_sum(rows.sum[0]);
    rows.sum[1] = row_sum(rows.sum[1]);
    wgmma_wait<0>();
    pin(out.o);
    release(ring.stage);
    ring.advance();
#pragma unroll
    for (int i = 0; i < Output<TILES>::kCount; ++i) out.o[i] += out.runs[i];
  }

  [[nodiscard]] __device__ __forceinline__ uint32_t tile(uint32_t tiles, int stage) const {
    return base + tiles + stage * LAYOUT::kTileBytes;
  }
  [[nodiscard]] __device__ __forceinline__ uint32_t key_tile() const {
    return tile(LAYOUT::kK, ring.stage);
  }
  [[nodiscard]] __device__ __forceinline__ uint32_t value_tile() const {
    return tile(LAYOUT::kV, ring.stage);
  }
  /// A slot is done with.
  __device__ __forceinline__ void release(int stage) const {
    if (signals) barrier_arrive(base + LAYOUT::empty(stage));
  }
  __device__ __forceinline__ void release_queries() const {
    if (signals) barrier_arrive(base + LAYOUT::q_empty());
  }
};

}  // namespace ultraflash::cuda::sm90
