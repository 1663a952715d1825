#include "train/reward.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "train/pictures.h"

namespace ultraflash {
namespace {

constexpr const char* kMean = "reference.mean";
constexpr const char* kDeviation = "reference.std";
constexpr const char* kLately = "distance.lately";
constexpr const char* kBefore = "distance.before";
constexpr double kMemory = 0.98;  // of the distance's running mean, a call

std::string stage_conv(size_t stage, int index) {
  return fmt::format("stages.{}.conv.{}", stage, index);
}

}  // namespace

const CheckpointSpec& RewardNetwork::checkpoint() {
  static const CheckpointSpec spec = [] {
    CheckpointSpec s;
    s.files = {"reward.safetensors"};
    return s;
  }();
  return spec;
}

Result<RewardNetwork> RewardNetwork::open(const TrainContext& context, const std::string& init,
                                          bool trainable) {
  RewardNetwork network;
  network.widths_ = context.config.reward.widths;
  network.parameters_ = std::make_shared<ParameterSet>(context.device, trainable);
  network.statistics_ = std::make_shared<ParameterSet>(context.device, /*trainable=*/false);
  const auto bind = [&](Loader loader) {
    const auto conv = [&](const std::string& name, const Shape& shape, float gain) {
      (void)loader.binder().parameter(name + ".weight", shape, scaled_fan_in(shape, gain));
      (void)loader.binder().parameter(name + ".bias", {shape[0]}, ParameterInit::zeros());
    };
    int64_t in = 3;
    for (size_t i = 0; i < network.widths_.size(); ++i) {
      const int64_t out = network.widths_[i];
      conv(stage_conv(i, 0), {out, in, 3, 3}, 1.4142135F);
      conv(stage_conv(i, 2), {out, out, 3, 3}, 0.5F);  // added to its input
      in = out;
    }
    conv("head", {1, in, 1, 1}, 1.0F);
  };
  UF_TRY(bind_network(context, *network.parameters_, init, checkpoint(), {"reference."}, bind));
  UF_TRY(bind_network(context, *network.statistics_, init, checkpoint(), {"stages.", "head."},
                      [](Loader loader) {
                        (void)loader.binder().parameter(kMean, {1}, ParameterInit::zeros());
                        (void)loader.binder().parameter(kDeviation, {1}, ParameterInit::ones());
                      }));
  return network;
}

at::Tensor RewardNetwork::convolved(const at::Tensor& x, const std::string& name,
                                    int64_t stride) const {
  const at::Tensor weight = parameters_->leaf(name + ".weight").to(x.scalar_type());
  const at::Tensor bias = parameters_->leaf(name + ".bias").to(x.scalar_type());
  return at::conv2d(x, weight, bias, stride, weight.size(2) / 2);
}

std::vector<at::Tensor> RewardNetwork::stages(const TrainContext& context,
                                              const at::Tensor& pictures) const {
  std::vector<at::Tensor> result;
  at::Tensor x = (pictures * 2.0 - 1.0).to(to_torch(context.compute)).permute({0, 3, 1, 2});
  for (size_t i = 0; i < widths_.size(); ++i) {
    const at::Tensor y = at::silu(convolved(x, stage_conv(i, 0), 2));
    x = at::silu(y + convolved(y, stage_conv(i, 2), 1));
    result.push_back(x);  // [n, width, height / 2^(i + 1), width / 2^(i + 1)]
  }
  return result;
}

at::Tensor RewardNetwork::scores(const TrainContext& context, const at::Tensor& pictures) const {
  const std::vector<at::Tensor> hidden = stages(context, pictures);
  return convolved(hidden.back().to(at::kFloat), "head", 1).mean({1, 2, 3});
}

at::Tensor RewardNetwork::standardised(const TrainContext& context,
                                       const at::Tensor& pictures) const {
  return (scores(context, pictures) - statistics_->leaf(kMean)) / statistics_->leaf(kDeviation);
}

at::Tensor RewardNetwork::distance(const TrainContext& context, const at::Tensor& a,
                                   const at::Tensor& b) const {
  const std::vector<at::Tensor> both = stages(context, at::cat({a, b}));
  at::Tensor sum;
  for (const at::Tensor& hidden : both) {
    const at::Tensor x = hidden.to(at::kFloat);
    const at::Tensor unit = x / (x.square().sum(1, /*keepdim=*/true) + 1e-10).sqrt();
    const std::vector<at::Tensor> halves = unit.chunk(2);
    const at::Tensor apart = (halves[0] - halves[1]).square().sum(1).mean({1, 2});
    sum = sum.defined() ? sum + apart : apart;
  }
  return sum / static_cast<double>(both.size());
}

double RewardNetwork::forward_cost(int64_t side) const {
  double cost = 0.0;
  int64_t in = 3;
  for (const int64_t out : widths_) {
    side = (side + 1) / 2;
    cost += 2.0 * 9.0 * static_cast<double>(side * side * out * (in + out));
    in = out;
  }
  return cost;
}

Status RewardNetwork::save(const TrainContext& context, const std::filesystem::path& path,
                           const std::vector<at::Tensor>& weights, const at::Tensor& mean,
                           const at::Tensor& deviation) const {
  std::vector<std::string> names = parameters_->names();
  std::vector<at::Tensor> values = weights;
  names.insert(names.end(), {kMean, kDeviation});
  values.push_back(mean.reshape({1}));
  values.push_back(deviation.reshape({1}));
  return save_parameters(
      path, names, values, DType::kF32,
      {{"format", "pt"},
       {"source", fmt::format("ultraflash train, {}", stage_name(context.config.stage))}});
}

// --- RewardTerm ----------------------------------------------------------------------------------

Result<std::unique_ptr<RewardTerm>> RewardTerm::open(const TrainContext& context) {
  const TrainConfig& config = context.config;
  if (config.reward_term.weight == 0.0) return std::unique_ptr<RewardTerm>();
  std::unique_ptr<RewardTerm> term(new RewardTerm(context));
  UF_ASSIGN(term->network_, RewardNetwork::open(context, config.init.reward, /*trainable=*/false));
  // Two numbers that no optimizer touches, kept in checkpoints as a trained set is.
  term->state_.name = "reward_term";
  term->state_.parameters = std::make_shared<ParameterSet>(context.device, /*trainable=*/false);
  RandomSource zeros(0);
  term->state_.parameters->bind_from(&zeros);
  Binder binder(*term->state_.parameters, "the reward's state");
  for (const char* name : {kLately, kBefore}) {
    (void)binder.parameter(name, {1}, ParameterInit::zeros());
  }
  term->state_.parameters->bind_from(nullptr);
  UF_TRY(binder.finish());
  term->state_.begin({}, nullptr);
  return term;
}

at::Tensor RewardTerm::loss(const at::Tensor& made, const at::Tensor& truth, Meter& meter) {
  const RewardTermConfig& c = context_.config.reward_term;
  const double growth = c.full > c.from ? (context_.progress - c.from) / (c.full - c.from)
                                        : (context_.progress >= c.from ? 1.0 : 0.0);
  const double weight = c.weight * std::clamp(growth, 0.0, 1.0);
  const at::AutoGradMode counts(weight > 0.0);
  const Windows windows = busiest_windows(truth, context_.config.reward.crop);
  const at::Tensor shown = cropped(made, windows).clamp(0.0, 1.0);
  const at::Tensor score = network_.standardised(context_, shown);
  at::Tensor open;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor now =
        network_.distance(context_, shown.detach(), cropped(truth, windows)).mean().reshape({1});
    if (context_.parallel) context_.parallel->average(now);
    const at::Tensor lately = state_.parameters->leaf(kLately);
    const at::Tensor before = state_.parameters->leaf(kBefore);
    lately.copy_(at::where(lately > 0.0, at::lerp(now, lately, kMemory), now));
    // Until the reward counts, now is before; so is the first call of a run that began later.
    before.copy_(weight == 0.0 ? lately : at::where(before > 0.0, before, lately));
    open = (lately <= (1.0 + c.tolerance) * before).to(at::kFloat);
    meter.add("reward", score.mean());
    meter.add("reward_distance", now);
    meter.add("reward_open", open);
  }
  return -weight * (open * score.clamp_max(c.limit)).mean();
}

}  // namespace ultraflash
