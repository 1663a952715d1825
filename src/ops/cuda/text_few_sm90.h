// Attention to a text of at most 128 distinct rows, on Hopper.
#pragma once

#include "ops/cuda/kernels.h"

namespace ultraflash::cuda::sm90 {

constexpr int kFewKeys = 128;
/// Whether the device and the arguments fit, beside what kernels::text_attention_takes() asks.
bool text_few_takes(const kernels::TextAttentionArgs& args);
/// Does nothing where there are more distinct keys, which only the device knows.
void text_few(const kernels::TextAttentionArgs& args, cudaStream_t stream);

}  // namespace ultraflash::cuda::sm90
