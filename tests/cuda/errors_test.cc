// Failures of driver and GPU as people read them, by fault injection: runs on machines without a
// GPU.
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_executor.h"

namespace ultraflash::cuda {
namespace {

Status failure_of(cudaError_t error) {
  try {
    throw_cuda_error(error, "cudaEventSynchronize(event_)", "queue.cc", 7);
  } catch (const Error& e) {
    return e.status();
  }
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

TEST(CudaErrorsTest, NoDriverNoGpuAndMismatch) {
  DriverAnswers answers;
  answers.runtime = 13000;
  EXPECT_TRUE(contains(why_no_device(answers), "no NVIDIA driver is installed"));
  answers.driver = 12040;
  answers.count_error = cudaErrorInsufficientDriver;
  EXPECT_EQ(why_no_device(answers),
            "the driver supports CUDA 12.4, this program needs 13.0; update the driver or use "
            "--device cpu");
  answers.driver = 13000;
  answers.count_error = cudaErrorSystemDriverMismatch;
  EXPECT_TRUE(contains(why_no_device(answers), "update the NVIDIA driver, and restart"))
      << why_no_device(answers);
  answers.count_error = cudaErrorNoDevice;
  EXPECT_TRUE(contains(why_no_device(answers), "names no GPU"));
  answers.count_error = cudaErrorUnknown;
  EXPECT_TRUE(contains(why_no_device(answers), "the GPU was lost"));
  answers.count_error = cudaSuccess;
  answers.count = 1;
  EXPECT_EQ(why_no_device(answers), "");
}

TEST(CudaErrorsTest, FullAndLostGpu) {
  const Status full = failure_of(cudaErrorMemoryAllocation);
  EXPECT_EQ(full.code(), StatusCode::kOutOfMemory);
  EXPECT_TRUE(contains(full.message(), "the GPU is full")) << full.message();
  for (const cudaError_t error : {cudaErrorUnknown, cudaErrorECCUncorrectable}) {
    const Status lost = failure_of(error);
    EXPECT_EQ(lost.code(), StatusCode::kDevice);
    EXPECT_TRUE(contains(lost.message(), "the GPU was lost")) << lost.message();
    EXPECT_TRUE(contains(lost.message(), "cudaEventSynchronize")) << lost.message();
  }
  EXPECT_TRUE(contains(failure_of(cudaErrorIllegalAddress).message(), "a kernel failed"));
}

int lose_gpu(int error, const char* call) {
  return std::string_view(call).starts_with("cudaEventSynchronize")
             ? static_cast<int>(cudaErrorUnknown)
             : error;
}

TEST(CudaErrorsTest, HookTurnsCallsIntoFailures) {
  set_fault_hook(lose_gpu);
  const auto synchronize = [] { UF_CUDA_TRY(cudaEventSynchronize(nullptr)); };
  EXPECT_THROW(synchronize(), Error);
  const auto other = [] { UF_CUDA_TRY(cudaSuccess); };
  EXPECT_NO_THROW(other());
  set_fault_hook(nullptr);
}

TEST(CudaErrorsTest, DevicesAreListedOnEveryMachine) {
  const std::vector<CudaDevice> devices = list_cuda_devices();
  ASSERT_FALSE(devices.empty());
  for (const CudaDevice& device : devices) EXPECT_FALSE(device.description.empty());
  CudaOptions options;
  options.device = 4096;
  const Status status = make_cuda_executor(options).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_FALSE(status.message().empty());
}

}  // namespace
}  // namespace ultraflash::cuda
