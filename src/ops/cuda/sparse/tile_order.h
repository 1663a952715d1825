// The order in which block-sparse attention takes its tiles. block_sparse.h is the entry.
#pragma once

#include "ops/cuda/sparse/block_sparse.h"

namespace ultraflash::cuda {

/// Fills lists.order from lists.counts; nothing when lists.order is null.
cudaError_t order_tiles(const SparseShape& shape, const SparseLists& lists, cudaStream_t stream);

}  // namespace ultraflash::cuda
