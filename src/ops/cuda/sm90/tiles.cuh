// What attention on sm_90a does with one tile of 64 queries per warpgroup and one block of 128
// keys: scores, weights and output, in bf16 (Bf16Tiles) and in e4m3 (Fp8Tiles). The loop around it
// is attend.cuh.
//
// Accumulators of a thread: row lane / 4 of its warp's 16 and the row 8 below, columns 8 i +
// 2 (lane % 4) + {0, 1} at s[4 i + 2 r + {0, 1}]. In bf16 that is also the layout of the operand of
// P V. In e4m3 that operand has four neighbouring keys in a register, where the accumulators have
// two and the two 8 further on. The order of keys is free as long as P and V agree, so V is stored
// with the keys of each 16 in the order in which the accumulators have them (fp8_key_place).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ops/cuda/mma.cuh"
#include "ops/cuda/sm90/ptx.cuh"

namespace ultraflash::cuda::sm90 {

constexpr int kBlock = 128;  // tokens of a query tile and of a key block

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
/// Four e4m3, the first in the lowest byte; what is too large becomes 448.
__device__ __forceinline__ uint32_t pack8(float a, float b, float c, float d) {
  uint32_t all;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(all)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return all;
}

/// Of a thread's two rows: what is taken off the scaled scores before exp2, and the sum of the
/// thread's own columns.
struct RowState {
  float shift[2];
  float sum[2];
};

/// bf16 operands, K and V both [keys][HEAD_DIM]; P rounded to bf16.
template <int HEAD_DIM>
struct Bf16Tiles {
  using Element = __nv_bfloat16;
  static constexpr int kHeadDim = HEAD_DIM;
  static constexpr int kBoxes = HEAD_DIM / 64;  // of 64 columns, 128 bytes
  static constexpr uint32_t kBoxBytes = kBlock * 128;
  static constexpr uint32_t kTileBytes = kBoxes * kBoxBytes;
  // As many as fit: 3 at head_dim 128, and the copy of a block takes less time than its products.
  static constexpr int kStages = HEAD_DIM == 128 ? 3 : 5;
  static constexpr int kWeights = 32;       // registers of P
  static constexpr int kRun = 0;            // sums are exact enough however long
  static constexpr float kTop = 0.0F;       // log2 of the largest weight of a first block
  static constexpr float kMost = 65536.0F;  // sum of a block's weights that moves the shift

  /// Queues s = q k^T. q: the 64 rows of this consumer.
  static __device__ __forceinline__ void issue_scores(float (&s)[64], uint32_t q, uint32_t k) {
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
  static __device__ __forceinline__ void issue_output(float (&o)[HEAD_DIM / 2],
                                                      const uint32_t (&p)[kWeights], uint32_t v) {
    const uint32_t v_start = tile_start(v, kBoxBytes);
#pragma unroll
    for (int step = 0; step < kBlock / 16; ++step) {
      product_registers(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3],
                        tile_descriptor(v_start + step * 16 * 128 / 16));
    }
  }

  /// weights = exp2(s c - shift), rounded in pairs; `sum` receives the sums before rounding. True
  /// when they grew so large that the shift must move (or are no numbers).
  static __device__ __forceinline__ bool exponentials(const float (&s)[64], const float (&shift)[2],
                                                      float c, uint32_t (&weights)[kWeights],
                                                      float (&sum)[2]) {
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
    return !(sum[0] <= kMost && sum[1] <= kMost);
  }
};

/// e4m3 operands, heads of 128: K [keys][128], V as blocks [128][128 keys]. P is rounded to e4m3,
/// whose numbers reach from 2^-9 to 448: weights of a first block go up to 2^3, which e4m3 has
/// exactly, so that those 2^-9 of the largest are still rounded to four bits and those below 2^-13
/// of it vanish. A thread's 32 weights of a row then add up to at most 256, so that a sum above
/// 448, and a single weight is none without, means that a later score is above all before and the
/// shift must move.
///
/// Tensor cores add e4m3 products with about 14 bits and cut off the rest, of each product: over 8
/// blocks (32 additions of 32 products) values of one sign came out 1.6 % low on an H200. So output
/// is summed there over kRun blocks alone, and those sums are added in f32.
struct Fp8Tiles {
  using Element = uint8_t;
  static constexpr int kHeadDim = 128;
  static constexpr int kBoxes = 1;
  static constexpr uint32_t kTileBytes = kBlock * 128;
  static constexpr int kStages = 6;
  static constexpr int kWeights = 16;
  static constexpr int kRun = 2;
  static constexpr float kTop = 3.0F;
  static constexpr float kMost = 448.0F;

  /// Queues s = q k^T.
  static __device__ __forceinline__ void issue_scores(float (&s)[64], uint32_t q, uint32_t k) {
    const uint32_t q_start = tile_start(q, 16);
    const uint32_t k_start = tile_start(k, 16);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint64_t a = tile_descriptor(q_start + 2 * step);
      const uint64_t b = tile_descriptor(k_start + 2 * step);
      if (step == 0) {
        product8_64x128<true>(s, a, b);
      } else {
        product8_64x128<false>(s, a, b);
      }
    }
  }

