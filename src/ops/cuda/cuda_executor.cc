#include "ops/cuda/cuda_executor.h"

#include "core/check.h"

namespace ultraflash::cuda {

Result<std::unique_ptr<Executor>> make_cuda_executor(const CudaOptions& /*options*/) {
  return Status(StatusCode::kUnsupported, "the CUDA executor is not complete; use --device cpu");
}

}  // namespace ultraflash::cuda
