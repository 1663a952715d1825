#include "train/optimizer.h"

#include <algorithm>

namespace ultraflash {

AdamW::AdamW(ParameterSet& parameters, const OptimizerConfig& config)
    : parameters_(parameters), config_(config) {
  Group decayed{{}, config.weight_decay};
  Group plain;
  for (const at::Tensor& leaf : parameters.leaves()) {
    // Vectors (biases, norms) are not pulled to zero.
    (leaf.dim() >= 2 ? decayed : plain).members.push_back(first_.size());
    first_.push_back(at::zeros_like(leaf, at::TensorOptions().requires_grad(false)));
    second_.push_back(at::zeros_like(leaf, at::TensorOptions().requires_grad(false)));
  }
  for (Group* group : {&decayed, &plain}) {
    if (!group->members.empty()) groups_.push_back(std::move(*group));
  }
  updates_ = at::zeros({}, at::TensorOptions(at::kFloat).device(parameters.device()));
}

at::Tensor AdamW::step(double learning_rate) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor>& leaves = parameters_.leaves();
  std::vector<at::Tensor> gradients;
  gradients.reserve(leaves.size());
  for (const at::Tensor& leaf : leaves) {
    gradients.push_back(leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf));
  }
  const at::Tensor norm = at::stack(at::_foreach_norm(gradients, 2)).norm();
  const at::Tensor bad = at::isfinite(norm).logical_not().to(at::kFloat);
  if (config_.clip_norm > 0.0) {
    at::_foreach_mul_(gradients, (config_.clip_norm / (norm + 1e-6)).clamp_max(1.0));
  }
  updates_.add_(1.0 - bad);
  for (const Group& group : groups_) {
    std::vector<at::Tensor> p, g, m, v;
    for (const size_t i : group.members) {
      p.push_back(leaves[i].detach());
      g.push_back(gradients[i]);
      m.push_back(first_[i]);
      v.push_back(second_[i]);
    }
    const std::vector<at::Tensor> updates(group.members.size(), updates_);
    at::_fused_adamw_(p, g, m, v, {}, updates, learning_rate, config_.beta1, config_.beta2,
                      group.weight_decay, config_.eps, /*amsgrad=*/false, /*maximize=*/false,
                      /*grad_scale=*/{}, /*found_inf=*/bad);
  }
  mark_changed(leaves);
  zero_grad();
  return norm;
}

void AdamW::zero_grad() {
  for (const at::Tensor& leaf : parameters_.leaves()) leaf.mutable_grad().reset();
}

WeightAverage::WeightAverage(const ParameterSet& parameters, const EmaConfig& config)
    : config_(config) {
  for (const at::Tensor& leaf : parameters.leaves()) values_.push_back(leaf.detach().clone());
}

void WeightAverage::update(const ParameterSet& parameters, int64_t update) {
  const at::NoGradGuard no_grad;
  double decay = 0.0;
  if (update >= config_.start_step) {
    const auto n = static_cast<double>(update - config_.start_step);
    decay = config_.ramp ? std::min(config_.decay, (1.0 + n) / (10.0 + n)) : config_.decay;
  }
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& leaf : parameters.leaves()) leaves.push_back(leaf.detach());
  at::_foreach_lerp_(values_, leaves, 1.0 - decay);
}

}  // namespace ultraflash
