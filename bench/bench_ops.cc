// bench_ops: single operations on every executor of this machine. The cases are those of the tests
// (tests/ops), small ones and the sizes that matter.
//
//   bench_ops --benchmark_filter=linear
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/devices.h"
#include "ops/op_cases.h"

namespace ultraflash::testing {
namespace {

struct Variant {
  std::string name;
  ExecutorOptions options;
};

std::vector<Variant> variants() {
  std::vector<Variant> list;
  ExecutorOptions own;
  own.device = "cpu";
  own.use_onednn = false;
  ExecutorOptions best = own;
  best.use_onednn = true;
  list.push_back({"cpu", best});
  list.push_back({"cpu_without_onednn", own});
  for (const DeviceReport& device : list_devices()) {
    if (device.name == "cpu" || !device.usable) continue;
    ExecutorOptions options;
    options.device = device.name;
    list.push_back({device.name, options});
  }
  return list;
}

void run(benchmark::State& state, const OpCase& op, const ExecutorOptions& options, DType dtype) {
  Result<std::unique_ptr<Executor>> executor = make_executor(options);
  if (!executor.ok()) {
    state.SkipWithError(std::string(executor.status().message()).c_str());
    return;
  }
  OpMemo memo;
  const OpContext context{**executor, dtype, dtype, 11, &memo};
  op.run(context);  // makes the inputs and fills the arena
  (*executor)->synchronize();
  for (auto _ : state) {
    op.run(context);
    (*executor)->synchronize();
  }
  if (op.flops > 0.0) {
    state.counters["FLOP/s"] =
        benchmark::Counter(op.flops, benchmark::Counter::kIsIterationInvariantRate);
  }
}

void register_all(const std::vector<OpCase>& cases, const std::string& group) {
  for (const OpCase& op : cases) {
    for (const Variant& variant : variants()) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        if (dtype == DType::kBF16 && !op.has_bf16) continue;
        benchmark::RegisterBenchmark(
            fmt::format("{}/{}/{}/{}", group, op.name, variant.name, dtype_name(dtype)).c_str(),
            [&op, options = variant.options, dtype](benchmark::State& state) {
              run(state, op, options, dtype);
            })
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

}  // namespace
}  // namespace ultraflash::testing

int main(int argc, char** argv) {
  ultraflash::testing::register_all(ultraflash::testing::large_op_cases(), "large");
  ultraflash::testing::register_all(ultraflash::testing::op_cases(), "small");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
