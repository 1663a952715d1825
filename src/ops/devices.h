// Choosing an executor at run time.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "ops/executor.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct ExecutorOptions {
  std::string device = "auto";    // "auto", "cpu", "cuda", "cuda:N"
  int threads = 0;                // CPU threads, 0: all
  size_t memory_limit_bytes = 0;  // of the executor's arena, 0: none
  std::string cpu_kernels;        // "", "generic", "avx2", "avx512", "avx512_bf16": for tests
  bool use_onednn = true;         // for tests
  bool fp8_products = false;      // GPU: products of transformers in e4m3, the rest in bf16
  bool fp8_fast_sums = false;     // GPU: sums of those products stay in the tensor cores
  bool cuda_graphs = false;       // GPU: Executor::repeat records and replays CUDA graphs
  bool urgent = false;            // GPU: goes before other executors of the same one
  bool fp8_attention = false;     // GPU: their dense self-attention in e4m3
  bool cuda_plain = false;        // plain kernels for every architecture, for tests
  size_t guard_bytes = 0;         // guard zones around every tensor, for tests
};

/// kInvalidArgument for a name that is no device, kUnsupported when this build or machine lacks it.
/// "auto" takes the best device there is.
Result<std::unique_ptr<Executor>> make_executor(const ExecutorOptions& options);

/// One device this program knows of, for doctor and for messages.
struct DeviceReport {
  std::string name;  // "cpu", "cuda:0"
  bool usable = false;
  std::string description;  // what it is, or why it cannot be used
};
std::vector<DeviceReport> list_devices();

}  // namespace ultraflash
