#include "ops/cuda/cuda_executor.h"
#include "ops/profiler_range.h"

namespace ultraflash {

ProfilerRange::ProfilerRange(const char* /*name*/) {}
ProfilerRange::~ProfilerRange() = default;

}  // namespace ultraflash

namespace ultraflash::cuda {

Result<std::unique_ptr<Executor>> make_cuda_executor(const CudaOptions& /*options*/) {
  return Status(StatusCode::kUnsupported, "this build has no CUDA executor; use --device cpu");
}

std::vector<CudaDevice> list_cuda_devices() {
  return {{"cuda", false, "this build has no CUDA executor; use --device cpu"}};
}

}  // namespace ultraflash::cuda
