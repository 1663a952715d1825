// 3x3 convolutions of 64 channels to very few.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ultraflash::cuda {

/// bf16, pad 1, stride 1. y = relu(convolution + bias), each of them on request.
struct ConvFewArgs {
  const void* x = nullptr;       // [frames, height, width, 64]
  const void* weight = nullptr;  // [channels or more, 9 * 64], taps row by row, channels innermost
  const float* bias = nullptr;   // [channels] or null
  void* y = nullptr;             // [frames, height, width, channels]
  int64_t frames = 0, height = 0, width = 0;
  int64_t channels = 0;  // 1 to 3
  bool relu = false;
};

bool conv_few_supports(const ConvFewArgs& args);
cudaError_t convolve_few(const ConvFewArgs& args, cudaStream_t stream);

}  // namespace ultraflash::cuda
