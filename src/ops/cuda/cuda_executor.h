// The CUDA executor, as the rest of the program sees it: plain C++, no CUDA types.
//
// Products go through cuBLASLt, dense attention and convolutions in bf16 through cuDNN where it is
// there, everything else and all of f32 through own kernels. f32 is true f32: no TF32 anywhere.
// Builds without CUDA have cuda_none.cc instead.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "ops/executor.h"
#include "ultraflash/status.h"

namespace ultraflash::cuda {

struct CudaOptions {
  int device = 0;
  size_t memory_limit_bytes = 0;  // of the executor's arena, 0: none
  size_t guard_bytes = 0;         // guard zones around every tensor, for tests
  bool fp8_products = false;      // large products with many rows in e4m3
  bool fp8_fast_sums = false;     // their sums stay in the tensor cores instead of f32
  bool graphs = false;            // Executor::repeat records and replays CUDA graphs
  bool urgent = false;            // its work goes before that of other executors of the GPU
  bool fp8_attention = false;     // dense self-attention of transformers in e4m3
  bool plain_kernels = false;     // neither cuDNN nor one architecture's own kernels, for tests
};

/// kUnsupported with a sentence that says why when there is no such GPU, its driver is too old or a
/// library is missing; kDevice when the GPU fails.
Result<std::unique_ptr<Executor>> make_cuda_executor(const CudaOptions& options);

struct CudaDevice {
  std::string name;  // "cuda:0"
  bool usable = false;
  std::string description;  // what it is, or why it cannot be used
};
/// Every GPU the driver names; one entry that says why when there is none.
std::vector<CudaDevice> list_cuda_devices();

}  // namespace ultraflash::cuda
