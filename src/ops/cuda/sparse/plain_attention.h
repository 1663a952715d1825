// Block-sparse attention for every shape and every GPU since sm_80. block_sparse.h is the entry.
#pragma once

#include "ops/cuda/sparse/block_sparse.h"

namespace ultraflash::cuda {

cudaError_t launch_plain_attention(const SparseShape& shape, const BlockSparseArgs& args,
                                   cudaStream_t stream);

}  // namespace ultraflash::cuda
