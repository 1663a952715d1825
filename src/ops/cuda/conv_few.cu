// 3x3 convolutions of 64 channels to 3 or fewer, bf16: the last layer of a decoder.
//
// The taps are outputs: a pixel is multiplied once by all 9 x channels columns of weights, 27 of
// the 32 that four products of 8 columns have, instead of being read again for each tap. What the
// 9 pixels around a result contribute is then added up from shared memory, in f32.
//
// A CTA makes 16 x 32 pixels from 18 x 34; a warp multiplies 16 pixels at a time, which it reads
// from memory into the registers that the products want (mma.cuh); the weights stay in registers.
// Shared memory: 27 x 612 f32 = 66 KB, 3 CTAs a multiprocessor. Bound by bytes: at 960 x 1664
// pixels 204 MB in and 10 MB out, 50 us.
#include <cuda_bf16.h>

#include "ops/cuda/conv_few.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/mma.cuh"

namespace ultraflash::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 64;
constexpr int kRows = 16;  // of a CTA
constexpr int kColumns = 32;
constexpr int kInColumns = kColumns + 2;
constexpr int kPixels = (kRows + 2) * kInColumns;
constexpr int kMostOut = 3;
constexpr int kTaps = 9;
constexpr int kBytes = kTaps * kMostOut * kPixels * static_cast<int>(sizeof(float));
// Threads of a warp store columns 2 c of pixels g: 4 rows apart they meet 32 different banks.
static_assert(kPixels % 32 == 4);

struct Params {
  const bf16* x;
  const bf16* weight;
  const float* bias;
  bf16* y;
  int height, width, channels;
  bool relu;
};

__global__ void __launch_bounds__(kThreads, 3) few_kernel(const __grid_constant__ Params p) {
  extern __shared__ float partial[];  // [taps * channels][kPixels]
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = lane / 4;
  const int quarter = lane % 4;
  const int columns = kTaps * p.channels;
  const int x0 = static_cast<int>(blockIdx.x) * kColumns;
  const int y0 = static_cast<int>(blockIdx.y) * kRows;
  const int64_t frame = int64_t{blockIdx.z} * p.height * p.width;

  uint4 weight[4][2];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const int column = 8 * t + group;  // tap * channels + channel
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      weight[t][half] = make_uint4(0, 0, 0, 0);
      if (column < columns) {
        const int tap = column / p.channels;
        const int channel = column - tap * p.channels;
        weight[t][half] = *reinterpret_cast<const uint4*>(
            p.weight + (channel * kTaps + tap) * kChannels + 32 * half + 8 * quarter);
      }
    }
  }
  for (int first = static_cast<int>(threadIdx.x) / 32 * 16; first < kPixels;
       first += kThreads / 32 * 16) {
    uint4 in[2][2];  // pixel, half of the channels
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int pixel = first + 8 * r + group;
      const int row = pixel / kInColumns;
      const int y = y0 - 1 + row;
      const int x = x0 - 1 + pixel - row * kInColumns;
      const bool inside = pixel < kPixels && y >= 0 && y < p.height && x >= 0 && x < p.width;
      const bf16* from = p.x + (frame + int64_t{y} * p.width + x) * kChannels + 8 * quarter;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        in[r][half] =
            inside ? *reinterpret_cast<const uint4*>(from + 32 * half) : make_uint4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      float sum[4] = {};
      multiply_add(sum, in[0][0], in[1][0], weight[t][0]);
      multiply_add(sum, in[0][1], in[1][1], weight[t][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * t + 2 * quarter + i % 2;
        const int pixel = first + 8 * (i / 2) + group;
        if (column < columns && pixel < kPixels) partial[column * kPixels + pixel] = sum[i];
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
    const int row = i / kColumns;
    const int column = i % kColumns;
    if (y0 + row >= p.height || x0 + column >= p.width) continue;
    bf16* to = p.y + (frame + int64_t{y0 + row} * p.width + x0 + column) * p.channels;
    for (int channel = 0; channel < p.channels; ++channel) {
      float sum = p.bias != nullptr ? p.bias[channel] : 0.0F;
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        sum += partial[(tap * p.channels + channel) * kPixels + (row + tap / 3) * kInColumns +
                       column + tap % 3];
      }
      to[channel] = as<bf16>(p.relu ? fmaxf(sum, 0.0F) : sum);
    }
  }
}

}  // namespace

bool conv_few_supports(const ConvFewArgs& a) {
  return a.channels > 0 && a.channels <= kMostOut && a.frames > 0 && a.frames < 1 << 16 &&
         a.height > 0 && a.width > 0 && a.height < 1 << 20 && a.width < 1 << 20 && packable(a.x) &&
         packable(a.weight);
}

cudaError_t convolve_few(const ConvFewArgs& a, cudaStream_t stream) {
  Params p{};
  p.x = static_cast<const bf16*>(a.x);
  p.weight = static_cast<const bf16*>(a.weight);
  p.bias = a.bias;
  p.y = static_cast<bf16*>(a.y);
  p.height = static_cast<int>(a.height);
  p.width = static_cast<int>(a.width);
  p.channels = static_cast<int>(a.channels);
  p.relu = a.relu;
  if (const cudaError_t error =
          cudaFuncSetAttribute(few_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      error != cudaSuccess) {
    return error;
  }
  const dim3 grid(ceil_div(a.width, kColumns), ceil_div(a.height, kRows),
                  static_cast<unsigned>(a.frames));
  few_kernel<<<grid, kThreads, kBytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace ultraflash::cuda
