// Which GPUs there are, and why one cannot be used.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_executor.h"

namespace ultraflash::cuda {
namespace {

constexpr int kOldestMajor = 8;  // bf16 arithmetic, asynchronous copies

std::string version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

}  // namespace

void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line) {
  static_cast<void>(cudaGetLastError());  // the sticky copy of a failure that is being reported
  int device = -1;
  static_cast<void>(cudaGetDevice(&device));
  const StatusCode code =
      error == cudaErrorMemoryAllocation ? StatusCode::kOutOfMemory : StatusCode::kDevice;
  throw_error(code, "CUDA device {}: {} ({}) from {} at {}:{}", device, cudaGetErrorString(error),
              cudaGetErrorName(error), call, file, line);
}

void refuse_dtype(DType dtype) {
  throw_error(StatusCode::kUnsupported,
              "the CUDA executor computes in f32 and bf16, not in {}; pass --dtype f32 or bf16",
              dtype_name(dtype));
}

void require(bool holds, const char* what) { UF_CHECK(holds, "{}", what); }

std::vector<CudaDevice> list_cuda_devices() {
  int driver = 0;
  int runtime = 0;
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return {
        {"cuda", false, "no NVIDIA driver is installed, so CUDA cannot be used; use --device cpu"}};
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    return {{"cuda", false,
             fmt::format("the driver supports CUDA {}, this program needs {}; update the driver or "
                         "use --device cpu",
                         version(driver), version(runtime))}};
  }
  if (error != cudaSuccess || count == 0) {
    static_cast<void>(cudaGetLastError());
    return {{"cuda", false,
             error == cudaSuccess || error == cudaErrorNoDevice
                 ? std::string("the CUDA driver names no GPU; use --device cpu")
                 : fmt::format("the CUDA driver answers '{}'; use --device cpu",
                               cudaGetErrorString(error))}};
  }
  std::vector<CudaDevice> devices;
  for (int i = 0; i < count; ++i) {
    CudaDevice device;
    device.name = fmt::format("cuda:{}", i);
    cudaDeviceProp properties{};
    if (const cudaError_t failed = cudaGetDeviceProperties(&properties, i); failed != cudaSuccess) {
      device.description = cudaGetErrorString(failed);
      static_cast<void>(cudaGetLastError());
    } else {
      device.usable = properties.major >= kOldestMajor;
      device.description = fmt::format(
          "{} (sm_{}{}, {} SMs, {:.1f} GiB, driver for CUDA {}){}", properties.name,
          properties.major, properties.minor, properties.multiProcessorCount,
          static_cast<double>(properties.totalGlobalMem) / (1024.0 * 1024.0 * 1024.0),
          version(driver), device.usable ? "" : ": too old, compute capability 8.0 is needed");
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

}  // namespace ultraflash::cuda
