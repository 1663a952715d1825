#include "train/refiner_scores.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "train/generator.h"

namespace ultraflash {
namespace {

enum : int64_t { kScoreDraw = 111, kFakeDraw = 112 };

}  // namespace

Result<std::unique_ptr<RefinerScores>> RefinerScores::open(const TrainContext& context,
                                                           const std::string& teacher) {
  std::unique_ptr<RefinerScores> scores(new RefinerScores(context));
  UF_ASSIGN(scores->real_, Refiner::open(context, teacher, /*trainable=*/false));
  UF_ASSIGN(scores->fake_, scores->real_.copy(context, /*trainable=*/true));
  scores->trained_fake_.name = "fake_score";
  scores->trained_fake_.parameters = scores->fake_.parameters;
  scores->trained_fake_.begin(context.config.critic_optimizer, nullptr);
  return scores;
}

std::vector<double> RefinerScores::draw_sigmas(int64_t step, int64_t purpose) const {
  const SrSparseConfig& c = context_.config.sr_sparse;
  StepRandom random(context_, step, purpose);
  std::vector<double> sigmas;
  for (int64_t i = 0; i < context_.config.batch; ++i) {
    sigmas.push_back(
        std::clamp(shifted(random.uniform(), c.timestep_shift), c.min_sigma, c.max_sigma));
  }
  return sigmas;
}

Scores RefinerScores::of(int64_t step, int64_t scale, const at::Tensor& x, const at::Tensor& y,
                         const Tensor& embeddings, const Tensor& no_text, Meter& meter) const {
  const std::vector<double> sigmas = draw_sigmas(step, kScoreDraw);
  const StepResult result =
      graphs_->run(fmt::format("scores {}x", scale),
                   {x, y, to_torch(embeddings), to_torch(no_text), at::tensor(sigmas, at::kDouble)},
                   [&](const std::vector<at::Tensor>& inputs) { return estimates(scale, inputs); });
  result.report(meter);
  return {result.tensors[0], result.tensors[1]};
}

StepResult RefinerScores::estimates(int64_t scale, const std::vector<at::Tensor>& inputs) const {
  const at::NoGradGuard no_grad;
  const at::Tensor sigma = per_sample(inputs[4]);
  const at::Tensor x_t = add_noise(inputs[0], at::randn_like(inputs[0]), sigma);
  const auto estimate = [&](const Refiner& refiner, const at::Tensor& text) {
    const RefinerNetwork& network = refiner.at(scale);
    return x_t - sigma * network.dense(context_, x_t, inputs[1], inputs[4],
                                       network.text(context_, from_torch(text)));
  };
  const at::Tensor fake = estimate(fake_, inputs[2]);
  const at::Tensor real = estimate(real_, inputs[2]);
  const at::Tensor without = estimate(real_, inputs[3]);
  StepResult result;
  // The two parts of the update: matching, and augmentation by guidance.
  result.add("matching_part", (fake - real).abs().mean());
  result.add("augmentation_part", (real - without).abs().mean());
  result.tensors = {fake, at::lerp(without, real, context_.config.sr_sparse.guidance)};
  return result;
}

void RefinerScores::learn(int64_t step, int64_t scale, const at::Tensor& x, const at::Tensor& y,
                          const Tensor& embeddings, Meter& meter) {
  const std::vector<double> sigmas = draw_sigmas(step, kFakeDraw);
  const StepResult result = graphs_->run(
      fmt::format("fake score {}x", scale), *trained_fake_.parameters,
      {x, y, to_torch(embeddings), at::tensor(sigmas, at::kDouble)},
      [&](const std::vector<at::Tensor>& inputs) { return learn_flow(scale, inputs); });
  result.report(meter);
  const OptimizerConfig& critic = context_.config.critic_optimizer;
  meter.add("fake_gradient_norm",
            trained_fake_.update(learning_rate_factor(critic, step, context_.progress)));
}

StepResult RefinerScores::learn_flow(int64_t scale, const std::vector<at::Tensor>& inputs) const {
  const at::Tensor loss =
      fake_.at(scale).flow_loss(context_, inputs[0], inputs[1], inputs[3], inputs[2]);
  loss.backward();
  StepResult result;
  result.add("fake_loss", loss);
  return result;
}

}  // namespace ultraflash
