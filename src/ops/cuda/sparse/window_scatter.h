// Query/key preparation in window order. block_sparse.h is the entry; this is for the benchmark.
#pragma once

#include "ops/cuda/sparse/block_sparse.h"

namespace ultraflash::cuda {

struct ScatterTuning {
  int parts = 4;  // CTAs of a window block: 4 or 8
};

cudaError_t launch_scatter(const SparseShape& shape, const WindowScatterArgs& args,
                           const ScatterTuning& tuning, cudaStream_t stream);

}  // namespace ultraflash::cuda
