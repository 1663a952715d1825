#include "train/parallel/check_parallel.h"

#include <fmt/format.h>

#include <chrono>

#include "core/check.h"
#include "ops/autograd/torch_tensor.h"
#include "train/parallel/data_parallel.h"

namespace ultraflash {
namespace {

constexpr int64_t kSmallest = int64_t{1} << 10;  // values
constexpr int64_t kLargestOnGpu = int64_t{1} << 28;
constexpr int64_t kLargestOnCpu = int64_t{1} << 22;
constexpr int kRepeats = 10;

// Every rank adds (rank + 1) x place; means of small whole numbers are exact in f32.
Status check_sum(const DataParallel& parallel, const at::Tensor& values) {
  const at::Tensor places = at::arange(values.numel(), values.options()).remainder_(1024.0);
  values.copy_(places * static_cast<double>(parallel.rank() + 1));
  parallel.average(values);
  const double expected = 0.5 * static_cast<double>(parallel.size() + 1);
  const double error = (values - places * expected).abs().max().item<double>();
  if (error <= 1e-6 * 1024.0 * expected) return {};
  return make_status(StatusCode::kDevice,
                     "rank {}: a mean of {} values over {} ranks is off by {:.3g}", parallel.rank(),
                     values.numel(), parallel.size(), error);
}

Result<std::string> check(const std::string& device_name, const std::shared_ptr<RankGroup>& group) {
  const bool gpu = device_name != "cpu";
  const Device device = gpu ? Device{DeviceType::kCuda, static_cast<int>(group->rank())} : Device{};
  open_torch_device(device);
  UF_ASSIGN(const std::unique_ptr<DataParallel> parallel,
            DataParallel::open(group, to_torch(device)));
  std::string report = fmt::format("{}\n{:>12}  {:>10}  {:>10}  {:>10}\n", parallel->description(),
                                   "bytes", "ms", "GB/s", "bus GB/s");
  const auto ranks = static_cast<double>(group->size());
  for (int64_t count = kSmallest; count <= (gpu ? kLargestOnGpu : kLargestOnCpu); count *= 16) {
    const at::Tensor values =
        at::empty({count}, at::TensorOptions(at::kFloat).device(to_torch(device)));
    UF_TRY(check_sum(*parallel, values));
    parallel->synchronize();
    group->meet();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRepeats; ++i) parallel->average(values);
    parallel->synchronize();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kRepeats;
    const double bytes = 4.0 * static_cast<double>(count);
    // What every link carries in a ring, whatever the number of ranks.
    const double bus = 2.0 * (ranks - 1.0) / ranks * bytes / seconds;
    report += fmt::format("{:>12}  {:>10.3f}  {:>10.2f}  {:>10.2f}\n", 4 * count, 1e3 * seconds,
                          1e-9 * bytes / seconds, 1e-9 * bus);
  }
  group->meet();
  return group->leads() ? report : std::string();
}

}  // namespace

Result<std::string> check_parallel(const std::string& device) {
  UF_ASSIGN(const std::shared_ptr<RankGroup> group, RankGroup::from_environment());
  Result<std::string> report = [&]() -> Result<std::string> {
    try {
      return check(device, group);
    } catch (const Error& error) {
      return error.status();
    } catch (const c10::Error& error) {
      return make_status(StatusCode::kDevice, "libtorch: {}", error.what_without_backtrace());
    }
  }();
  if (!report.ok() && report.status().code() != StatusCode::kCancelled) {
    group->fail(report.status());
  }
  return report;
}

}  // namespace ultraflash
