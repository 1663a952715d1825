#include "ops/cuda/sm90/tensor_maps.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

namespace ultraflash::cuda::sm90 {
namespace {

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

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encoder();
  return encode;
}

// bf16 in RANK axes, innermost first, 64 elements in it.
template <int RANK>
bool encode_bf16(CUtensorMap* map, const void* data, const cuuint64_t (&sizes)[RANK],
                 const cuuint64_t (&strides)[RANK - 1], const cuuint32_t (&box)[RANK]) {
  if (encoder() == nullptr) return false;
  cuuint32_t steps[RANK];
  for (cuuint32_t& step : steps) step = 1;
  return encoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, RANK, const_cast<void*>(data), sizes,
                   strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// [slices][rows][128 bytes] with these distances in bytes, in boxes of 128 rows and `box_slices`.
bool encode_map(CUtensorMap* map, CUtensorMapDataType type, int element_bytes, const void* data,
                int64_t rows, int64_t slices, int64_t row_bytes, int64_t slice_bytes,
                int64_t box_slices) {
  if (encoder() == nullptr) return false;
  const auto width = static_cast<cuuint32_t>(128 / element_bytes);
  const cuuint64_t sizes[3] = {width, static_cast<cuuint64_t>(rows),
                               static_cast<cuuint64_t>(slices)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(row_bytes),
                                 static_cast<cuuint64_t>(slice_bytes)};
  const cuuint32_t box[3] = {width, 128, static_cast<cuuint32_t>(box_slices)};
  const cuuint32_t steps[3] = {1, 1, 1};
  return encoder()(map, type, 3, const_cast<void*>(data), sizes, strides, box, steps,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool map_rows_bf16(CUtensorMap* map, const void* data, int64_t rows, int64_t columns,
                   int64_t head_dim, int64_t row_stride) {
  return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, data, rows, columns / 64,
                    2 * row_stride, 128, head_dim / 64);
}

bool map_rows_fp8(CUtensorMap* map, const void* data, int64_t rows, int64_t columns,
                  int64_t row_stride) {
  return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, data, rows, columns / 128, row_stride,
                    128, 1);
}

bool map_values_fp8(CUtensorMap* map, const void* data, int64_t key_blocks, int64_t heads) {
  return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, data, 128, key_blocks * heads, 128,
                    128 * 128, 1);
}

bool map_frames(CUtensorMap* map, const void* data, int64_t frames, int64_t height, int64_t width,
                int64_t box_width, int64_t box_height) {
  const auto w = static_cast<cuuint64_t>(width);
  const auto h = static_cast<cuuint64_t>(height);
  return encode_bf16<4>(
      map, data, {64, w, h, static_cast<cuuint64_t>(frames)}, {128, 128 * w, 128 * w * h},
      {64, static_cast<cuuint32_t>(box_width), static_cast<cuuint32_t>(box_height), 1});
}

bool map_taps(CUtensorMap* map, const void* data, int64_t rows, int64_t taps) {
  return encode_bf16<2>(map, data,
                        {static_cast<cuuint64_t>(64 * taps), static_cast<cuuint64_t>(rows)},
                        {static_cast<cuuint64_t>(128 * taps)}, {64, static_cast<cuuint32_t>(rows)});
}

}  // namespace ultraflash::cuda::sm90
