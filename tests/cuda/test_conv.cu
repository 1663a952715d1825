// Convolutions of 64 channels on Hopper against the plain kernel on the same bf16 numbers: guard
// zones around the result, the same bits twice. With --bench also their speed at the sizes of the
// 1K decoder. Exit status 77 without a Hopper GPU.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/sparse_layer.cuh"
#include "ops/cuda/conv_sm90.h"
#include "ops/cuda/kernels.h"

namespace ultraflash::cuda {
namespace {

using sm90::ConvInput;

constexpr SparseType kB = SparseType::kBF16;
constexpr SparseType kF = SparseType::kF32;
int failures = 0;

struct Case {
  const char* name;
  ConvInput input;
  int64_t frames, height, width, channels;
  bool past, bias, relu;
  bool residual = false;
};

struct Layer {
  Case c;
  int64_t in, stored, factor, pixels;
  Buffer x, past, weight, enlarged, bias, residual, y;
  explicit Layer(const Case& given)
      : c(given),
        in(c.input == ConvInput::kWithPast ? 128 : 64),
        stored(c.channels == 64 ? 64 : 8),
        factor(c.input == ConvInput::kEnlarged ? 2 : 1),
        pixels(c.frames * c.height * c.width * factor * factor),
        x(static_cast<size_t>(c.frames * c.height * c.width * 64) * 2),
        past(static_cast<size_t>(c.height * c.width * 64) * 2),
        weight(static_cast<size_t>(stored * 9 * in) * 2),
        enlarged(64 * 16 * 64 * 2),
        bias(static_cast<size_t>(stored) * 4),
        residual(static_cast<size_t>(pixels * c.channels) * 2),
        y(static_cast<size_t>(pixels * c.channels) * 2) {
    fill(x, kB, 1, 1.0F);
    fill(past, kB, 2, 1.0F);
    fill(weight, kB, 3, 0.05F);
    fill(bias, kF, 4, 0.5F);
    fill(residual, kB, 5, 1.0F);
    if (factor == 2) {
      const std::vector<float> w = floats(weight, kB);
      std::vector<float> sums(64 * 16 * 64);
      sm90::enlarged_weights(w.data(), sums.data());
      std::vector<__nv_bfloat16> rounded;
      for (const float s : sums) rounded.push_back(__float2bfloat16(s));
      enlarged.set(rounded);
    }
  }
  [[nodiscard]] sm90::ConvArgs args() const {
    sm90::ConvArgs a;
    a.input = c.input;
    a.x = x.data();
    if (c.past) a.past = past.data();
    a.weight = factor == 2 ? enlarged.data() : weight.data();
    if (c.bias) a.bias = bias.as<float>();
    if (c.residual) a.residual = residual.data();
    a.y = y.data();
    a.frames = c.frames;
    a.height = c.height;
    a.width = c.width;
    a.channels = c.channels;
    a.relu = c.relu;
    return a;
  }
  // What the plain kernels make of it, in f32.
  [[nodiscard]] std::vector<float> expected() const {
    const auto wide = [](const Buffer& b) {
      const Buffer result(b.bytes() * 2);
      result.set(floats(b, kB));
      return result.host<float>();
    };
    const Buffer x32(x.bytes() * 2);
    const Buffer past32(past.bytes() * 2);
    const Buffer w32(weight.bytes() * 2);
    const Buffer y32(y.bytes() * 2);
    const Buffer residual32(y.bytes() * 2);
    residual32.set(wide(residual));
    x32.set(wide(x));
    past32.set(wide(past));
    w32.set(wide(weight));
    kernels::GatherArgs gather;
    gather.x = x32.data();
    gather.samples = 1;
    gather.frames = gather.out_frames = c.frames;
    gather.height = c.height;
    gather.width = c.width;
    gather.channels = 64;
    gather.upsample = factor;
    if (in == 128) {
      gather.taps = 2;
      gather.reversed = true;
      if (c.past) gather.past = past32.data();
      (c.past ? gather.past_frames : gather.zero_frames) = 1;
    }
    const Buffer gathered(static_cast<size_t>(pixels * in) * 4);
    kernels::gather_frames(gather, gathered.data(), nullptr);
    kernels::ConvArgs a;
    a.x = gathered.data();
    a.w = w32.data();
    if (c.bias) a.bias = bias.as<float>();
    if (c.residual) a.residual = residual32.data();
    a.y = y32.data();
    a.images = c.frames;
    a.height = a.out_h = c.height * factor;
    a.width = a.out_w = c.width * factor;
    a.channels = in;
    a.out_channels = c.channels;
    a.kernel_h = a.kernel_w = 3;
    a.pad_top = a.pad_left = 1;
    a.activation = c.relu ? Activation::kRelu : Activation::kNone;
    kernels::convolve(a, nullptr);
    check(cudaDeviceSynchronize(), "convolve");
    return y32.host<float>();
  }
};

int multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "attribute");
  return count;
}

