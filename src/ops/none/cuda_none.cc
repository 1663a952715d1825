#include "ops/none/cuda_none.h"

namespace ultraflash {

Result<std::unique_ptr<Executor>> make_cuda_executor() {
  return Status(StatusCode::kUnsupported, "this build has no CUDA executor; use --device cpu");
}

}  // namespace ultraflash
