// Every operation of every executor this machine can run, against the scalar reference.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "ops/devices.h"
#include "ops/op_cases.h"
#include "reference_ops/reference_executor.h"
#include "reference_ops/reference_math.h"

namespace ultraflash::testing {
namespace {

struct Variant {
  std::string name;
  ExecutorOptions options;
};

std::vector<Variant> variants() {
  std::vector<Variant> list;
  const auto add = [&](const char* kernels, bool onednn) {
    ExecutorOptions options;
    options.device = "cpu";
    options.threads = 2;
    options.cpu_kernels = kernels;
    options.use_onednn = onednn;
    options.guard_bytes = 512;
    const std::string name =
        std::string(*kernels == 0 ? "best" : kernels) + (onednn ? "_onednn" : "_own");
    if (make_executor(options).ok()) {
      list.push_back({name, options});
    } else {
      std::printf("[  SKIPPED ] executor %s: this processor cannot run it\n", name.c_str());
    }
  };
  add("", /*onednn=*/true);
  add("generic", /*onednn=*/false);
  add("avx2", /*onednn=*/false);
  add("avx512", /*onednn=*/false);
  add("avx512_bf16", /*onednn=*/false);
  for (const bool plain : {false, true}) {
    ExecutorOptions options;
    options.device = "cuda";
    options.cuda_plain = plain;
    options.guard_bytes = 512;
    const Result<std::unique_ptr<Executor>> made = make_executor(options);
    if (made.ok()) {
      list.push_back({plain ? "cuda_plain" : "cuda", options});
    } else {
      std::printf("[  SKIPPED ] executor cuda: %s\n", made.status().message().c_str());
    }
  }
  return list;
}

struct Difference {
  double relative = 0.0;
  double largest = 0.0;
  int64_t worst = -1;
};

Difference compare(const Tensor& got_any, const Tensor& expected_any) {
  const Tensor got = got_any.to(DType::kF32);
  const Tensor expected = expected_any.to(DType::kF32);
  Difference d;
  double error = 0.0;
  double norm = 0.0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    const auto e = static_cast<double>(expected.data<float>()[i]);
    const double delta = std::fabs(static_cast<double>(got.data<float>()[i]) - e);
    error += delta * delta;
    norm += e * e;
    if (!(delta <= d.largest)) {
      d.largest = delta;
      d.worst = i;
    }
  }
  d.relative = norm > 0.0 ? std::sqrt(error / norm) : std::sqrt(error);
  return d;
}

// What the scalar reference makes of a case; computed once and used for every variant.
const std::vector<Tensor>& reference_results(size_t index, DType storage) {
  static std::map<std::pair<size_t, DType>, std::vector<Tensor>> results;
  const auto [position, fresh] = results.try_emplace({index, storage});
  if (fresh) {
    ReferenceExecutor reference;
    position->second = op_cases()[index].run({reference, storage, DType::kF32, 11});
  }
  return position->second;
}

using Parameter = std::tuple<Variant, DType, size_t>;

class OpsTest : public ::testing::TestWithParam<Parameter> {};

TEST_P(OpsTest, AgreesWithTheReference) {
  const auto& [variant, dtype, index] = GetParam();
  const OpCase& op = op_cases()[index];
  Result<std::unique_ptr<Executor>> made = make_executor(variant.options);
  ASSERT_TRUE(made.ok()) << made.status().message();
  Executor& executor = **made;
  const std::vector<Tensor>& expected = reference_results(index, dtype);
  {
    const std::vector<Tensor> got = op.run({executor, dtype, dtype, 11});
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i].shape(), expected[i].shape()) << op.name << " result " << i;
      // The limit: twice what rounding the exact result to this type costs, plus the case's own.
      const Tensor rounded = expected[i].to(got[i].dtype()).to(DType::kF32);
      const double limit =
          op.tolerance + 2.0 * op.roundings * compare(rounded, expected[i]).relative;
      const Difference d = compare(executor.to_host(got[i]), expected[i]);
      EXPECT_LE(d.relative, limit) << op.name << " result " << i << ": largest difference "
                                   << d.largest << " at " << d.worst;
    }
  }
  EXPECT_EQ(executor.memory().guard_violations, 0) << "written outside a tensor";
}

std::string name_of(const ::testing::TestParamInfo<Parameter>& info) {
  const auto& [variant, dtype, index] = info.param;
  return fmt::format("{}_{}_{}", variant.name, dtype_name(dtype), op_cases()[index].name);
}

