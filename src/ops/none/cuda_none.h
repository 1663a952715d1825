// What stands in for the CUDA executor in a build that has none.
#pragma once

#include <memory>

#include "ops/executor.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Always kUnsupported, with a sentence that says why.
Result<std::unique_ptr<Executor>> make_cuda_executor();

}  // namespace ultraflash
