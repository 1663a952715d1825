// Convolution and matrix product in plain f32 arithmetic: the exact mode, and the shapes that the
// libraries refuse.
//
// An implicit product of [pixels, taps * channels] by [out_channels, taps * channels]^T. A CTA of
// 256 threads makes a tile of 64 pixels x 64 output channels, 16 of the inner axis at a time
// through shared memory; each thread keeps 4 x 4 sums. Bound by f32 arithmetic; no tensor cores,
// because TF32 would not be f32.
#include "ops/cuda/device.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kTile = 64;
constexpr int kInner = 16;

template <typename T>
__global__ void __launch_bounds__(256) convolve_kernel(ConvArgs a) {
  __shared__ float xs[kInner][kTile + 4];
  __shared__ float ws[kInner][kTile + 4];
  const auto* x = static_cast<const T*>(a.x);
  const auto* w = static_cast<const T*>(a.w);
  const int64_t pixels = a.images * a.out_h * a.out_w;
  const int64_t inner = a.kernel_h * a.kernel_w * a.channels;
  const int64_t first_pixel = int64_t{blockIdx.x} * kTile;
  const int64_t first_out = int64_t{blockIdx.y} * kTile;

  // Loading: thread t takes inner element t % 16 of rows t / 16, + 16, + 32, + 48.
  const int load_inner = static_cast<int>(threadIdx.x) % kInner;
  const int load_row = static_cast<int>(threadIdx.x) / kInner;
  int64_t image[4];
  int64_t top[4];
  int64_t left[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t pixel = first_pixel + load_row + 16 * i;
    image[i] = pixel < pixels ? pixel / (a.out_w * a.out_h) : -1;
    top[i] = pixel / a.out_w % a.out_h * a.stride - a.pad_top;
    left[i] = pixel % a.out_w * a.stride - a.pad_left;
  }

  float sums[4][4] = {};
  const int row = static_cast<int>(threadIdx.x) / 16 * 4;
  const int column = static_cast<int>(threadIdx.x) % 16 * 4;
  for (int64_t k0 = 0; k0 < inner; k0 += kInner) {
    const int64_t k = k0 + load_inner;
    const int64_t channel = k % a.channels;
    const int64_t tap = k / a.channels;
    const int64_t dy = tap / a.kernel_w;
    const int64_t dx = tap % a.kernel_w;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t y_in = top[i] + dy;
      const int64_t x_in = left[i] + dx;
      float value = 0.0F;
      if (k < inner && image[i] >= 0 && y_in >= 0 && y_in < a.height && x_in >= 0 &&
          x_in < a.width) {
        value = as_float(x[((image[i] * a.height + y_in) * a.width + x_in) * a.channels + channel]);
      }
      xs[load_inner][load_row + 16 * i] = value;
      const int64_t out = first_out + load_row + 16 * i;
      ws[load_inner][load_row + 16 * i] =
          k < inner && out < a.out_channels ? as_float(w[out * inner + k]) : 0.0F;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kInner; ++i) {
      const float4 p = *reinterpret_cast<const float4*>(&xs[i][row]);
      const float4 q = *reinterpret_cast<const float4*>(&ws[i][column]);
      const float u[4] = {p.x, p.y, p.z, p.w};
      const float v[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) sums[m][n] = fmaf(u[m], v[n], sums[m][n]);
      }
    }
    __syncthreads();
  }

  const auto* residual = static_cast<const T*>(a.residual);
  auto* y = static_cast<T*>(a.y);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    const int64_t pixel = first_pixel + row + m;
    if (pixel >= pixels) continue;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int64_t out = first_out + column + n;
      if (out >= a.out_channels) continue;
      float value = sums[m][n];
      if (a.bias != nullptr) value += a.bias[out];
      const int64_t at = pixel * a.out_channels + out;
      if (residual != nullptr) value += as_float(residual[at]);
      y[at] = as<T>(apply(a.activation, value));
    }
  }
}

}  // namespace

void convolve(const ConvArgs& args, cudaStream_t stream) {
  const int64_t pixels = args.images * args.out_h * args.out_w;
  if (pixels * args.out_channels == 0) return;
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    const dim3 grid(ceil_div(pixels, kTile), ceil_div(args.out_channels, kTile));
    convolve_kernel<T><<<grid, 256, 0, stream>>>(args);
  });
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
