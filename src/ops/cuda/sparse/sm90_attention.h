// Block-sparse attention on Hopper. block_sparse.h is the entry; this is for it and the benchmark.
#pragma once

#include "ops/cuda/sparse/block_sparse.h"

namespace ultraflash::cuda::sm90 {

/// What the benchmark varies. The defaults are what block_sparse_attention takes.
struct AttentionTuning {
  int64_t max_ctas = 0;  // 0: one per multiprocessor
};

/// True when the kernel takes this shape (not whether the device is a Hopper).
[[nodiscard]] bool attention_supports(const SparseShape& shape);

cudaError_t launch_attention(const SparseShape& shape, const BlockSparseArgs& args,
                             const AttentionTuning& tuning, cudaStream_t stream);

}  // namespace ultraflash::cuda::sm90
