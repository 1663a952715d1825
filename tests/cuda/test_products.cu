// Products in e4m3 on Hopper against plain f32 products of the same numbers: odd sizes, results in
// bf16 and in e4m3, guard zones, the same bits twice. With --bench also their speed beside the
// library's. Exit status 77 without a Hopper GPU.
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/sparse_layer.cuh"
#include "ops/cuda/blas.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/product_sm90.h"

namespace ultraflash::cuda {
namespace {

constexpr SparseType kB = SparseType::kBF16;
constexpr SparseType kF = SparseType::kF32;

int multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "attribute");
  return count;
}

void synchronize(const char* what) { check(cudaDeviceSynchronize(), what); }

struct Case {
  int64_t rows, in, out;
  bool bias, gelu, positive;
  int64_t more_rows;  // of the matrix that x is the first rows of
};

float from_e4m3(uint8_t bits) {
  __nv_fp8_e4m3 x;
  x.__x = bits;
  return static_cast<float>(x);
}

/// x and w in e4m3, and what they stand for in f32.
struct Layer {
  Case c;
  int64_t pitch;
  Buffer x, x_scales, w, w_scales, bias;
  explicit Layer(const Case& given)
      : c(given),
        pitch(sm90::scale_pitch(c.rows + c.more_rows)),
        x(static_cast<size_t>((c.rows + c.more_rows) * c.in)),
        x_scales(static_cast<size_t>(c.in / 128 * pitch) * 4),
        w(static_cast<size_t>(c.out * c.in)),
        w_scales(static_cast<size_t>(c.out) * 4),
        bias(static_cast<size_t>(c.out) * 4) {
    const Buffer x16(x.bytes() * 2);
    const Buffer w16(w.bytes() * 2);
    fill(x16, kB, 1, 1.0F);
    fill(w16, kB, 2, 0.02F);
    fill(bias, kF, 3, c.positive ? 0.0F : 0.5F);
    if (c.positive) {
      for (const Buffer* b : {&x16, &w16}) {
        std::vector<uint16_t> bits = b->host<uint16_t>();
        for (uint16_t& v : bits) v &= 0x7FFF;
        b->set(bits);
      }
    }
    kernels::QuantiseArgs args;
    args.x = x16.data();
    args.rows = c.rows + c.more_rows;
    args.dim = c.in;
    args.y = x.data();
    args.scales = x_scales.as<float>();
    kernels::quantise_blocks(args, pitch, nullptr);
    args.x = w16.data();
    args.rows = c.out;
    args.y = w.data();
    args.scales = w_scales.as<float>();
    kernels::quantise_rows(args, nullptr);
    synchronize("quantise");
  }
  [[nodiscard]] sm90::ProductFp8Args args() const {
    sm90::ProductFp8Args a;
    a.x = x.data();
    a.x_scales = x_scales.as<float>();
    a.x_pitch = pitch;
    a.w = w.data();
    a.w_scales = w_scales.as<float>();
    if (c.bias) a.bias = bias.as<float>();
    a.rows = c.rows;
    a.in = c.in;
    a.out = c.out;
    a.activation = c.gelu ? Activation::kGeluTanh : Activation::kNone;
    return a;
  }
  [[nodiscard]] std::vector<float> expected() const {
    const std::vector<uint8_t> x8 = x.host<uint8_t>();
    const std::vector<uint8_t> w8 = w.host<uint8_t>();
    const std::vector<float> xs = x_scales.host<float>();
    const std::vector<float> ws = w_scales.host<float>();
    std::vector<float> x32(static_cast<size_t>(c.rows * c.in));
    std::vector<float> w32(w8.size());
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t i = 0; i < c.in; ++i) {
        const auto at = static_cast<size_t>(r * c.in + i);
        x32[at] = from_e4m3(x8[at]) * xs[static_cast<size_t>(i / 128 * pitch + r)];
      }
    }
    for (size_t i = 0; i < w8.size(); ++i) {
      w32[i] = from_e4m3(w8[i]) * ws[i / static_cast<size_t>(c.in)];
    }
    const Buffer x_device(x32.size() * 4);
    const Buffer w_device(w32.size() * 4);
    const Buffer y_device(static_cast<size_t>(c.rows * c.out) * 4);
    x_device.set(x32);
    w_device.set(w32);
    kernels::ConvArgs plain;
    plain.x = x_device.data();
    plain.w = w_device.data();
    plain.bias = c.bias ? bias.as<float>() : nullptr;
    plain.y = y_device.data();
    plain.width = plain.out_w = c.rows;
    plain.channels = c.in;
    plain.out_channels = c.out;
    plain.activation = c.gelu ? Activation::kGeluTanh : Activation::kNone;
    kernels::convolve(plain, nullptr);
    synchronize("convolve");
    return y_device.host<float>();
  }
};

