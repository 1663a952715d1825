// Dense attention: the Hopper kernel against the plain one on the same bf16 numbers, guard zones
// around its result, the same bits twice; the same of attention in e4m3 against f64 on its own e4m3
// numbers. With --bench also their speed beside cuDNN's at the shapes of the cascade; with
// --profile that alone, at one shape. Exit status 77 without a Hopper GPU.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "ops/cuda/cudnn.h"
#include "ops/cuda/dense_sm90.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda {
namespace {

constexpr size_t kGuard = 4096;
int failures = 0;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

struct Buffer {
  uint8_t* whole = nullptr;
  size_t size;
  explicit Buffer(size_t bytes) : size(bytes) {
    check(cudaMalloc(&whole, size + 2 * kGuard), "cudaMalloc");
    check(cudaMemset(whole, 0xa5, size + 2 * kGuard), "cudaMemset");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(whole); }
  [[nodiscard]] void* data() const { return whole + kGuard; }
  [[nodiscard]] bool guards_intact() const {
    std::vector<uint8_t> bytes(2 * kGuard);
    check(cudaMemcpy(bytes.data(), whole, kGuard, cudaMemcpyDeviceToHost), "guards");
    check(cudaMemcpy(bytes.data() + kGuard, whole + kGuard + size, kGuard, cudaMemcpyDeviceToHost),
          "guards");
    return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0xa5; });
  }
  [[nodiscard]] std::vector<__nv_bfloat16> values() const {
    std::vector<__nv_bfloat16> result(size / 2);
    check(cudaMemcpy(result.data(), data(), size, cudaMemcpyDeviceToHost), "copy");
    return result;
  }
};

struct Case {
  int64_t queries, keys;
  int heads;
  int64_t extra;  // elements between rows beside heads * 128
  float spread;   // of the queries: large values make sharp softmaxes
};

struct Inputs {
  Buffer q, k, v, out;
  kernels::AttentionArgs args;
  explicit Inputs(const Case& c)
      : q(static_cast<size_t>(c.queries * (c.heads * 128 + c.extra) * 2)),
        k(static_cast<size_t>(c.keys * (c.heads * 128 + c.extra) * 2)),
        v(static_cast<size_t>(c.keys * (c.heads * 128 + c.extra) * 2)),
        out(static_cast<size_t>(c.queries * c.heads * 128 * 2)) {
    uint64_t stream = 1;
    for (const Buffer* b : {&q, &k, &v}) {
      kernels::normal({static_cast<uint64_t>(c.keys), stream++}, DType::kBF16, b->data(),
                      static_cast<int64_t>(b->size / 2), nullptr);
    }
    kernels::axpby(DType::kBF16, c.spread, q.data(), 0.0F, q.data(), q.data(),
                   static_cast<int64_t>(q.size / 2), nullptr);
    const int64_t row = c.heads * 128 + c.extra;
    args.dtype = DType::kBF16;
    args.q = q.data();
    args.k = k.data();
    args.v = v.data();
    args.out = out.data();
    args.batch = 1;
    args.queries = c.queries;
    args.keys = c.keys;
    args.heads = c.heads;
    args.head_dim = 128;
    args.scale = 1.0F / std::sqrt(128.0F);
    args.q_row = args.k_row = args.v_row = row;
    args.q_batch = c.queries * row;
    args.k_batch = args.v_batch = c.keys * row;
    args.out_row = c.heads * 128;
    args.out_batch = c.queries * args.out_row;
  }
};

int multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "attribute");
  return count;
}

void test(const Case& c) {
  Inputs in(c);
  const std::string name = "attention " + std::to_string(c.queries) + " x " +
                           std::to_string(c.keys) + ", " + std::to_string(c.heads) + " heads";
  const Buffer workspace(sm90::dense_workspace_bytes(multiprocessors()));
  const auto run = [&] {
    check(cudaMemset(in.out.data(), 0xff, in.out.size), "poison");
    check(sm90::dense_attention(in.args, multiprocessors(), workspace.data(), nullptr),
          "dense_attention");
    check(cudaDeviceSynchronize(), "dense_attention");
    return in.out.values();
  };
  const std::vector<__nv_bfloat16> got = run();
  const std::vector<__nv_bfloat16> again = run();
  const bool same = std::memcmp(got.data(), again.data(), 2 * got.size()) == 0;
  const bool intact = in.out.guards_intact() && workspace.guards_intact();
  kernels::attention(in.args, nullptr);
  check(cudaDeviceSynchronize(), "plain attention");
  const std::vector<__nv_bfloat16> expected = in.out.values();
  double error = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double e = static_cast<double>(__bfloat162float(expected[i]));
    const double d = static_cast<double>(__bfloat162float(got[i])) - e;
    error += d * d;
    norm += e * e;
  }
  // Both round their result; one also rounds the weights.
  const double relative = std::sqrt(error / norm);
  const bool good = relative < 4e-3 && same && intact;
  std::printf("%s %s: relative difference %.2e%s%s\n", good ? "ok  " : "FAIL", name.c_str(),
              relative, same ? "" : ", two runs differ", intact ? "" : ", guards overwritten");
  if (!good) ++failures;
}

