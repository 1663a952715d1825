// Which GPUs there are, and why one cannot be used.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <atomic>
#include <string>
#include <utility>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_executor.h"

namespace ultraflash::cuda {
namespace {

constexpr int kOldestMajor = 8;  // bf16 arithmetic, asynchronous copies

std::string version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

}  // namespace

namespace {

// What a failure means for whoever reads it, beside CUDA's own words.
std::string advice(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "the GPU is full: close other programs on it, or choose a smaller recipe, scale or "
             "window";
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return "the driver and this program do not fit: update the NVIDIA driver, and restart the "
             "machine if it was updated without one";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return "this program was not built for this GPU";
    case cudaErrorDevicesUnavailable:
      return "the GPU is busy with a program that has it to itself, or was lost; see nvidia-smi";
    case cudaErrorUnknown:
    case cudaErrorNoDevice:
    case cudaErrorSystemNotReady:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorContained:
      return "the GPU was lost: it has to be reset or the machine restarted, see nvidia-smi and "
             "the "
             "kernel's log (Xid); start the program again then";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
      return "a kernel failed, and with it everything on this GPU in this process; start the "
             "program again, and please report it";
    default:
      return {};
  }
}

std::atomic<FaultHook> fault_hook{nullptr};

DriverAnswers ask_driver() {
  DriverAnswers answers;
  static_cast<void>(cudaRuntimeGetVersion(&answers.runtime));
  if (cudaDriverGetVersion(&answers.driver) != cudaSuccess) answers.driver = 0;
  if (answers.driver != 0) answers.count_error = cudaGetDeviceCount(&answers.count);
  static_cast<void>(cudaGetLastError());
  return answers;
}

}  // namespace

void set_fault_hook(FaultHook hook) { fault_hook = hook; }

cudaError_t observed(cudaError_t error, const char* call) {
  const FaultHook hook = fault_hook.load(std::memory_order_relaxed);
  return hook == nullptr ? error : static_cast<cudaError_t>(hook(static_cast<int>(error), call));
}

void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line) {
  static_cast<void>(cudaGetLastError());  // the sticky copy of a failure that is being reported
  int device = -1;
  static_cast<void>(cudaGetDevice(&device));
  const StatusCode code =
      error == cudaErrorMemoryAllocation ? StatusCode::kOutOfMemory : StatusCode::kDevice;
  const std::string what = advice(error);
  throw_error(code, "CUDA device {}: {}{}{} ({}) from {} at {}:{}", device, what,
              what.empty() ? "" : ". CUDA says: ", cudaGetErrorString(error),
              cudaGetErrorName(error), call, file, line);
}

void refuse_dtype(DType dtype) {
  throw_error(StatusCode::kUnsupported,
              "the CUDA executor computes in f32 and bf16, not in {}; pass --dtype f32 or bf16",
              dtype_name(dtype));
}

void require(bool holds, const char* what) { UF_CHECK(holds, "{}", what); }

std::string why_no_device(const DriverAnswers& a) {
  const auto error = static_cast<cudaError_t>(a.count_error);
  if (a.driver == 0) {
    return "no NVIDIA driver is installed, so CUDA cannot be used; use --device cpu";
  }
  if (error == cudaErrorInsufficientDriver) {
    return fmt::format(
        "the driver supports CUDA {}, this program needs {}; update the driver or use --device cpu",
        version(a.driver), version(a.runtime));
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && a.count == 0)) {
    return "the CUDA driver names no GPU; use --device cpu";
  }
  if (error != cudaSuccess) {
    const std::string what = advice(error);
    return fmt::format("{}{}the CUDA driver answers '{}'; use --device cpu", what,
                       what.empty() ? "" : "; ", cudaGetErrorString(error));
  }
  return {};
}

std::vector<CudaDevice> list_cuda_devices() {
  const DriverAnswers answers = ask_driver();
  if (std::string why = why_no_device(answers); !why.empty()) {
    return {{"cuda", false, std::move(why)}};
  }
  std::vector<CudaDevice> devices;
  for (int i = 0; i < answers.count; ++i) {
    CudaDevice device;
    device.name = fmt::format("cuda:{}", i);
    cudaDeviceProp properties{};
    if (const cudaError_t failed = cudaGetDeviceProperties(&properties, i); failed != cudaSuccess) {
      const std::string what = advice(failed);
      device.description =
          fmt::format("{}{}{}", what, what.empty() ? "" : ": ", cudaGetErrorString(failed));
      static_cast<void>(cudaGetLastError());
    } else {
      device.usable = properties.major >= kOldestMajor;
      device.description =
          fmt::format("{} (sm_{}{}, {} SMs, {:.1f} GiB, driver for CUDA {}){}", properties.name,
                      properties.major, properties.minor, properties.multiProcessorCount,
                      static_cast<double>(properties.totalGlobalMem) / (1024.0 * 1024.0 * 1024.0),
                      version(answers.driver),
                      device.usable ? "" : ": too old, compute capability 8.0 is needed");
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

}  // namespace ultraflash::cuda
