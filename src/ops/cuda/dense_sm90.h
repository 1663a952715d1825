// Dense attention for Hopper: bf16, heads of 128, one sample.
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

}  // namespace ultraflash::cuda::sm90
