#include "train/parallel/data_parallel.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

#include "core/check.h"

namespace ultraflash {
namespace {

// Parts of the buffer begin at multiples of 16 bytes, as vector loads of the fused kernels ask for.
constexpr int64_t kAlignment = 4;

int64_t aligned(int64_t count) { return (count + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

GradientBuffer::GradientBuffer(const std::vector<at::Tensor>& leaves) {
  int64_t count = 0;
  for (const at::Tensor& leaf : leaves) count += aligned(leaf.numel());
  UF_CHECK(!leaves.empty() && leaves[0].scalar_type() == at::kFloat, "gradients are f32");
  flat_ = at::zeros({count}, leaves[0].options().requires_grad(false));
  int64_t place = 0;
  for (const at::Tensor& leaf : leaves) {
    views_.push_back(flat_.narrow(0, place, leaf.numel()).view(leaf.sizes()));
    place += aligned(leaf.numel());
  }
}

void GradientBuffer::take(const std::vector<at::Tensor>& leaves) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> from;
  std::vector<at::Tensor> to;
  for (size_t i = 0; i < leaves.size(); ++i) {
    at::Tensor& gradient = leaves[i].mutable_grad();
    if (gradient.defined()) {
      from.push_back(gradient);
      to.push_back(views_[i]);
    } else {
      views_[i].zero_();
    }
    gradient = views_[i];
  }
  if (!from.empty()) at::_foreach_copy_(to, from);
}

Result<std::unique_ptr<DataParallel>> DataParallel::open(std::shared_ptr<RankGroup> group,
                                                         at::Device device) {
  std::unique_ptr<DataParallel> parallel(new DataParallel(std::move(group), device));
  RankGroup& ranks = parallel->group();
  if (device.is_cuda()) {
    const c10::impl::VirtualGuardImpl gpu(c10::DeviceType::CUDA);
    const auto gpus = static_cast<int64_t>(gpu.deviceCount());
    if (device.index() >= gpus) {
      return make_status(StatusCode::kNotFound,
                         "rank {} of {} needs GPU {}, but this machine has {}", ranks.rank(),
                         ranks.size(), static_cast<int>(device.index()), gpus);
    }
    // What is not told a device, in libtorch and in NCCL, takes the current one.
    gpu.setDevice(device);
  }
  if (ranks.size() == 1) return parallel;
  if (device.is_cuda()) {
    UF_ASSIGN(parallel->collective_, make_nccl_collective(ranks));
  } else {
    parallel->collective_ = make_host_collective(parallel->group_);
  }
  return parallel;
}

std::string DataParallel::description() const {
  if (!collective_) return "1 rank";
  return fmt::format("{} ranks through {}", size(), collective_->description());
}

void DataParallel::average(const at::Tensor& flat) const {
  if (!collective_) return;
  UF_CHECK(flat.is_contiguous() && flat.scalar_type() == at::kFloat && flat.device() == device_,
           "an average over ranks of {} on {}", at::toString(flat.scalar_type()),
           flat.device().str());
  const at::NoGradGuard no_grad;
  void* stream = nullptr;
  if (device_.is_cuda()) {
    const c10::impl::VirtualGuardImpl gpu(c10::DeviceType::CUDA);
    stream = gpu.getStream(device_).native_handle();
  }
  collective_->sum(static_cast<float*>(flat.data_ptr()), flat.numel(), stream);
  flat.mul_(1.0 / static_cast<double>(size()));
}

void DataParallel::synchronize() const {
  if (!device_.is_cuda()) return;
  const c10::impl::VirtualGuardImpl gpu(c10::DeviceType::CUDA);
  gpu.synchronizeDevice(device_.index());
}

double DataParallel::take_peak_memory() const {
  if (!device_.is_cuda()) return 0.0;
  auto* const allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
  const auto total = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const double peak = static_cast<double>(
      allocator->getDeviceStats(device_.index()).allocated_bytes.at(total).peak);
  allocator->resetPeakStats(device_.index());
  return peak;
}

uint64_t checksum(const std::vector<at::Tensor>& tensors) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> sums;
  for (const at::Tensor& tensor : tensors) {
    sums.push_back(tensor.detach().contiguous().view(at::kInt).sum(at::kLong));
  }
  uint64_t result = 0xcbf29ce484222325;
  if (sums.empty()) return result;
  const at::Tensor host = at::stack(sums).to(at::kCPU);
  for (int64_t i = 0; i < host.numel(); ++i) {
    result = (result ^ static_cast<uint64_t>(host.const_data_ptr<int64_t>()[i])) * 0x100000001b3;
  }
  return result;
}

}  // namespace ultraflash
