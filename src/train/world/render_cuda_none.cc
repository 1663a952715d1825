// What render_cuda() is in a build without CUDA.
#include "train/world/render_cuda.h"

namespace ultraflash::world {

bool renders_with_cuda() { return false; }

Status render_cuda(const DeviceScene* /*scenes*/, int64_t /*count*/, const RenderWindow& /*window*/,
                   uint8_t* /*out*/, void* /*stream*/) {
  return {StatusCode::kUnsupported, "this build has no CUDA renderer (UF_CUDA)"};
}

}  // namespace ultraflash::world
