// How text_attention (kernels.h) is cut, for its tests: what a call takes by itself depends on the
// device and the heads.
#pragma once

#include "ops/cuda/kernels.h"

namespace ultraflash::cuda::kernels {

struct TextShape {
  int parts = 0;  // CTAs of a cluster, which have the same rows and share the heads
  int warps = 0;  // of a CTA, 16 rows each
};
/// What a call takes by itself on this device; no warps where nothing fits.
TextShape text_shape(const TextAttentionArgs& args);
void text_attention(const TextAttentionArgs& args, const TextShape& shape, cudaStream_t stream);

}  // namespace ultraflash::cuda::kernels
