// Checks, tensor maps and launch of the Hopper block-sparse attention.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cuda/sm90/tensor_maps.h"
#include "ops/cuda/sparse/sm90_attention.cuh"
#include "ops/cuda/sparse/sm90_attention.h"

namespace ultraflash::cuda::sm90 {
namespace {

template <int HEAD_DIM>
cudaError_t launch(const CUtensorMap (&maps)[3], const AttentionParams& params, int ctas,
                   cudaStream_t stream) {
  using L = AttentionLayout<HEAD_DIM>;
  constexpr int kBytes = L::kBytes + L::kAlign;
  auto* kernel = attention_kernel<HEAD_DIM>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<ctas, kThreads, kBytes, stream>>>(maps[0], maps[1], maps[2], params);
  return cudaGetLastError();
}

}  // namespace

bool attention_supports(const SparseShape& shape) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  // Rows of the tensor maps and list lengths are 32-bit numbers.
  return shape.type == SparseType::kBF16 && (shape.head_dim == 64 || shape.head_dim == 128) &&
         shape.window_tokens() == kBlock &&
         shape.batch * shape.capacity_blocks * shape.spatial_blocks() * kBlock <= kMost &&
         shape.batch * shape.heads * shape.query_blocks() <= kMost &&
         shape.batch * shape.query_blocks() * kBlock <= kMost;
}

cudaError_t launch_attention(const SparseShape& shape, const BlockSparseArgs& args,
                             const AttentionTuning& tuning, cudaStream_t stream) {
  if (!attention_supports(shape)) return cudaErrorNotSupported;
  const int64_t tiles = shape.batch * shape.heads * shape.query_blocks();
  if (tiles == 0) return cudaSuccess;
  int device = 0;
  int multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess) {
    return error;
  }
  CUtensorMap maps[3];
  const int64_t query_rows = shape.batch * shape.query_blocks() * kBlock;
  const int64_t key_rows = shape.batch * shape.capacity_blocks * shape.spatial_blocks() * kBlock;
  const auto map = [&](CUtensorMap& to, const void* data, int64_t rows) {
    return map_rows_bf16(&to, data, rows, shape.dim(), shape.head_dim, shape.dim());
  };
  if (!map(maps[0], args.q, query_rows) || !map(maps[1], args.k, key_rows) ||
      !map(maps[2], args.v, key_rows)) {
    return cudaErrorInvalidValue;
  }
  AttentionParams params{};
  params.indices = args.lists.indices;
  params.counts = args.lists.counts;
  params.order = args.lists.order;
  params.first_slot = &args.place->first_slot;
  params.ticket = args.ticket;
  params.out = static_cast<__nv_bfloat16*>(args.out);
  params.scale_log2 =
      static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(shape.head_dim)));
  params.tiles = static_cast<int>(tiles);
  params.heads = static_cast<int>(shape.heads);
  params.dim = static_cast<int>(shape.dim());
  params.query_blocks = static_cast<int>(shape.query_blocks());
  params.key_blocks = static_cast<int>(shape.key_blocks());
  params.spatial_blocks = static_cast<int>(shape.spatial_blocks());
  params.block_columns = static_cast<int>(shape.block_columns());
  params.capacity_blocks = static_cast<int>(shape.capacity_blocks);
  params.frames = static_cast<int>(shape.frames);
  params.height = static_cast<int>(shape.height);
  params.width = static_cast<int>(shape.width);
  params.window_frames = static_cast<int>(shape.window_frames);
  params.window_height = static_cast<int>(shape.window_height);
  params.window_width = static_cast<int>(shape.window_width);
  int64_t ctas = std::min<int64_t>(tiles, multiprocessors);
  if (tuning.max_ctas > 0) ctas = std::min(ctas, tuning.max_ctas);
  return shape.head_dim == 128 ? launch<128>(maps, params, static_cast<int>(ctas), stream)
                               : launch<64>(maps, params, static_cast<int>(ctas), stream);
}

}  // namespace ultraflash::cuda::sm90