// bf16 numbers as attention in e4m3 wants them: q and k times a factor per head, v transposed.
__global__ void to_rows(const __nv_bfloat16* x, int64_t count, float factor, uint8_t* y) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < count) {
    y[i] = __nv_cvt_float_to_fp8(__bfloat162float(x[i]) * factor, __NV_SATFINITE, __NV_E4M3);
  }
}
__global__ void to_values(const __nv_bfloat16* v, int64_t keys, int64_t dim, uint8_t* y) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= (keys + 127) / 128 * 128 * dim) return;
  const int64_t key = i / dim;
  const int64_t at =
      (key / 128 * dim + i % dim) * 128 + key % 128 / 16 * 16 + fp8_key_place(key % 16);
  // Past the end: any number, which must not show.
  y[at] =
      key < keys ? __nv_cvt_float_to_fp8(__bfloat162float(v[i]), __NV_SATFINITE, __NV_E4M3) : 0x7e;
}

struct Fp8Inputs {
  static constexpr float kFactor = 8.0F;
  Inputs in;
  Buffer q, k, v, scales;
  sm90::DenseFp8Args args;
  explicit Fp8Inputs(const Case& c)
      : in(c),
        q(static_cast<size_t>(c.queries * c.heads * 128)),
        k(static_cast<size_t>(c.keys * c.heads * 128)),
        v(static_cast<size_t>((c.keys + 127) / 128 * 128 * c.heads * 128)),
        scales(static_cast<size_t>(c.heads) * 4) {
    const int64_t dim = int64_t{128} * c.heads;
    const auto blocks = [](int64_t count) { return static_cast<unsigned>((count + 255) / 256); };
    to_rows<<<blocks(c.queries * dim), 256>>>(static_cast<const __nv_bfloat16*>(in.q.data()),
                                              c.queries * dim, kFactor / c.spread,
                                              static_cast<uint8_t*>(q.data()));
    to_rows<<<blocks(c.keys * dim), 256>>>(static_cast<const __nv_bfloat16*>(in.k.data()),
                                           c.keys * dim, kFactor, static_cast<uint8_t*>(k.data()));
    const int64_t padded = (c.keys + 127) / 128 * 128;
    to_values<<<blocks(padded * dim), 256>>>(static_cast<const __nv_bfloat16*>(in.v.data()), c.keys,
                                             dim, static_cast<uint8_t*>(v.data()));
    // A scale of its own for every head.
    std::vector<float> factors;
    for (int h = 0; h < c.heads; ++h) {
      factors.push_back(c.spread / (kFactor * kFactor) *
                        (1.0F + 0.125F * static_cast<float>(h % 3)));
    }
    check(cudaMemcpy(scales.data(), factors.data(), scales.size, cudaMemcpyHostToDevice), "copy");
    args.q = q.data();
    args.k = k.data();
    args.v = v.data();
    args.scales = static_cast<const float*>(scales.data());
    args.out = in.out.data();
    args.queries = c.queries;
    args.keys = c.keys;
    args.heads = c.heads;
    args.scale = in.args.scale;
  }
};

double from_fp8(uint8_t x) {
  static const std::vector<double> numbers = [] {
    std::vector<double> all;
    for (int i = 0; i < 256; ++i) {
      __nv_fp8_e4m3 value;
      value.__x = static_cast<uint8_t>(i);
      all.push_back(static_cast<double>(static_cast<float>(value)));
    }
    return all;
  }();
  return numbers[x];
}

template <typename T>
std::vector<T> host(const Buffer& b) {
  std::vector<T> result(b.size / sizeof(T));
  check(cudaMemcpy(result.data(), b.data(), b.size, cudaMemcpyDeviceToHost), "copy");
  return result;
}

