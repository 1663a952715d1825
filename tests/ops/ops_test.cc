// Every operation of every executor this machine can run, against the scalar reference.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "ops/devices.h"
#include "ops/op_cases.h"
#include "reference_ops/reference_executor.h"

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

}  // namespace
}  // namespace ultraflash::testing
