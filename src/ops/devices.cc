#include "ops/devices.h"

#include <fmt/format.h>

#include <charconv>

#include "core/check.h"
#include "ops/cpu/cpu_executor.h"
#include "ops/cuda/cuda_executor.h"

namespace ultraflash {
namespace {

Result<std::unique_ptr<Executor>> make_cuda(const ExecutorOptions& options) {
  cuda::CudaOptions cuda;
  if (options.device.starts_with("cuda:")) {
    const char* end = options.device.data() + options.device.size();
    const auto [rest, error] = std::from_chars(options.device.data() + 5, end, cuda.device);
    if (error != std::errc() || rest != end || cuda.device < 0) {
      return make_status(StatusCode::kInvalidArgument,
                         "'{}' is no device; choose auto, cpu, cuda or cuda:N", options.device);
    }
  }
  cuda.memory_limit_bytes = options.memory_limit_bytes;
  cuda.guard_bytes = options.guard_bytes;
  cuda.fp8_products = options.fp8_products;
  cuda.fp8_fast_sums = options.fp8_fast_sums;
  cuda.fp8_attention = options.fp8_attention;
  cuda.plain_kernels = options.cuda_plain;
  cuda.graphs = options.cuda_graphs;
  cuda.urgent = options.urgent;
  return cuda::make_cuda_executor(cuda);
}

}  // namespace

Result<std::unique_ptr<Executor>> make_executor(const ExecutorOptions& options) {
  if (options.threads < 0 || options.threads > 4096) {
    return make_status(StatusCode::kInvalidArgument,
                       "{} threads were asked for; give 1 to 4096, or 0 for all cores",
                       options.threads);
  }
  if (options.device == "cuda" || options.device.starts_with("cuda:")) {
    return make_cuda(options);
  }
  if (options.device != "auto" && options.device != "cpu") {
    return make_status(StatusCode::kInvalidArgument,
                       "'{}' is no device; choose auto, cpu, cuda or cuda:N", options.device);
  }
  if (options.device == "auto") {
    for (const cuda::CudaDevice& device : cuda::list_cuda_devices()) {
      if (!device.usable) continue;
      ExecutorOptions chosen = options;
      chosen.device = device.name;
      Result<std::unique_ptr<Executor>> made = make_cuda(chosen);
      if (made.ok()) return made;
    }
  }
  try {
    cpu::CpuOptions cpu;
    cpu.threads = options.threads;
    cpu.kernels = options.cpu_kernels;
    cpu.use_onednn = options.use_onednn;
    cpu.memory_limit_bytes = options.memory_limit_bytes;
    cpu.guard_bytes = options.guard_bytes;
    return cpu::make_cpu_executor(cpu);
  } catch (const Error& error) {
    return error.status();
  }
}

std::vector<DeviceReport> list_devices() {
  std::vector<DeviceReport> reports;
  ExecutorOptions cpu_options;
  cpu_options.device = "cpu";
  const Result<std::unique_ptr<Executor>> cpu = make_executor(cpu_options);
  reports.push_back({"cpu", cpu.ok(), cpu.ok() ? (*cpu)->description() : cpu.status().message()});
  for (cuda::CudaDevice& device : cuda::list_cuda_devices()) {
    reports.push_back({std::move(device.name), device.usable, std::move(device.description)});
  }
  return reports;
}

}  // namespace ultraflash