// What stays is the rounding of the weights to e4m3 (2 %, which averages out over keys), of the
// result, and what the tensor cores cut off. `bias` shows the last: the mean of the result over
// the exact one, of values that all have one sign. It grows with the blocks that are summed there:
// 1.6e-2 for 8 of them.
void test_fp8(const Case& c, bool positive) {
  Fp8Inputs in(c);
  if (positive) {
    std::vector<uint8_t> values = host<uint8_t>(in.v);
    for (uint8_t& x : values) x &= 0x7f;
    check(cudaMemcpy(in.v.data(), values.data(), values.size(), cudaMemcpyHostToDevice), "copy");
  }
  const Buffer workspace(sm90::dense_workspace_bytes(multiprocessors()));
  const auto run = [&] {
    check(cudaMemset(in.in.out.data(), 0xff, in.in.out.size), "poison");
    check(sm90::dense_attention_fp8(in.args, multiprocessors(), workspace.data(), nullptr),
          "dense_attention_fp8");
    check(cudaDeviceSynchronize(), "dense_attention_fp8");
    return in.in.out.values();
  };
  const std::vector<__nv_bfloat16> got = run();
  const std::vector<__nv_bfloat16> again = run();
  const bool same = std::memcmp(got.data(), again.data(), 2 * got.size()) == 0;
  const bool intact = in.in.out.guards_intact() && workspace.guards_intact();
  const std::vector<uint8_t> q = host<uint8_t>(in.q);
  const std::vector<uint8_t> k = host<uint8_t>(in.k);
  const std::vector<uint8_t> v = host<uint8_t>(in.v);
  const std::vector<float> scales = host<float>(in.scales);
  const int64_t dim = int64_t{128} * c.heads;
  double error = 0.0;
  double norm = 0.0;
  double sum_got = 0.0;
  double sum_expected = 0.0;
  // Rows that are far apart, every head, in all about 3e8 products.
  const int64_t rows = std::clamp<int64_t>(1000000 / (c.keys * c.heads), 3, c.queries);
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t query =
        n * c.queries / rows + n % 2 * std::min<int64_t>(c.queries / rows / 2, 63);
    for (int64_t h = 0; h < c.heads; ++h) {
      std::vector<double> score(static_cast<size_t>(c.keys));
      double top = -INFINITY;
      for (int64_t j = 0; j < c.keys; ++j) {
        double dot = 0.0;
        for (int64_t d = 0; d < 128; ++d) {
          dot += from_fp8(q[static_cast<size_t>(query * dim + h * 128 + d)]) *
                 from_fp8(k[static_cast<size_t>(j * dim + h * 128 + d)]);
        }
        const double s = dot * static_cast<double>(scales[static_cast<size_t>(h)] * in.args.scale);
        score[static_cast<size_t>(j)] = s;
        top = std::max(top, s);
      }
      double total = 0.0;
      std::vector<double> sum(128, 0.0);
      for (int64_t j = 0; j < c.keys; ++j) {
        const double weight = std::exp(score[static_cast<size_t>(j)] - top);
        total += weight;
        for (int64_t d = 0; d < 128; ++d) {
          const int64_t at = (j / 128 * dim + h * 128 + d) * 128 + j % 128 / 16 * 16 +
                             fp8_key_place(static_cast<int>(j % 16));
          sum[static_cast<size_t>(d)] += weight * from_fp8(v[static_cast<size_t>(at)]);
        }
      }
      for (int64_t d = 0; d < 128; ++d) {
        const double e = sum[static_cast<size_t>(d)] / total;
        const double g = static_cast<double>(
            __bfloat162float(got[static_cast<size_t>(query * dim + h * 128 + d)]));
        error += (g - e) * (g - e);
        norm += e * e;
        sum_got += g;
        sum_expected += e;
      }
    }
  }
  const double relative = std::sqrt(error / norm);
  const double bias = sum_got / sum_expected - 1.0;
  // One key: its weight is exact. Many: roundings of 2.3 % each against a mean of 1/sqrt(keys).
  const bool good = relative < 4e-2 && (!positive || std::fabs(bias) < 8e-3) && same && intact;
  std::printf("%s fp8 attention %ld x %ld, %d heads, spread %g: relative error %.2e",
              good ? "ok  " : "FAIL", static_cast<long>(c.queries), static_cast<long>(c.keys),
              c.heads, static_cast<double>(c.spread), relative);
  if (positive) std::printf(", bias %.1e", bias);
  std::printf("%s%s\n", same ? "" : ", two runs differ", intact ? "" : ", guards overwritten");
  if (!good) ++failures;
}

