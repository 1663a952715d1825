// Exact attention with an online softmax, for one head and up to kMaxTaskQueries queries.
//
// Scores are computed transposed, S^T = K Q^T, with queries along the vector lanes: keys are read
// where they lie, the row maximum and sum need no horizontal reduction, and S^T has the layout that
// the second product broadcasts from. Softmax runs in base 2 with the scale folded into Q.
// Source of the blocking: Dao et al., FlashAttention (2022), algorithm 1.
#pragma once

#include "ops/cpu/kernels/gemm_impl.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd.h"

namespace ultraflash::cpu {
namespace {

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Floats per row of the value tile and the output accumulator: whole vectors.
inline int64_t padded_head(int64_t head_dim) { return round_up(head_dim, kWidth); }

// Scratch: Q^T tiles, output accumulators, running maximum and sum, scores, converted K and V.
struct AttentionScratch {
  float* queries;     // [tiles][head_dim][kTileColumns]
  float* output;      // [tiles * kTileColumns][padded head]
  float* maximum;     // [tiles * kTileColumns]
  float* sum;         // [tiles * kTileColumns]
  float* scores;      // [kMaxKeyRun][kTileColumns]
  float* correction;  // [kTileColumns]
  float* keys;        // [kMaxKeyRun][padded head]
  float* values;      // [kMaxKeyRun][padded head]
};

constexpr int64_t kTaskTiles = (kMaxTaskQueries + kTileColumns - 1) / kTileColumns;

int64_t attention_scratch(int64_t head_dim) {
  const int64_t head = padded_head(head_dim);
  return kTaskTiles * kTileColumns * (head_dim + head + 2) + kMaxKeyRun * kTileColumns +
         kTileColumns + 2 * kMaxKeyRun * head + 8 * 16;  // alignment of each part
}

inline float* take(float*& cursor, int64_t count) {
  float* part = cursor;
  cursor += round_up(count, 16);
  return part;
}

inline AttentionScratch carve(float* scratch, int64_t head_dim) {
  const int64_t head = padded_head(head_dim);
  AttentionScratch s;
  s.queries = take(scratch, kTaskTiles * head_dim * kTileColumns);
  s.output = take(scratch, kTaskTiles * kTileColumns * head);
  s.maximum = take(scratch, kTaskTiles * kTileColumns);
  s.sum = take(scratch, kTaskTiles * kTileColumns);
  s.scores = take(scratch, kMaxKeyRun * kTileColumns);
  s.correction = take(scratch, kTileColumns);
  s.keys = take(scratch, kMaxKeyRun * head);
  s.values = take(scratch, kMaxKeyRun * head);
  return s;
}

constexpr float kMinusInfinity = -__builtin_inff();

template <typename T>
inline void transpose_queries(const AttentionTask& t, int64_t first, int64_t count, float factor,
                              float* out) {
  const T* q = static_cast<const T*>(t.q) + first * t.q_stride;
  for (int64_t c = 0; c < kTileColumns; ++c) {
    if (c < count) {
      for_vectors(t.head_dim, [&](int64_t d, int64_t lanes) {
        float values[kWidth];
        store(values, load_lanes(q + c * t.q_stride + d, lanes) * factor);
        for (int64_t i = 0; i < lanes; ++i) out[(d + i) * kTileColumns + c] = values[i];
      });
    } else {
      for (int64_t d = 0; d < t.head_dim; ++d) out[d * kTileColumns + c] = 0.0F;
    }
  }
}

// Rows as floats with whole vectors per row; the source itself where it already is that.
template <typename T>
inline const float* as_float_rows(const void* source_any, int64_t stride, int64_t rows,
                                  int64_t head_dim, bool whole_vectors, float* buffer,
                                  int64_t* out_stride) {
  const T* source = static_cast<const T*>(source_any);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (!whole_vectors || head_dim % kWidth == 0) {
      *out_stride = stride;
      return static_cast<const float*>(source_any);
    }
  }
  const int64_t padded = padded_head(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    for_vectors(head_dim, [&](int64_t d, int64_t lanes) {
      store(buffer + r * padded + d, load_lanes(source + r * stride + d, lanes));
    });
  }
  *out_stride = padded;
  return buffer;
}

constexpr float kLog2E = 1.44269504088896341F;

// Adds bias[column - row] to the first `columns` columns of the scores. None when null.
inline void add_bias(const AttentionScratch& s, int64_t count, const float* bias, int64_t columns) {
  if (bias != nullptr) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        s.scores[r * kTileColumns + c] += bias[c - r] * kLog2E;
      }
    }
  }
}

// Scores of one key run become probabilities against the running maximum of a tile of queries.
inline void update_softmax(const AttentionScratch& s, int64_t tile, int64_t count) {
  float* maximum = s.maximum + tile * kTileColumns;
  float* sum = s.sum + tile * kTileColumns;
  for (int v = 0; v < kTileVectors; ++v) {
    float* column = s.scores + v * kWidth;
    const Vf old_maximum = load(maximum + v * kWidth);
    Vf new_maximum = old_maximum;
    for (int64_t r = 0; r < count; ++r) {
      new_maximum = max(new_maximum, load(column + r * kTileColumns));
    }
    // The first run starts from -inf, and exp2(-inf) is 0.
    const Vf correction = exp2(old_maximum - new_maximum);
    Vf total = load(sum + v * kWidth) * correction;
    for (int64_t r = 0; r < count; ++r) {
      const Vf p = exp2(load(column + r * kTileColumns) - new_maximum);
      store(column + r * kTileColumns, p);
      total += p;
    }
    store(maximum + v * kWidth, new_maximum);
    store(sum + v * kWidth, total);
    store(s.correction + v * kWidth, correction);
  }
}

