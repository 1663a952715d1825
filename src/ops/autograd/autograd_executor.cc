#include "ops/autograd/autograd_executor.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>
#include <torch/version.h>

#include "core/check.h"
#include "ops/autograd/autograd_impl.h"
#include "ops/autograd/functions.h"
#include "ops/autograd/recompute_executor.h"

namespace ultraflash {

std::unique_ptr<Executor> make_autograd_executor(const AutogradOptions& options) {
  open_torch_device(options.device);
  if (options.recompute) return autograd::make_recompute_executor(options);
  return std::make_unique<autograd::AutogradExecutor>(options);
}

namespace {

autograd::AutogradExecutor& training_executor(Executor& executor) {
  auto* const result = dynamic_cast<autograd::AutogradExecutor*>(&executor);
  UF_CHECK(result != nullptr, "{} is not the executor of training", executor.description());
  return *result;
}

}  // namespace

void drop_conversions(Executor& executor, bool frozen) {
  training_executor(executor).drop_conversions(frozen);
}

void keep_tables(Executor& executor) { training_executor(executor).keep_tables(); }

DeviceTimesteps::DeviceTimesteps(Executor& executor, const at::Tensor& timesteps)
    : executor_(training_executor(executor)) {
  executor_.set_device_timesteps(timesteps);
}

DeviceTimesteps::~DeviceTimesteps() { executor_.set_device_timesteps({}); }

namespace autograd {
namespace {

at::IntArrayRef sizes_of(const Shape& shape) {
  return {shape.sizes().data(), shape.sizes().size()};
}

const TorchWeight& prepared(const Linear& linear) {
  return static_cast<const TorchWeight&>(*linear.prepared);
}

at::Tensor product(const at::Tensor& x, const Linear& linear) {
  const TorchWeight& weight = prepared(linear);
  UF_CHECK(x.scalar_type() == to_torch(weight.compute()), "a weight prepared for {} meets {}",
           dtype_name(weight.compute()), at::toString(x.scalar_type()));
  return at::linear(x, weight.weight(),
                    weight.bias().defined() ? std::optional(weight.bias()) : std::nullopt);
}

// A norm's weight in the type of x, which libtorch's kernels on a GPU ask for.
std::optional<at::Tensor> optional_as(const at::Tensor& x, const at::Tensor& weight) {
  if (!weight.defined()) return std::nullopt;
  return weight.to(x.scalar_type());
}

}  // namespace

// --- weights -----------------------------------------------------------------------------------

TorchWeight::TorchWeight(std::vector<Tensor> weights, std::vector<Tensor> biases, DType compute,
                         at::Device device)
    : compute_(compute), device_(device) {
  // What is no leaf of somebody's is converted now, so that its file can be closed.
  const auto own = [&](std::vector<Tensor>& parts) {
    for (Tensor& part : parts) {
      if (holds_torch(part)) continue;
      part = from_torch(to_torch(part).to(device, to_torch(compute), /*non_blocking=*/false,
                                          /*copy=*/true));
    }
  };
  own(weights);
  own(biases);
  weight_.parts = std::move(weights);
  bias_.parts = std::move(biases);
}

size_t TorchWeight::size_bytes() const {
  return (weight_.value.defined() ? weight_.value.nbytes() : 0) +
         (bias_.value.defined() ? bias_.value.nbytes() : 0);
}

const at::Tensor& TorchWeight::resolve(Joined& joined) const {
  if (joined.parts.empty()) return joined.value;
  at::AutoGradMode with_graph(true);
  std::vector<at::Tensor> parts;
  std::vector<std::pair<int64_t, bool>> key;
  for (const Tensor& part : joined.parts) {
    parts.push_back(to_torch(part));
    key.emplace_back(static_cast<int64_t>(parts.back()._version()), parts.back().requires_grad());
  }
  if (joined.value.defined() && key == joined.key) return joined.value;
  at::Tensor value = parts.size() == 1 ? parts[0] : at::cat(parts, 0);
  value = value.to(device_, to_torch(compute_));
  if (value.dim() == 4) value = value.contiguous(at::MemoryFormat::ChannelsLast);
  if (value.dim() == 5) value = value.contiguous(at::MemoryFormat::ChannelsLast3d);
  joined.value = value;
  joined.key = std::move(key);
  return joined.value;
}

void TorchWeight::drop(bool frozen) const {
  for (Joined* joined : {&weight_, &bias_}) {
    bool learns = false;
    for (const Tensor& part : joined->parts) learns = learns || to_torch(part).requires_grad();
    if (!learns && !frozen) continue;
    joined->key.clear();
    joined->value.reset();
  }
}

void AutogradExecutor::drop_conversions(bool frozen) {
  std::erase_if(weights_, [](const auto& weight) { return weight.expired(); });
  for (const auto& weight : weights_) {
    if (const auto held = weight.lock()) held->drop(frozen);
  }
}

void AutogradExecutor::do_prepare(Linear& linear, const PrepareOptions& options) {
  const auto weight =
      std::make_shared<TorchWeight>(linear.weights, linear.biases, options.compute, torch_device_);
  weights_.push_back(weight);
  linear.prepared = weight;
}

void AutogradExecutor::do_prepare(Conv& conv, const PrepareOptions& options) {
  std::vector<Tensor> biases;
  if (conv.bias.defined()) biases.push_back(conv.bias);
  const auto weight = std::make_shared<TorchWeight>(std::vector<Tensor>{conv.weight}, biases,
                                                    options.compute, torch_device_);
  weights_.push_back(weight);
  conv.prepared = weight;
}

// --- memory ------------------------------------------------------------------------------------

AutogradExecutor::AutogradExecutor(const AutogradOptions& options)
    : options_(options), torch_device_(to_torch(options.device)) {
  // Training meets few shapes, each many times: convolutions are worth a search.
  if (!torch_device_.is_cpu()) at::globalContext().setBenchmarkCuDNN(true);
}

std::string AutogradExecutor::description() const {
  return fmt::format("autograd (libtorch {}, {})", TORCH_VERSION, device_name(options_.device));
}

Arena::Stats AutogradExecutor::memory() const {
  Arena::Stats stats;
  if (torch_device_.is_cpu()) return stats;
  const auto device = at::accelerator::getDeviceStats(torch_device_.index());
  constexpr auto kAll = static_cast<size_t>(at::CachingAllocator::StatType::AGGREGATE);
  stats.reserved_bytes = static_cast<size_t>(device.reserved_bytes[kAll].current);
  stats.used_bytes = static_cast<size_t>(device.allocated_bytes[kAll].current);
  stats.peak_bytes = static_cast<size_t>(device.allocated_bytes[kAll].peak);
  stats.slab_requests = device.num_device_alloc;
  stats.live_tensors = device.allocation[kAll].current;
  return stats;
}

void AutogradExecutor::synchronize() {
  if (!torch_device_.is_cpu()) at::accelerator::synchronizeDevice(torch_device_.index());
}

Tensor AutogradExecutor::do_empty(DType dtype, const Shape& shape) {
  return from_torch(
      at::empty(sizes_of(shape), at::TensorOptions(to_torch(dtype)).device(torch_device_)));
}

Tensor AutogradExecutor::do_to_device(const Tensor& host, DType dtype) {
  const at::Tensor x = to_torch(host);
  // A leaf stays itself, so that later changes of it are seen and gradients reach it.
  if (holds_torch(host) && x.device() == torch_device_ && host.dtype() == dtype &&
      host.contiguous()) {
    return host;
  }
  UF_CHECK(!x.requires_grad() || !x.is_leaf(),
           "to_device: {} takes gradients, so it must be {} on {}", host.to_string(),
           dtype_name(dtype), device_name(options_.device));
  return from_torch(x.to(torch_device_, to_torch(dtype), /*non_blocking=*/false, /*copy=*/true,
                         at::MemoryFormat::Contiguous));
}

Tensor AutogradExecutor::do_to_host(const Tensor& x) {
  return from_torch(to_torch(x).detach().to(at::kCPU).contiguous());
}

void AutogradExecutor::do_fill_zero(const Tensor& x) { to_torch(x).zero_(); }

// In place, as part of the graph: the tensor behind the handle gets the copy as its history.
void AutogradExecutor::do_copy(const Tensor& destination, const Tensor& source) {
  UF_CHECK(holds_torch(destination), "copy: {} is no tensor of this executor",
           destination.to_string());
  to_torch(destination).copy_(to_torch(source));
}

// --- products ----------------------------------------------------------------------------------

at::Tensor activated(at::Tensor x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kGeluErf:
      return at::gelu(x, "none");
  }
  return x;
}

Tensor AutogradExecutor::do_linear(const Tensor& x, const Linear& weight, Activation activation) {
  return from_torch(activated(product(in(x), weight), activation));
}

Tensor AutogradExecutor::do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) {
  const at::Tensor joined =
      in(x)
          .view({x.dim(0), x.dim(1) / frames, frames, x.dim(2), x.dim(3), x.dim(4)})
          .permute({0, 1, 3, 4, 2, 5})
          .reshape({x.dim(0), x.dim(1) / frames, x.dim(2), x.dim(3), x.dim(4) * frames});
  return from_torch(product(joined, weight));
}

