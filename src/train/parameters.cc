#include "train/parameters.h"

#include <utility>

#include "core/check.h"
#include "ops/autograd/torch_tensor.h"
#include "weights/safetensors_writer.h"

namespace ultraflash {
Result<Tensor> ParameterSet::find(const ParameterSpec& spec) {
  const auto position = index_.find(spec.name);
  if (position != index_.end()) return from_torch(leaves_[position->second]);
  if (base_ == nullptr) {
    return make_status(StatusCode::kNotFound, "no parameter {}", spec.name);
  }
  UF_ASSIGN(const Tensor stored, base_->find(spec));
  if (!stored.defined()) return stored;
  if (stored.shape() != spec.shape) return stored;  // the binder reports it
  // Detached: a copy of a trained set would keep its graph, and with it what gathers gradients.
  at::Tensor leaf = to_torch(stored).detach().to(device_, at::kFloat, /*non_blocking=*/false,
                                                 /*copy=*/true);
  leaf.set_requires_grad(trainable_);
  index_[spec.name] = leaves_.size();
  names_.push_back(spec.name);
  leaves_.push_back(leaf);
  return from_torch(leaf);
}

int64_t ParameterSet::parameter_count() const {
  int64_t count = 0;
  for (const at::Tensor& leaf : leaves_) count += leaf.numel();
  return count;
}

const at::Tensor& ParameterSet::leaf(const std::string& name) const {
  const auto position = index_.find(name);
  UF_CHECK(position != index_.end(), "no parameter {}", name);
  return leaves_[position->second];
}

void ParameterSet::assign(const std::vector<at::Tensor>& values) {
  UF_CHECK(values.size() == leaves_.size(), "{} values for {} parameters", values.size(),
           leaves_.size());
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < values.size(); ++i) leaves_[i].copy_(values[i]);
}

void mark_changed(const std::vector<at::Tensor>& leaves) {
  for (const at::Tensor& leaf : leaves) leaf.unsafeGetTensorImpl()->bump_version();
}

Status save_parameters(const std::filesystem::path& path, const std::vector<std::string>& names,
                       const std::vector<at::Tensor>& values, DType dtype,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < names.size(); ++i) {
    tensors.push_back(
        {names[i], from_torch(values[i].detach().to(at::kCPU, to_torch(dtype)).contiguous())});
  }
  return save_safetensors(path, tensors, metadata);
}

}  // namespace ultraflash
