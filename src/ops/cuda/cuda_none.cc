#include "ops/cuda/cuda_executor.h"

namespace ultraflash::cuda {

Result<std::unique_ptr<Executor>> make_cuda_executor(const CudaOptions& /*options*/) {
  return Status(StatusCode::kUnsupported, "this build has no CUDA executor; use --device cpu");
}

std::vector<CudaDevice> list_cuda_devices() {
  return {{"cuda", false, "this build has no CUDA executor; use --device cpu"}};
}

}  // namespace ultraflash::cuda