  /// Queues o += p v, or o = p v where `fresh`.
  static __device__ __forceinline__ void issue_output(float (&o)[64], const uint32_t (&p)[kWeights],
                                                      uint32_t v, bool fresh) {
    const uint32_t v_start = tile_start(v, 16);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      product8_registers(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3],
                         tile_descriptor(v_start + 2 * step), step == 0 && fresh ? 0 : 1);
    }
  }

  /// weights = exp2(s c - shift), rounded; `sum` receives the sums before rounding. True when they
  /// grew so large that the shift must move (or are no numbers).
  static __device__ __forceinline__ bool exponentials(const float (&s)[64], const float (&shift)[2],
                                                      float c, uint32_t (&weights)[kWeights],
                                                      float (&sum)[2]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = 8 * j + 2 * r;
        const float x0 = exp2_fast(fmaf(s[at], c, -shift[r]));
        const float x1 = exp2_fast(fmaf(s[at + 1], c, -shift[r]));
        const float x2 = exp2_fast(fmaf(s[at + 4], c, -shift[r]));
        const float x3 = exp2_fast(fmaf(s[at + 5], c, -shift[r]));
        weights[2 * j + r] = pack8(x0, x1, x2, x3);
        const float four = (x0 + x1) + (x2 + x3);
        sum[r] = j == 0 ? four : sum[r] + four;
      }
    }
    return !(sum[0] <= kMost && sum[1] <= kMost);
  }

  /// The scores of a warp once more, without the tensor cores' queue: its 16 rows at `q`, and the
  /// block at `k`, both in shared memory.
  static __device__ __forceinline__ void scores_again(float (&s)[64], uint32_t q, uint32_t k) {
    const uint32_t lane = lane_now();
    // Row lane / 4 of 8, column 16 i + 4 (lane % 4); the swizzle exchanges pieces of 16 bytes.
    const uint32_t row = lane / 4;
    const auto word = [&](uint32_t tile, uint32_t first_row, uint32_t piece) {
      return load_shared(tile + (first_row + row) * 128 + ((piece ^ row) << 4) + 4 * (lane % 4));
    };
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float d[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        multiply_add_fp8(d, word(q, 0, 2 * step), word(q, 8, 2 * step), word(q, 0, 2 * step + 1),
                         word(q, 8, 2 * step + 1), word(k, 8 * i, 2 * step),
                         word(k, 8 * i, 2 * step + 1));
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) s[4 * i + e] = d[e];
    }
  }
};

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

/// The output of a tile: what the tensor cores add to, and the finished runs of it.
template <class TILES>
struct Output {
  static constexpr int kCount = TILES::kHeadDim / 2;
  float o[kCount];
  float runs[TILES::kRun > 0 ? kCount : 1];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      o[i] = 0.0F;
      if constexpr (TILES::kRun > 0) runs[i] = 0.0F;
    }
  }
  /// A run is over: the next products start anew.
  __device__ __forceinline__ void collect() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) runs[i] += o[i];
  }
  __device__ __forceinline__ void scale(int r, float factor) {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        o[4 * i + 2 * r + n] *= factor;
        if constexpr (TILES::kRun > 0) runs[4 * i + 2 * r + n] *= factor;
      }
    }
  }
};

template <class TILES>
__device__ __forceinline__ void first_shift(const float (&s)[64], float c, RowState& rows) {
  row_tops(s, c, rows.shift);
#pragma unroll
  for (int r = 0; r < 2; ++r) rows.shift[r] -= TILES::kTop;
}

/// The shift moves to the largest of `s`, and what was summed before with it.
template <class TILES>
__device__ __forceinline__ void move_shift(const float (&s)[64], float c, RowState& rows,
                                           Output<TILES>& out) {
  float top[2];
  row_tops(s, c, top);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float shift = fmaxf(top[r] - TILES::kTop, rows.shift[r]);
    const float factor = exp2_fast(rows.shift[r] - shift);
    rows.shift[r] = shift;
    rows.sum[r] *= factor;
    out.scale(r, factor);
  }
}

/// Softmax needs no maximum, only a shift that keeps exp2 finite and the largest weight from
/// vanishing. So the shift stays that of the earlier blocks, and a block costs no maximum and no
/// exchange, until the weights tell that a score is far above it.
template <class TILES>
__device__ __forceinline__ void next_softmax(const float (&s)[64], float c, RowState& rows,
                                             uint32_t (&weights)[TILES::kWeights],
                                             Output<TILES>& out) {
  float sum[2];
  const bool high = TILES::exponentials(s, rows.shift, c, weights, sum);
  if (__any_sync(0xFFFFFFFFU, high)) {
    move_shift<TILES>(s, c, rows, out);
    static_cast<void>(TILES::exponentials(s, rows.shift, c, weights, sum));
  }
  rows.sum[0] += sum[0];
  rows.sum[1] += sum[1];
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

/// Transpose of a 4x4 across the four lanes of a row: word i of lane j becomes word j of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  const bool odd = (threadIdx.x & 1) != 0;
  const bool high = (threadIdx.x & 2) != 0;
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
}

/// Writes a thread's two rows as bf16 to where HEAD_DIM columns begin; null: not at all. The four
/// lanes of a row exchange values so that each stores 16 bytes at a time.
template <int HEAD_DIM>
__device__ __forceinline__ void store_rows(__nv_bfloat16* const (&to)[2],
                                           const float (&o)[HEAD_DIM / 2],
                                           const float (&inverse)[2]) {
  const int quarter = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int group = 0; group < HEAD_DIM / 32; ++group) {
      uint32_t w[4];  // columns 32 * group + 8 * i + 2 * quarter + {0, 1}
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (4 * group + i) + 2 * r;
        w[i] = pack(o[at] * inverse[r], o[at + 1] * inverse[r]);
      }
      transpose_quad(w);  // columns 32 * group + 8 * quarter + 2 * i + {0, 1}
      if (to[r] != nullptr) {
        *reinterpret_cast<uint4*>(to[r] + 32 * group + 8 * quarter) =
            make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }
}

}  // namespace ultraflash::cuda::sm90
