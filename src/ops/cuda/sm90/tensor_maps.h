// Tensor maps of what attention and convolutions on Hopper copy, all in rows of 128 bytes in the
// 128-byte swizzle; those of attention in boxes of 128 rows.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace ultraflash::cuda::sm90 {

/// `rows` rows of bf16, `row_stride` elements apart, of which a head takes `head_dim`, as
/// [columns / 64][rows][64] in boxes of one head. Rows past the end read as zeros. False when the
/// driver does not take it.
bool map_rows_bf16(CUtensorMap* map, const void* data, int64_t rows, int64_t columns,
                   int64_t head_dim, int64_t row_stride);
/// The same of e4m3 in heads of 128: [columns / 128][rows][128].
bool map_rows_fp8(CUtensorMap* map, const void* data, int64_t rows, int64_t columns,
                  int64_t row_stride);
/// e4m3 values, dense [key blocks][heads * 128][128 keys], as [key blocks * heads][128][128].
bool map_values_fp8(CUtensorMap* map, const void* data, int64_t key_blocks, int64_t heads);

/// bf16 pictures [frames][height][width][64], as [frames][height][width][64] in boxes of one frame,
/// `box_height` x `box_width` pixels. What lies outside reads as zeros.
bool map_frames(CUtensorMap* map, const void* data, int64_t frames, int64_t height, int64_t width,
                int64_t box_width, int64_t box_height);
/// bf16 [rows][taps * 64] in boxes of all rows and one tap.
bool map_taps(CUtensorMap* map, const void* data, int64_t rows, int64_t taps);

}  // namespace ultraflash::cuda::sm90