double milliseconds(const std::function<void()>& run) {
  cudaEvent_t begin;
  cudaEvent_t end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    check(cudaEventRecord(begin), "event");
    run();
    check(cudaEventRecord(end), "event");
    check(cudaEventSynchronize(end), "event");
    float time = 0.0F;
    check(cudaEventElapsedTime(&time, begin, end), "event");
    if (i >= 3) times.push_back(time);
  }
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

void bench(int64_t queries, int64_t keys) {
  Inputs in({queries, keys, 12, 0, 1.0F});
  const Buffer workspace(sm90::dense_workspace_bytes(multiprocessors()));
  const double own = milliseconds([&] {
    check(sm90::dense_attention(in.args, multiprocessors(), workspace.data(), nullptr), "own");
  });
  double library = 0.0;
  std::string why;
  const std::unique_ptr<Cudnn> cudnn = Cudnn::create(why);
  if (cudnn != nullptr) {
    const int64_t bytes = cudnn->plan_attention(in.args);
    const Buffer scratch(static_cast<size_t>(std::max<int64_t>(bytes, 1)));
    if (bytes >= 0) {
      library =
          milliseconds([&] { cudnn->attention(in.args, scratch.data(), /*stream=*/nullptr); });
    }
  }
  const Fp8Inputs in8({queries, keys, 12, 0, 1.0F});
  const double fp8 = milliseconds([&] {
    check(sm90::dense_attention_fp8(in8.args, multiprocessors(), workspace.data(), nullptr), "fp8");
  });
  const double tflop = 4.0 * static_cast<double>(queries * keys) * 12 * 128 / 1e12;
  std::printf(
      "%6ld x %6ld: own %.3f ms, %.0f TFLOP/s; in e4m3 %.3f ms, %.0f TFLOP/s; cuDNN %.3f ms, %.0f "
      "TFLOP/s\n",
      static_cast<long>(queries), static_cast<long>(keys), own, tflop / own * 1e3, fp8,
      tflop / fp8 * 1e3, library, library > 0.0 ? tflop / library * 1e3 : 0.0);
}

int run(bool with_bench, bool profile) {
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
      major != 9) {
    std::printf("SKIPPED: no Hopper GPU, so the dense attention of sm_90a was not run\n");
    return 77;
  }
  if (profile) {
    bench(4680, 32760);
    return 0;
  }
  for (const Case& c :
       {Case{1, 1, 1, 0, 1.0F}, Case{128, 128, 1, 0, 1.0F}, Case{129, 127, 2, 0, 1.0F},
        Case{64, 300, 3, 64, 4.0F}, Case{1000, 1000, 12, 0, 1.0F}, Case{777, 4680, 12, 0, 20.0F},
        Case{4680, 512, 12, 0, 1.0F}, Case{4680, 4680, 12, 0, 1.0F}, Case{2340, 9360, 5, 8, 2.0F},
        Case{8448, 257, 2, 0, 1.0F}}) {
    test(c);
  }
  for (const Case& c :
       {Case{1, 1, 1, 0, 1.0F}, Case{128, 128, 1, 0, 1.0F}, Case{129, 127, 2, 0, 1.0F},
        Case{64, 300, 3, 0, 4.0F}, Case{1000, 1000, 12, 0, 1.0F}, Case{777, 4680, 12, 0, 20.0F},
        Case{4680, 512, 12, 0, 1.0F}, Case{2340, 9360, 5, 0, 2.0F}, Case{8448, 257, 2, 0, 1.0F},
        Case{4680, 32760, 12, 0, 1.0F}}) {
    test_fp8(c, /*positive=*/false);
  }
  test_fp8({4680, 32760, 12, 0, 1.0F}, /*positive=*/true);
  if (with_bench) {
    for (const int64_t keys : {512, 4680, 14040, 32760}) bench(4680, keys);
    bench(37440, 512);
    bench(18720, 18720);
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash::cuda

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "";
  return ultraflash::cuda::run(std::strcmp(mode, "--bench") == 0,
                               std::strcmp(mode, "--profile") == 0);
}