// A block of the output as it counts against the new maximum, and back.
template <int R, int V>
inline void load_corrected(const AttentionScratch& s, const float* output, int64_t head, int64_t r0,
                           int64_t d, Vf (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      acc[r][v] = load(output + (r0 + r) * head + d + v * kWidth) * s.correction[r0 + r];
    }
  }
}
template <int R, int V>
inline void store_output(float* output, int64_t head, int64_t r0, int64_t d, Vf (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(output + (r0 + r) * head + d + v * kWidth, acc[r][v]);
  }
}

// One key run against one tile of queries: scores, softmax update, output update.
inline void attend_tile(const AttentionScratch& s, int64_t tile, int64_t head_dim,
                        const float* keys, int64_t key_stride, const float* values,
                        int64_t value_stride, int64_t count, const float* bias,
                        int64_t bias_columns) {
  const float* q = s.queries + tile * head_dim * kTileColumns;
  for_row_blocks(count, [&](auto tag, int64_t r0) {
    constexpr int kRows = decltype(tag)::kCount;
    Vf acc[kRows][kTileVectors] = {};
    tile_product<kRows, kTileVectors, false>(keys + r0 * key_stride, key_stride, q, kTileColumns,
                                             head_dim, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        store(s.scores + (r0 + r) * kTileColumns + v * kWidth, acc[r][v]);
      }
    }
  });
  add_bias(s, count, bias, bias_columns);
  update_softmax(s, tile, count);

  const int64_t head = padded_head(head_dim);
  float* output = s.output + tile * kTileColumns * head;
  const auto update = [&](auto vectors, int64_t d) {
    constexpr int kVectors = decltype(vectors)::kCount;
    for_row_blocks(kTileColumns, [&](auto tag, int64_t r0) {
      constexpr int kRows = decltype(tag)::kCount;
      Vf acc[kRows][kVectors];
      load_corrected<kRows, kVectors>(s, output, head, r0, d, acc);
      tile_product<kRows, kVectors, true>(s.scores + r0, kTileColumns, values + d, value_stride,
                                          count, acc);
      store_output<kRows, kVectors>(output, head, r0, d, acc);
    });
  };
  int64_t d = 0;
  for (; d + kTileColumns <= head; d += kTileColumns) update(Rows<kTileVectors>{}, d);
  for (; d < head; d += kWidth) update(Rows<1>{}, d);
}

// Zeroes what a task accumulates; returns its number of query tiles.
inline int64_t begin_tiles(const AttentionScratch& s, const AttentionTask& t) {
  const int64_t tiles = (t.queries + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < tiles * kTileColumns * padded_head(t.head_dim); ++i) s.output[i] = 0.0F;
  for (int64_t i = 0; i < tiles * kTileColumns; ++i) {
    s.maximum[i] = kMinusInfinity;
    s.sum[i] = 0.0F;
  }
  return tiles;
}

inline int64_t tile_queries(const AttentionTask& t, int64_t tile) {
  const int64_t left = t.queries - tile * kTileColumns;
  return left < kTileColumns ? left : kTileColumns;
}

inline const float* bias_of(const AttentionTask& t, int64_t tile, int64_t key) {
  return t.bias == nullptr ? nullptr : t.bias + tile * kTileColumns - key;
}

template <typename T>
inline void finish_tiles(const AttentionScratch& s, const AttentionTask& t) {
  const int64_t head = padded_head(t.head_dim);
  T* out = static_cast<T*>(t.out);
  for (int64_t q = 0; q < t.queries; ++q) {
    const float total = s.sum[q];
    const float inverse = total > 0.0F ? 1.0F / total : 0.0F;  // no key at all gives zero
    for_vectors(t.head_dim, [&](int64_t d, int64_t lanes) {
      store_lanes(out + q * t.out_stride + d, load(s.output + q * head + d) * inverse, lanes);
    });
  }
}

template <typename T>
void attention_of(const AttentionTask& t) {
  const AttentionScratch s = carve(t.scratch, t.head_dim);
  const int64_t tiles = begin_tiles(s, t);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    transpose_queries<T>(t, tile * kTileColumns, tile_queries(t, tile), t.scale * kLog2E,
                         s.queries + tile * t.head_dim * kTileColumns);
  }
  int64_t key = 0;
  for (int64_t i = 0; i < t.run_count; ++i) {
    const KeyRun& run = t.runs[i];
    int64_t key_stride = 0;
    int64_t value_stride = 0;
    const float* keys = as_float_rows<T>(run.k, t.k_stride, run.count, t.head_dim,
                                         /*whole_vectors=*/false, s.keys, &key_stride);
    const float* values = as_float_rows<T>(run.v, t.v_stride, run.count, t.head_dim,
                                           /*whole_vectors=*/true, s.values, &value_stride);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      attend_tile(s, tile, t.head_dim, keys, key_stride, values, value_stride, run.count,
                  bias_of(t, tile, key), tile_queries(t, tile));
    }
    key += run.count;
  }
  finish_tiles<T>(s, t);
}

}  // namespace
}  // namespace ultraflash::cpu
