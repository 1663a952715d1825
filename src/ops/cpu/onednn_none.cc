// A build without oneDNN: the executor uses its own vector code.
#include "ops/cpu/onednn.h"

namespace ultraflash::cpu {

std::unique_ptr<OneDnn> OneDnn::create() { return nullptr; }
std::string OneDnn::version() { return {}; }

}  // namespace ultraflash::cpu
