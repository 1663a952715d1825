#include "train/refiner_scores.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

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
  const at::NoGradGuard no_grad;
  const std::vector<double> sigmas = draw_sigmas(step, kScoreDraw);
  const at::Tensor sigma = sigma_tensor(context_, sigmas, x.size(0));
  const at::Tensor x_t = add_noise(x, at::randn_like(x), sigma);
  const auto estimate = [&](const Refiner& refiner, const Tensor& text) {
    const RefinerNetwork& network = refiner.at(scale);
    return x_t - sigma * network.dense(context_, x_t, y, sigmas, network.text(context_, text));
  };
  const at::Tensor fake = estimate(fake_, embeddings);
  const at::Tensor real = estimate(real_, embeddings);
  const at::Tensor without = estimate(real_, no_text);
  // The two parts of the update: matching, and augmentation by guidance.
  meter.add("matching_part", (fake - real).abs().mean());
  meter.add("augmentation_part", (real - without).abs().mean());
  return {fake, at::lerp(without, real, context_.config.sr_sparse.guidance)};
}

void RefinerScores::learn(int64_t step, int64_t scale, const at::Tensor& x, const at::Tensor& y,
                          const Tensor& embeddings, Meter& meter) {
  const std::vector<double> sigmas = draw_sigmas(step, kFakeDraw);
  const at::Tensor noise = at::randn_like(x);
  const at::Tensor x_t = add_noise(x, noise, sigma_tensor(context_, sigmas, x.size(0)));
  const RefinerNetwork& network = fake_.at(scale);
  const at::Tensor v = network.dense(context_, x_t, y, sigmas, network.text(context_, embeddings));
  const at::Tensor loss = (v - (noise - x)).square().mean();
  loss.backward();
  meter.add("fake_loss", loss);
  const OptimizerConfig& critic = context_.config.critic_optimizer;
  meter.add("fake_gradient_norm",
            trained_fake_.update(learning_rate_factor(critic, step, context_.progress)));
}

}  // namespace ultraflash
