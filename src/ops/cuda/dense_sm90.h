// Dense attention for Hopper: heads of 128, one sample, bf16 or e4m3.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "ops/cuda/kernels.h"

namespace ultraflash::cuda::sm90 {

/// Whether the kernel takes these arguments (on a GPU of compute capability 9.0).
bool dense_supports(const kernels::AttentionArgs& args);
/// Bytes that dense_attention() writes between its two kernels.
size_t dense_workspace_bytes(int multiprocessors);
/// Queues the attention; allocates nothing, and two runs give the same bits.
cudaError_t dense_attention(const kernels::AttentionArgs& args, int multiprocessors,
                            void* workspace, cudaStream_t stream);

/// The same from what kernels::qkv_to_cache writes for e4m3: dense rows of heads * 128.
struct DenseFp8Args {
  const void* q = nullptr;        // e4m3 [queries, heads * 128]
  const void* k = nullptr;        // e4m3 [keys, heads * 128]
  const void* v = nullptr;        // e4m3 [ceil(keys / 128), heads * 128, 128], no NaN past the end
  const float* scales = nullptr;  // [heads]: q k^T of a head is its product times this
  void* out = nullptr;            // bf16 [queries, heads * 128]
  int64_t queries = 0, keys = 0;
  int heads = 0;
  float scale = 0.0F;
};
cudaError_t dense_attention_fp8(const DenseFp8Args& args, int multiprocessors, void* workspace,
                                cudaStream_t stream);

}  // namespace ultraflash::cuda::sm90
