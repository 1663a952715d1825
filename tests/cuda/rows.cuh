// What the tests of kernels over rows share: results, quantisation by the pass of its own, times.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/sparse_layer.cuh"
#include "ops/cuda/kernels.h"

namespace ultraflash::cuda {

constexpr SparseType kB = SparseType::kBF16;
constexpr SparseType kF = SparseType::kF32;

inline void synchronize(const char* what) { check(cudaDeviceSynchronize(), what); }

inline void report(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  if (!good) ++failures;
}

inline bool same(const Buffer& a, const Buffer& b) {
  return a.host<uint8_t>() == b.host<uint8_t>();
}

struct Fp8Rows {
  Buffer values, scales;
  Fp8Rows(int64_t rows, int64_t dim)
      : values(static_cast<size_t>(rows * dim)), scales(static_cast<size_t>(rows) * 4) {}
  [[nodiscard]] bool intact() const { return values.intact() && scales.intact(); }
};

inline void quantise(const Buffer& x, int64_t rows, int64_t dim, const Fp8Rows& out) {
  kernels::QuantiseArgs args;
  args.x = x.data();
  args.rows = rows;
  args.dim = dim;
  args.y = out.values.data();
  args.scales = out.scales.as<float>();
  kernels::quantise_rows(args, nullptr);
}

/// Of one call among many that follow each other, so that what a lone launch costs is not counted:
/// median of 20 runs of 40. `body` gets the number of the call and takes other buffers each time,
/// so that little is found in the 50 MB of L2.
template <typename Body>
double microseconds(const Body& body) {
  constexpr int kCalls = 40;
  cudaEvent_t begin;
  cudaEvent_t end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 23; ++i) {
    check(cudaEventRecord(begin), "event");
    for (int n = 0; n < kCalls; ++n) body(n);
    check(cudaEventRecord(end), "event");
    check(cudaEventSynchronize(end), "event");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 3) times.push_back(ms);
  }
  check(cudaEventDestroy(begin), "event");
  check(cudaEventDestroy(end), "event");
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]) * 1e3 / kCalls;
}

inline void print(const char* what, int64_t rows, double us, double bytes) {
  std::printf("%-44s %6lld rows: %7.1f us, %.2f TB/s\n", what, static_cast<long long>(rows), us,
              bytes / us * 1e-6);
}

}  // namespace ultraflash::cuda
