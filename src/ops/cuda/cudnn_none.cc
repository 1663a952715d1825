#include "ops/cuda/cudnn.h"

namespace ultraflash::cuda {

std::unique_ptr<Cudnn> Cudnn::create(std::string& why) {
  why = "this build has no cuDNN";
  return nullptr;
}

}  // namespace ultraflash::cuda
