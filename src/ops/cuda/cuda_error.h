// CUDA's return codes as Errors with a sentence for people. Only files of ops/cuda include this.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/dtype.h"

namespace ultraflash::cuda {

/// Throws Error(kOutOfMemory) or Error(kDevice): what was called, where, what CUDA says.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line);

/// For tests: every checked result passes through the hook, which may turn it into a failure. Takes
/// and returns CUDA's error numbers; null: none.
using FaultHook = int (*)(int error, const char* call);
void set_fault_hook(FaultHook hook);
[[nodiscard]] cudaError_t observed(cudaError_t error, const char* call);

/// What the driver said when it was asked for its GPUs.
struct DriverAnswers {
  int runtime = 0;      // this program's CUDA, 13000 is 13.0
  int driver = 0;       // the driver's; 0: there is none
  int count_error = 0;  // of cudaGetDeviceCount
  int count = 0;
};
/// Why there is no usable GPU at all; empty when there is one.
[[nodiscard]] std::string why_no_device(const DriverAnswers& answers);

// For CUDA files, whose compiler cannot take fmt's checked format strings.
/// Throws Error(kUnsupported): kernels have no arithmetic in this type.
[[noreturn]] void refuse_dtype(DType dtype);
/// Throws Error(kInternal) when `holds` is false.
void require(bool holds, const char* what);

}  // namespace ultraflash::cuda

/// Runs a CUDA runtime call and throws when it fails.
#define UF_CUDA_TRY(call)                                                             \
  do {                                                                                \
    const cudaError_t uf_cuda_error = ::ultraflash::cuda::observed((call), #call);    \
    if (uf_cuda_error != cudaSuccess) [[unlikely]]                                    \
      ::ultraflash::cuda::throw_cuda_error(uf_cuda_error, #call, __FILE__, __LINE__); \
  } while (false)

/// After a kernel launch: throws when it could not be queued.
#define UF_CUDA_LAUNCHED() UF_CUDA_TRY(cudaGetLastError())