void test(const Case& c) {
  const Layer layer(c);
  check(sm90::convolve(layer.args(), multiprocessors(), nullptr), c.name);
  check(cudaDeviceSynchronize(), c.name);
  const std::vector<float> got = floats(layer.y, kB);
  check(sm90::convolve(layer.args(), multiprocessors(), nullptr), c.name);
  check(cudaDeviceSynchronize(), c.name);
  const bool same = floats(layer.y, kB) == got;
  const std::vector<float> want = layer.expected();
  double difference = 0.0;
  double norm = 0.0;
  double worst = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    difference += d * d;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
    worst = std::max(worst, std::fabs(d));
  }
  const double error = norm > 0.0 ? std::sqrt(difference / norm) : difference;  // ReLU may leave 0
  // The result is rounded to bf16, and summed taps are rounded once more.
  const double limit = c.input == ConvInput::kEnlarged ? 4e-3 : 2.5e-3;
  const bool good = error <= limit && same && layer.y.intact();
  std::printf("%s %s, %ld x %ld x %ld, %ld channels%s%s%s%s: relative error %.2e, worst %.2e%s%s\n",
              good ? "ok  " : "FAIL", c.name, static_cast<long>(c.frames),
              static_cast<long>(c.height), static_cast<long>(c.width),
              static_cast<long>(c.channels), c.past ? ", past" : "", c.bias ? ", bias" : "",
              c.relu ? ", ReLU" : "", c.residual ? ", residual" : "", error, worst,
              same ? "" : ", two runs differ", layer.y.intact() ? "" : ", guards overwritten");
  if (!good) ++failures;
}

void bench(const Case& c) {
  const Layer layer(c);
  cudaEvent_t begin;
  cudaEvent_t end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 25; ++i) {
    check(cudaEventRecord(begin), "event");
    for (int n = 0; n < 10; ++n) {
      check(sm90::convolve(layer.args(), multiprocessors(), nullptr), c.name);
    }
    check(cudaEventRecord(end), "event");
    check(cudaEventSynchronize(end), "event");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 5) times.push_back(ms * 100.0F);
  }
  std::sort(times.begin(), times.end());
  const auto us = static_cast<double>(times[times.size() / 2]);
  const double flop = 2.0 * static_cast<double>(layer.pixels * 9 * layer.in * c.channels);
  std::printf("%s, %ld x %ld x %ld, %ld channels: %.1f us, %.0f TFLOP/s of 9 taps\n", c.name,
              static_cast<long>(c.frames), static_cast<long>(c.height), static_cast<long>(c.width),
              static_cast<long>(c.channels), us, flop / us * 1e-6);
}

int run(bool with_bench) {
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
      major != 9) {
    std::printf("SKIPPED: no Hopper GPU, so the convolutions of sm_90a were not run\n");
    return 77;
  }
  for (const auto& [frames, height, width] : {std::array<int64_t, 3>{1, 1, 1},
                                              {1, 4, 64},
                                              {2, 5, 63},
                                              {3, 7, 65},
                                              {1, 113, 203},
                                              {2, 120, 208}}) {
    test({"frame", ConvInput::kFrame, frames, height, width, 3, false, true, false});
    test({"frame", ConvInput::kFrame, frames, height, width, 1, false, false, true});
    test({"frame", ConvInput::kFrame, frames, height, width, 8, false, true, true});
    test({"frame", ConvInput::kFrame, frames, height, width, 64, false, true, true});
    test({"frame", ConvInput::kFrame, frames, height, width, 64, false, true, true, true});
    test({"with past", ConvInput::kWithPast, frames, height, width, 64, true, true, true});
    test({"with past", ConvInput::kWithPast, frames, height, width, 64, false, true, false});
    test({"enlarged", ConvInput::kEnlarged, frames, height, width, 64, false, true, true});
    test({"enlarged", ConvInput::kEnlarged, frames, height, width, 64, false, false, false});
  }
  if (with_bench) {
    bench({"with past", ConvInput::kWithPast, 2, 480, 832, 64, true, true, true});
    bench({"frame", ConvInput::kFrame, 2, 480, 832, 64, false, true, true});
    bench({"frame with a residual", ConvInput::kFrame, 2, 480, 832, 64, false, true, true, true});
    bench({"enlarged", ConvInput::kEnlarged, 1, 480, 832, 64, false, false, true});
    bench({"frame", ConvInput::kFrame, 1, 960, 1664, 3, false, true, false});
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash::cuda

int main(int argc, char** argv) {
  return ultraflash::cuda::run(argc > 1 && std::strcmp(argv[1], "--bench") == 0);
}
