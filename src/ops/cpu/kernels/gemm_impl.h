// The register tile that products, attention and the plain convolution share, and the packed
// product itself. See kernels.h.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/norm_impl.h"
#include "ops/cpu/kernels/simd.h"

namespace ultraflash::cpu {
namespace {

// Rows x vectors of accumulators: as many as the register file holds beside one row of b and one
// broadcast (32 registers with AVX-512, 16 otherwise).
constexpr int kTileRows = UF_SIMD_WIDTH == 16 ? 12 : 6;
constexpr int kTileVectors = 2;
constexpr int64_t kTileColumns = kTileVectors * kWidth;

// acc[r][v] += sum_k a(r, k) * b[k][v], a(r, k) = a[r * lda + k], or a[k * lda + r] if transposed.
template <int R, int V, bool kTransposed>
inline void tile_product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t inner,
                         Vf (&acc)[R][V]) {
  for (int64_t k = 0; k < inner; ++k) {
    Vf row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(b + k * ldb + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vf value = splat(kTransposed ? a[k * lda + r] : a[r * lda + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] += value * row[v];
    }
  }
}

// A row count known to the compiler.
template <int R>
struct Rows {
  static constexpr int kCount = R;
};
template <int R, typename Body>
inline void with_rows(int64_t rows, const Body& body) {
  if constexpr (R > 0) {
    if (rows >= R) {
      body(Rows<R>{});
    } else {
      with_rows<R - 1>(rows, body);
    }
  }
}
// Calls body(Rows<R>, first row) for blocks of [0, rows), R as large as the tile allows.
template <typename Body>
inline void for_row_blocks(int64_t rows, const Body& body) {
  int64_t r = 0;
  while (r < rows) {
    with_rows<kTileRows>(rows - r, [&](auto tag) {
      body(tag, r);
      r += decltype(tag)::kCount;
    });
  }
}

inline Vf apply_activation(Activation activation, Vf x);

int64_t packed_size(int64_t columns, int64_t inner) {
  return (columns + kTileColumns - 1) / kTileColumns * kTileColumns * inner;
}

void pack_columns(const float* w, int64_t stride, int64_t columns, int64_t inner, float* packed) {
  for (int64_t block = 0; block < columns; block += kTileColumns) {
    for (int64_t k = 0; k < inner; ++k) {
      for (int64_t c = 0; c < kTileColumns; ++c) {
        *packed++ = block + c < columns ? w[(block + c) * stride + k] : 0.0F;
      }
    }
  }
}

template <typename T>
void packed_gemm_of(const PackedGemmArgs& a) {
  // Column block outermost: its packed panel stays in cache while all rows pass.
  for (int64_t block = 0; block < a.columns; block += kTileColumns) {
    const float* panel = a.packed + block * a.inner;
    const int64_t columns = a.columns - block < kTileColumns ? a.columns - block : kTileColumns;
    float bias[kTileColumns] = {};
    if (a.bias != nullptr) {
      __builtin_memcpy(bias, a.bias + block, static_cast<size_t>(columns) * sizeof(float));
    }
    for_row_blocks(a.rows, [&](auto tag, int64_t r0) {
      constexpr int kRows = decltype(tag)::kCount;
      Vf acc[kRows][kTileVectors];
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kTileVectors; ++v) acc[r][v] = load(bias + v * kWidth);
      }
      tile_product<kRows, kTileVectors, false>(a.x + r0 * a.x_stride, a.x_stride, panel,
                                               kTileColumns, a.inner, acc);
      for (int r = 0; r < kRows; ++r) {
        T* y = static_cast<T*>(a.y) + (r0 + r) * a.y_stride + block;
        for (int v = 0; v < kTileVectors; ++v) {
          const int64_t lanes = columns - v * kWidth;
          if (lanes <= 0) break;
          store_lanes(y + v * kWidth, apply_activation(a.activation, acc[r][v]),
                      lanes < kWidth ? lanes : kWidth);
        }
      }
    });
  }
}

void packed_gemm(const PackedGemmArgs& a) {
  if (a.y_dtype == DType::kBF16) {
    packed_gemm_of<BFloat16>(a);
  } else {
    packed_gemm_of<float>(a);
  }
}

}  // namespace
}  // namespace ultraflash::cpu
