// 3x3 convolutions of 64 channels on Hopper: of the widest layers of the decoders those in which
// the library is slower.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ultraflash::cuda::sm90 {

enum class ConvInput {
  kFrame,     // a frame of 64 channels, to 64 or at most 8
  kWithPast,  // beside it the frame before: 128 channels, (x_t, x_{t-1})
  kEnlarged,  // each pixel twice in both directions before the convolution
};

/// bf16, pad 1, stride 1. y = relu(convolution + bias + residual), each of them on request.
struct ConvArgs {
  ConvInput input = ConvInput::kFrame;
  const void* x = nullptr;     // [frames, height, width, 64]
  const void* past = nullptr;  // kWithPast: the frame before the first; null: zeros
  /// [64 or 8, 9 * channels], taps row by row, channels innermost; kEnlarged: what
  /// enlarged_weights() makes of it, [64, 16 * 64].
  const void* weight = nullptr;
  const float* bias = nullptr;     // [64 or 8] or null
  const void* residual = nullptr;  // as y; kFrame to 64 channels alone
  void* y = nullptr;               // [frames, height, width, channels], kEnlarged: twice both sides
  int64_t frames = 0, height = 0, width = 0;
  int64_t channels = 64;  // of y: 64, or of kFrame at most 8 of the 8 stored ones
  bool relu = false;
};

bool conv_supports(const ConvArgs& args);
/// Taps of the four kinds of pixel that enlarging makes: pixel (2 y + p, 2 x + q) reads 2 x 2
/// pixels, for each of which some of the 3 x 3 taps add up. [64, 9, 64] f32 -> [64, 16, 64], in the
/// order p, q, row, column.
void enlarged_weights(const float* weight, float* enlarged);
cudaError_t convolve(const ConvArgs& args, int multiprocessors, cudaStream_t stream);

}  // namespace ultraflash::cuda::sm90