std::string name_of(const Case& c) {
  return std::to_string(c.rows) + " x " + std::to_string(c.out) + " x " + std::to_string(c.in) +
         (c.bias ? ", bias" : "") + (c.gelu ? ", GELU" : "") + (c.positive ? ", one sign" : "") +
         (c.more_rows > 0 ? ", part of the rows" : "");
}

void report(bool good, const std::string& what, double error, double bias) {
  std::printf("%s %s: relative error %.2e, bias %.1e\n", good ? "ok  " : "FAIL", what.c_str(),
              error, bias);
  if (!good) ++failures;
}

struct Difference {
  double error = 0.0;  // root of the mean square, relative
  double bias = 0.0;   // of the mean, relative
};
Difference difference(const std::vector<float>& got, const std::vector<float>& want) {
  double square = 0.0;
  double norm = 0.0;
  double sum = 0.0;
  double wanted = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want[i]);
    const double d = static_cast<double>(got[i]) - w;
    square += d * d;
    norm += w * w;
    sum += d;
    wanted += std::fabs(w);
  }
  return {std::sqrt(square / norm), sum / wanted};
}

// bf16 rounds by 1.7e-3 in the mean; the tensor cores cut off what 14 bits do not hold, of the sums
// over 128 columns alone.
void test(const Case& c) {
  const Layer layer(c);
  const Buffer y(static_cast<size_t>(c.rows * c.out) * 2);
  sm90::ProductFp8Args args = layer.args();
  args.y = y.data();
  check(sm90::product_fp8(args, multiprocessors(), nullptr), "product_fp8");
  synchronize("product_fp8");
  const std::vector<float> got = floats(y, kB);
  check(cudaMemset(y.data(), 0xFF, y.bytes()), "memset");
  check(sm90::product_fp8(args, multiprocessors(), nullptr), "product_fp8");
  synchronize("product_fp8");
  const bool same = floats(y, kB) == got;
  const Difference d = difference(got, layer.expected());
  report(d.error <= 3e-3 && std::fabs(d.bias) <= 2e-3 && same && y.intact(),
         "product " + name_of(c) + (same ? "" : ", two runs differ") +
             (y.intact() ? "" : ", guards overwritten"),
         d.error, d.bias);
}

// The same with the result in e4m3: rounded to four bits, each block's largest element 448.
void test_quantised(const Case& c) {
  const Layer layer(c);
  const Buffer y(static_cast<size_t>(c.rows * c.out));
  const int64_t pitch = sm90::scale_pitch(c.rows);
  const Buffer scales(static_cast<size_t>(sm90::scale_count(c.rows, c.out)) * 4);
  sm90::ProductFp8Args args = layer.args();
  args.y = y.data();
  args.y_scales = scales.as<float>();
  check(sm90::product_fp8(args, multiprocessors(), nullptr), "product_fp8");
  synchronize("product_fp8");
  const std::vector<uint8_t> bits = y.host<uint8_t>();
  const std::vector<float> factors = scales.host<float>();
  std::vector<float> got(bits.size());
  int64_t wrong = 0;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t block = 0; block < c.out / 128; ++block) {
      const float factor = factors[static_cast<size_t>(block * pitch + r)];
      float top = 0.0F;
      for (int64_t i = block * 128; i < block * 128 + 128; ++i) {
        const auto at = static_cast<size_t>(r * c.out + i);
        const float value = from_e4m3(bits[at]);
        top = std::max(top, std::fabs(value));
        got[at] = value * factor;
      }
      if (top != 448.0F) ++wrong;
    }
  }
  const Buffer expanded(bits.size() * 2);
  kernels::expand_blocks(y.data(), scales.as<float>(), pitch, c.rows, c.out, expanded.data(),
                         nullptr);
  synchronize("expand_blocks");
  const std::vector<float> wide = floats(expanded, kB);
  for (size_t i = 0; i < got.size(); ++i) {
    if (wide[i] != round_to(kB, got[i])) ++wrong;
  }
  const Difference d = difference(got, layer.expected());
  const bool intact = y.intact() && scales.intact() && expanded.intact();
  // Numbers of one sign and nearly one size are all rounded the same way.
  report(
      d.error <= 3.5e-2 && std::fabs(d.bias) <= (c.positive ? 3e-2 : 4e-3) && wrong == 0 && intact,
      "product in e4m3 " + name_of(c) + ", " + std::to_string(wrong) + " wrong" +
          (intact ? "" : ", guards overwritten"),
      d.error, d.bias);
}