Tensor AutogradExecutor::do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) {
  const int64_t channels = weight.out_features / frames;
  return dense(product(in(x), weight)
                   .view({x.dim(0), x.dim(1), x.dim(2), x.dim(3), frames, channels})
                   .permute({0, 1, 4, 2, 3, 5})
                   .reshape({x.dim(0), x.dim(1) * frames, x.dim(2), x.dim(3), channels}));
}

// --- norms and residuals -----------------------------------------------------------------------

Tensor AutogradExecutor::do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                       float eps) {
  const at::Tensor input = in(x);
  return from_torch(at::layer_norm(
      input, {x.dim(-1)}, optional_as(input, weight.defined() ? in(weight) : at::Tensor()),
      optional_as(input, bias.defined() ? in(bias) : at::Tensor()), static_cast<double>(eps)));
}

Tensor AutogradExecutor::do_layer_norm_modulate(const Tensor& x, const Tensor& shift,
                                                const Tensor& scale, float eps) {
  return from_torch(
      autograd::layer_norm_modulate(in(x), in(shift), in(scale), static_cast<double>(eps)));
}

Tensor AutogradExecutor::do_rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  const at::Tensor input = in(x);
  return from_torch(
      at::rms_norm(input, {x.dim(-1)}, optional_as(input, in(weight)), static_cast<double>(eps)));
}

Tensor AutogradExecutor::do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) {
  if (!gate.defined()) return from_torch(in(x) + in(y));
  return from_torch(autograd::gated_residual(in(x), in(y), in(gate)));
}

Tensor AutogradExecutor::do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) {
  const at::Tensor input = in(x).to(at::kFloat);
  const at::Tensor norm = at::linalg_vector_norm(input, 2, {-1}, /*keepdim=*/true);
  const at::Tensor scale = in(gamma)*std::sqrt(static_cast<double>(x.dim(-1)));
  at::Tensor y = input / norm.clamp_min(1e-12) * scale;
  if (silu) y = at::silu(y);
  return from_torch(y.to(to_torch(x.dtype())));
}

}  // namespace autograd
}  // namespace ultraflash
