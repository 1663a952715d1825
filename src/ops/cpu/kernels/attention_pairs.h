// Attention on bf16 with the processor's dot products of pairs (AVX512_BF16): two products a lane
// and instruction, accumulated in f32. Layouts are those of attention_impl.h with two neighbours
// (of the head, then of the keys) side by side in a 32-bit lane. Scores, softmax and sums are f32;
// probabilities are rounded to bf16 before the second product, as they are on a GPU.
#pragma once

#include <immintrin.h>

#include "ops/cpu/kernels/attention_impl.h"

namespace ultraflash::cpu {
namespace {

inline Vu load_pairs(const uint32_t* p) {
  Vu v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store_pairs(uint32_t* p, Vu v) { __builtin_memcpy(p, &v, sizeof(v)); }

// acc + a.low * b.low + a.high * b.high
inline Vf dot_pairs(Vf acc, Vu a, Vu b) {
  __m512 sum;
  __m512bh left;
  __m512bh right;
  __builtin_memcpy(&sum, &acc, sizeof(sum));
  __builtin_memcpy(&left, &a, sizeof(left));
  __builtin_memcpy(&right, &b, sizeof(right));
  sum = _mm512_dpbf16_ps(sum, left, right);
  __builtin_memcpy(&acc, &sum, sizeof(acc));
  return acc;
}

// Rounds to nearest even; for finite numbers.
inline Vu rounded_to_bf16(Vf v) {
  Vu bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  return bits + 0x7fffU + ((bits >> 16) & 1U);
}

// As tile_product; a(r, k), b and `inner` count pairs.
template <int R, int V, bool kTransposed>
inline void tile_product_pairs(const uint32_t* a, int64_t lda, const uint32_t* b, int64_t ldb,
                               int64_t inner, Vf (&acc)[R][V]) {
  for (int64_t k = 0; k < inner; ++k) {
    Vu row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load_pairs(b + k * ldb + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      uint32_t pair;
      __builtin_memcpy(&pair, kTransposed ? a + k * lda + r : a + r * lda + k, sizeof(pair));
      const Vu value = Vu{} + pair;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = dot_pairs(acc[r][v], value, row[v]);
    }
  }
}

// Whether the pairs of keys and values lie whole in memory.
inline bool takes_pairs(const AttentionTask& t) {
  return t.head_dim % kWidth == 0 && t.k_stride % 2 == 0;
}

// Queries [count][head_dim] -> [head_dim / 2][kTileColumns] pairs, zeros past `count`.
inline void transpose_query_pairs(const AttentionTask& t, int64_t first, int64_t count,
                                  uint32_t* out) {
  const BFloat16* q = static_cast<const BFloat16*>(t.q) + first * t.q_stride;
  for (int64_t c = 0; c < kTileColumns; ++c) {
    for (int64_t d = 0; d < t.head_dim / 2; ++d) {
      uint32_t pair = 0;
      if (c < count) __builtin_memcpy(&pair, q + c * t.q_stride + 2 * d, sizeof(pair));
      out[d * kTileColumns + c] = pair;
    }
  }
}

// Values [count][head_dim] -> [(count + 1) / 2][head_dim] pairs of rows.
inline void pair_values(const BFloat16* v, int64_t stride, int64_t count, int64_t head_dim,
                        uint32_t* out) {
  for (int64_t r = 0; r < count; r += 2) {
    for (int64_t d = 0; d < head_dim; d += kWidth) {
      Vh low;
      Vh high{};
      __builtin_memcpy(&low, v + r * stride + d, sizeof(low));
      if (r + 1 < count) __builtin_memcpy(&high, v + (r + 1) * stride + d, sizeof(high));
      store_pairs(out + r / 2 * head_dim + d,
                  __builtin_convertvector(low, Vu) | (__builtin_convertvector(high, Vu) << 16));
    }
  }
}

// Probabilities f32 [count][kTileColumns] -> [(count + 1) / 2][kTileColumns] pairs of rows.
inline void pair_probabilities(const float* p, int64_t count, uint32_t* out) {
  for (int64_t r = 0; r < count; r += 2) {
    for (int64_t c = 0; c < kTileColumns; c += kWidth) {
      const Vf low = load(p + r * kTileColumns + c);
      const Vf high = r + 1 < count ? load(p + (r + 1) * kTileColumns + c) : Vf{};
      store_pairs(out + r / 2 * kTileColumns + c,
                  (rounded_to_bf16(low) >> 16) | (rounded_to_bf16(high) & 0xffff0000U));
    }
  }
}

// One key run against one tile of queries. `probabilities` holds kMaxKeyRun / 2 rows of pairs.
inline void attend_tile_pairs(const AttentionScratch& s, int64_t tile, int64_t head_dim,
                              const BFloat16* keys, int64_t key_stride, const uint32_t* values,
                              int64_t count, float factor, const float* bias, int64_t bias_columns,
                              uint32_t* probabilities) {
  const uint32_t* q =
      reinterpret_cast<const uint32_t*>(s.queries) + tile * (head_dim / 2) * kTileColumns;
  for_row_blocks(count, [&](auto tag, int64_t r0) {
    constexpr int kRows = decltype(tag)::kCount;
    Vf acc[kRows][kTileVectors] = {};
    tile_product_pairs<kRows, kTileVectors, false>(
        reinterpret_cast<const uint32_t*>(keys + r0 * key_stride), key_stride / 2, q, kTileColumns,
        head_dim / 2, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        store(s.scores + (r0 + r) * kTileColumns + v * kWidth, acc[r][v] * factor);
      }
    }
  });
  add_bias(s, count, bias, bias_columns);
  update_softmax(s, tile, count);
  pair_probabilities(s.scores, count, probabilities);

  float* output = s.output + tile * kTileColumns * head_dim;
  const auto update = [&](auto vectors, int64_t d) {
    constexpr int kVectors = decltype(vectors)::kCount;
    for_row_blocks(kTileColumns, [&](auto tag, int64_t r0) {
      constexpr int kRows = decltype(tag)::kCount;
      Vf acc[kRows][kVectors];
      load_corrected<kRows, kVectors>(s, output, head_dim, r0, d, acc);
      tile_product_pairs<kRows, kVectors, true>(probabilities + r0, kTileColumns, values + d,
                                                head_dim, (count + 1) / 2, acc);
      store_output<kRows, kVectors>(output, head_dim, r0, d, acc);
    });
  };
  int64_t d = 0;
  for (; d + kTileColumns <= head_dim; d += kTileColumns) update(Rows<kTileVectors>{}, d);
  for (; d < head_dim; d += kWidth) update(Rows<1>{}, d);
}

void attention_pairs(const AttentionTask& t) {
  const AttentionScratch s = carve(t.scratch, t.head_dim);
  const int64_t tiles = begin_tiles(s, t);
  auto* queries = reinterpret_cast<uint32_t*>(s.queries);
  auto* values = reinterpret_cast<uint32_t*>(s.values);
  auto* probabilities = reinterpret_cast<uint32_t*>(s.keys);
  const float factor = t.scale * kLog2E;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    transpose_query_pairs(t, tile * kTileColumns, tile_queries(t, tile),
                          queries + tile * (t.head_dim / 2) * kTileColumns);
  }
  int64_t key = 0;
  for (int64_t i = 0; i < t.run_count; ++i) {
    const KeyRun& run = t.runs[i];
    pair_values(static_cast<const BFloat16*>(run.v), t.v_stride, run.count, t.head_dim, values);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      attend_tile_pairs(s, tile, t.head_dim, static_cast<const BFloat16*>(run.k), t.k_stride,
                        values, run.count, factor, bias_of(t, tile, key), tile_queries(t, tile),
                        probabilities);
    }
    key += run.count;
  }
  finish_tiles<BFloat16>(s, t);
}

}  // namespace
}  // namespace ultraflash::cpu