template <typename Work>
double microseconds(const Work& work) {
  cudaEvent_t begin;
  cudaEvent_t end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    check(cudaEventRecord(begin), "event");
    for (int n = 0; n < 10; ++n) work();
    check(cudaEventRecord(end), "event");
    check(cudaEventSynchronize(end), "event");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 3) times.push_back(ms * 100.0F);
  }
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

void bench(const Case& c) {
  const Layer layer(c);
  const Buffer y(static_cast<size_t>(c.rows * c.out) * 2);
  sm90::ProductFp8Args args = layer.args();
  args.y = y.data();
  const auto own = [&] { check(sm90::product_fp8(args, multiprocessors(), nullptr), "product"); };
  const double flop = 2.0 * static_cast<double>(c.rows * c.in * c.out);
  double us = microseconds(own);
  std::printf("%-40s own %7.1f us (%5.0f TFLOP/s)", name_of(c).c_str(), us, flop / us * 1e-6);
  if (c.out % 128 == 0) {
    const Buffer scales(static_cast<size_t>(sm90::scale_count(c.rows, c.out)) * 4);
    args.y_scales = scales.as<float>();
    us = microseconds(own);
    std::printf(", to e4m3 %7.1f (%5.0f)", us, flop / us * 1e-6);
  }
  std::string why;
  const std::unique_ptr<Blas> blas = Blas::create(why);
  if (blas != nullptr) {
    const Buffer workspace(size_t{64} << 20);
    const Buffer bias16(static_cast<size_t>(c.out) * 2);
    bias16.zero();
    ProductArgs library;
    library.dtype = DType::kBF16;
    library.x = layer.x.data();
    library.w = layer.w.data();
    library.y = y.data();
    library.x_scales = layer.x_scales.as<float>();
    library.w_scales = layer.w_scales.as<float>();
    library.rows = c.rows;
    library.in = c.in;
    library.out = c.out;
    library.bias = bias16.data();
    library.activation = args.activation;
    const auto go = [&] {
      return blas->product(library, workspace.data(), workspace.bytes(), nullptr);
    };
    if (go()) {
      us = microseconds(go);
      std::printf(", library %7.1f (%5.0f)", us, flop / us * 1e-6);
    }
  }
  std::printf("\n");
}

int run(bool with_bench) {
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
      major != 9) {
    std::printf("SKIPPED: no Hopper GPU, so the products of sm_90a were not run\n");
    return 77;
  }
  for (const Case& c :
       {Case{1, 128, 8, false, false, false, 0}, Case{5, 256, 136, true, false, false, 0},
        Case{127, 1024, 128, true, true, false, 3}, Case{129, 128, 200, true, false, false, 0},
        Case{257, 1536, 1544, true, false, false, 0}, Case{700, 1536, 1000, true, true, false, 0},
        Case{300, 1536, 1536, false, false, true, 0}, Case{4680, 1536, 1536, true, false, false, 0},
        Case{4680, 1536, 4608, true, false, false, 0}, Case{1301, 8960, 1536, true, false, true, 0},
        Case{2560, 1536, 1536, true, true, false, 777}}) {
    test(c);
    if (c.out % 128 == 0) test_quantised(c);
  }
  test_quantised({4680, 1536, 8960, true, true, false, 0});
  if (with_bench) {
    for (const int64_t rows : {4680, 18720, 37440}) {
      bench({rows, 1536, 1536, true, false, false, 0});
      bench({rows, 1536, 4608, true, false, false, 0});
      if (rows > 20480) continue;
      bench({rows, 1536, 8960, true, true, false, 0});
      bench({rows, 8960, 1536, true, false, false, 0});
    }
  }
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash::cuda

int main(int argc, char** argv) {
  return ultraflash::cuda::run(argc > 1 && std::strcmp(argv[1], "--bench") == 0);
}
