#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

namespace ultraflash {

namespace {

// Products inside the network. Embeddings, heads and norms are no maps between hidden states, and
// Muon's equal singular values are wrong for them.
bool under_muon(const std::string& name, const at::Tensor& leaf) {
  return leaf.dim() == 2 && name.find("blocks.") != std::string::npos &&
         name.find("embedding") == std::string::npos;
}

}  // namespace

at::Tensor orthogonalized(const at::Tensor& x) {
  constexpr double kA = 3.4445;
  constexpr double kB = -4.7750;
  constexpr double kC = 2.0315;
  const bool tall = x.size(1) > x.size(2);
  at::Tensor y = tall ? x.transpose(1, 2) : x;
  if (!x.is_cpu()) y = y.to(at::kBFloat16);
  y = y / (at::linalg_vector_norm(y, 2, {1, 2}, /*keepdim=*/true) + 1e-7);
  for (int i = 0; i < 5; ++i) {
    const at::Tensor square = at::bmm(y, y.transpose(1, 2));
    const at::Tensor factor = at::baddbmm(square, square, square, kB, kC);
    y = at::baddbmm(y, factor, y, kA);
  }
  return (tall ? y.transpose(1, 2) : y).to(x.scalar_type());
}

Optimizer::Optimizer(ParameterSet& parameters, const OptimizerConfig& config)
    : parameters_(parameters), config_(config) {
  Group decayed{{}, config.weight_decay};
  Group plain;
  const std::vector<std::string> names = parameters.names();
  std::map<std::pair<int64_t, int64_t>, size_t> shapes;
  for (const at::Tensor& leaf : parameters.leaves()) {
    const size_t index = first_.size();
    first_.push_back(at::zeros_like(leaf, at::TensorOptions().requires_grad(false)));
    second_.push_back(at::zeros_like(leaf, at::TensorOptions().requires_grad(false)));
    if (config.rule == OptimizerRule::kMuon && under_muon(names[index], leaf)) {
      const auto [found, fresh] = shapes.try_emplace({leaf.size(0), leaf.size(1)}, stacks_.size());
      if (fresh) stacks_.emplace_back();
      stacks_[found->second].members.push_back(index);
      continue;
    }
    // Vectors (biases, norms) are not pulled to zero.
    (leaf.dim() >= 2 ? decayed : plain).members.push_back(index);
  }
  for (Group* group : {&decayed, &plain}) {
    if (!group->members.empty()) groups_.push_back(std::move(*group));
  }
  for (Stack& stack : stacks_) {
    std::vector<at::Tensor> parts;
    for (const size_t i : stack.members) parts.push_back(first_[i]);
    stack.momentum = at::stack(parts);
    for (size_t n = 0; n < stack.members.size(); ++n) {
      first_[stack.members[n]] = stack.momentum.select(0, static_cast<int64_t>(n));
    }
  }
  updates_ = at::zeros({}, at::TensorOptions(at::kFloat).device(parameters.device()));
}

at::Tensor Optimizer::step(double learning_rate) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor>& leaves = parameters_.leaves();
  std::vector<at::Tensor> gradients;
  gradients.reserve(leaves.size());
  for (const at::Tensor& leaf : leaves) {
    gradients.push_back(leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf));
  }
  const at::Tensor norm = at::stack(at::_foreach_norm(gradients, 2)).norm();
  const at::Tensor good = at::isfinite(norm);
  const at::Tensor bad = good.logical_not().to(at::kFloat);
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
  for (const Stack& stack : stacks_) {
    step_stack(stack, gradients, good, learning_rate * config_.matrix_lr);
  }
  mark_changed(leaves);
  zero_grad();
  return norm;
}

// The update has the same mean square whatever the shape, that of a typical AdamW step (0.2 times
// the rate), so that both rules share rates and weight decay. Liu et al., Muon is scalable for LLM
// training (2025), section 2.2.
void Optimizer::step_stack(const Stack& stack, const std::vector<at::Tensor>& gradients,
                           const at::Tensor& good, double learning_rate) {
  std::vector<at::Tensor> parts, weights;
  for (const size_t i : stack.members) {
    parts.push_back(gradients[i]);
    weights.push_back(parameters_.leaves()[i].detach());
  }
  const at::Tensor gradient = at::stack(parts);
  const at::Tensor momentum = at::lerp(stack.momentum, gradient, 1.0 - config_.momentum);
  at::Tensor update = orthogonalized(at::lerp(gradient, momentum, config_.momentum));
  const auto longer = static_cast<double>(std::max(gradient.size(1), gradient.size(2)));
  update = update * (0.2 * std::sqrt(longer));
  stack.momentum.copy_(at::where(good, momentum, stack.momentum));
  // weight - rate * (update + decay * weight), and nothing where the gradient is not finite.
  const at::Tensor all = at::stack(weights);
  const at::Tensor change = (update + config_.weight_decay * all) * (-learning_rate);
  at::_foreach_add_(weights, at::where(good, change, 0.0).unbind(0));
}

void Optimizer::zero_grad() {
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