std::vector<Parameter> parameters() {
  std::vector<Parameter> list;
  for (const Variant& variant : variants()) {
    for (size_t i = 0; i < op_cases().size(); ++i) {
      list.emplace_back(variant, DType::kF32, i);
      if (op_cases()[i].has_bf16) list.emplace_back(variant, DType::kBF16, i);
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(Ops, OpsTest, ::testing::ValuesIn(parameters()), name_of);

// --- products in e4m3 --------------------------------------------------------------------------

// Rows of e4m3 numbers, [rows, dim] in f32, under a scale each.
struct Fp8Rows {
  Tensor values;
  std::vector<double> scales;
};

Fp8Rows quantised(const Tensor& any) {
  constexpr float kLargest = 448.0F;
  const Tensor x = any.to(DType::kF32);
  const int64_t dim = x.dim(-1);
  Fp8Rows q{Tensor::allocate(DType::kF32, x.shape()), {}};
  for (int64_t begin = 0; begin < x.numel(); begin += dim) {
    const float* row = x.data<float>() + begin;
    float top = 1e-12F;
    for (int64_t i = 0; i < dim; ++i) top = std::max(top, std::fabs(row[i]));
    const float factor = kLargest / top;
    for (int64_t i = 0; i < dim; ++i) {
      q.values.mutable_data<float>()[begin + i] = to_float(to_float8_e4m3(row[i] * factor));
    }
    q.scales.push_back(static_cast<double>(top) / static_cast<double>(kLargest));
  }
  return q;
}

// Sums in f64 of the products of the numbers that the tensor cores see.
Tensor product_of_fp8(const Fp8Rows& x, const Fp8Rows& w, const Tensor& bias,
                      Activation activation) {
  const int64_t rows = x.values.dim(0);
  const int64_t in = x.values.dim(1);
  const int64_t out = w.values.dim(0);
  Tensor y = Tensor::allocate(DType::kF32, {rows, out});
  for (int64_t r = 0; r < rows; ++r) {
    const float* a = x.values.data<float>() + r * in;
    for (int64_t o = 0; o < out; ++o) {
      const float* b = w.values.data<float>() + o * in;
      double sum = 0.0;
      for (int64_t i = 0; i < in; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
      sum *= x.scales[static_cast<size_t>(r)] * w.scales[static_cast<size_t>(o)];
      sum += static_cast<double>(bias.data<float>()[o]);
      y.mutable_data<float>()[r * out + o] = static_cast<float>(activated(activation, sum));
    }
  }
  return y;
}

struct Fp8Product {
  int64_t rows, in, out;
  Activation activation;
};

class Fp8ProductsTest : public ::testing::TestWithParam<Fp8Product> {};

// The limit of exact sums: twice the rounding to bf16, as above, and 2e-3 for the few steps that
// the library takes in the tensor cores before it adds to f32. Fast sums stay there over the whole
// width: a step of 32 columns cuts its addends off about 13 bits below the largest. For numbers of
// both signs a model of these cuts is off by 1.3e-3 at 1536 columns and by 3.5e-3 at 8960, so these
// sums have twice the limit.
TEST_P(Fp8ProductsTest, AgreeWithSumsOfTheSameNumbers) {
  constexpr double kExact = 2e-3;
  const Fp8Product& c = GetParam();
  Tensor expected;
  std::vector<Tensor> results;
  for (const bool fast : {false, true}) {
    ExecutorOptions options;
    options.device = "cuda";
    options.fp8_products = true;
    options.fp8_fast_sums = fast;
    options.guard_bytes = 512;
    Result<std::unique_ptr<Executor>> made = make_executor(options);
    if (!made.ok()) {
      GTEST_SKIP() << (fast ? "fast" : "exact") << " sums: " << made.status().message();
    }
    Executor& executor = **made;
    const OpContext context{executor, DType::kBF16, DType::kBF16, 11};
    const Tensor x = context.input({c.rows, c.in}, 1);
    const Linear weight = context.linear({c.out}, c.in, /*bias=*/true, 2);
    if (!fast) {
      expected = product_of_fp8(quantised(executor.to_host(x)), quantised(weight.weights[0]),
                                weight.biases[0].to(DType::kF32), c.activation);
    }
    results.push_back(executor.to_host(executor.linear(x, weight, c.activation)).copy());
    const Tensor rounded = expected.to(DType::kBF16).to(DType::kF32);
    const double limit = (fast ? 2.0 : 1.0) * (kExact + 2.0 * compare(rounded, expected).relative);
    const Difference d = compare(results.back(), expected);
    std::printf("%s sums: relative error %.2e (limit %.1e)\n", fast ? "fast" : "exact", d.relative,
                limit);
    EXPECT_LE(d.relative, limit) << (fast ? "fast" : "exact") << " sums: largest difference "
                                 << d.largest << " at " << d.worst;
    EXPECT_EQ(executor.memory().guard_violations, 0) << "written outside a tensor";
  }
  EXPECT_GT(compare(results[1], results[0]).relative, 0.0) << "fast sums are the exact ones";
}

std::string name_of_product(const ::testing::TestParamInfo<Fp8Product>& info) {
  return fmt::format("cuda_{}x{}x{}", info.param.rows, info.param.in, info.param.out);
}

INSTANTIATE_TEST_SUITE_P(Ops, Fp8ProductsTest,
                         ::testing::Values(Fp8Product{72, 1536, 1536, Activation::kNone},
                                           Fp8Product{72, 1536, 2048, Activation::kGeluTanh},
                                           Fp8Product{72, 8960, 1024, Activation::kNone}),
                         name_of_product);

}  // namespace
}  // namespace ultraflash::testing
