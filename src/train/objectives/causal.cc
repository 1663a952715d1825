// Stage 3a: the bidirectional transformer becomes causal. Every chunk has its own noise level and
// sees noisy chunks before it (diffusion forcing) or clean ones (teacher forcing).
#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "train/latent_bank.h"
#include "train/objective.h"
#include "train/rollout.h"
#include "train/step_cost.h"

namespace ultraflash {
namespace {

enum : int64_t { kLevelDraw = 1, kCleanDraw = 2 };

class CausalObjective final : public Objective {
 public:
  explicit CausalObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(plan_, RolloutPlan::make(context_));
    UF_ASSIGN(autoencoder_, FrozenAutoencoder::open(context_));
    UF_ASSIGN(text_, TextNetwork::open(context_, config.init.text_encoder, false));
    UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, true));
    UF_ASSIGN(averaged_, GeneratorNetwork::open(context_, config.init.generator, false));
    trained_.name = "generator";
    trained_.parameters = generator_.parameters;
    trained_.begin(config.optimizer, &config.ema);
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context_));
    tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
    bank_ = std::make_unique<LatentBank>(context_, autoencoder_, *clips_, *tokenizer_);
    return {};
  }

  std::vector<TrainedSet*> sets() override { return {&trained_}; }

  Status start(int64_t first_step) override {
    bank_->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const TrainConfig& config = context_.config;
    bank_->advance(step);
    const LatentBatch batch = bank_->sample(step, config.batch, config.flow.text_dropout);
    const std::vector<double> sigmas = draw_levels(step);
    context_.seed_step(step);
    const at::Tensor noise = at::randn_like(batch.latents);
    const at::Tensor sigma = sigma_tensor(context_, sigmas, config.batch);
    const at::Tensor x = add_noise(batch.latents, noise, sigma);
    Tensor embeddings;
    {
      const at::NoGradGuard no_grad;
      embeddings = text_.run(context_, batch.tokens);
    }
    const TextKv text = generator_.text(context_, embeddings);
    at::Tensor v;
    if (config.causal.mode == CausalMode::kDiffusionForcing) {
      v = generator_.chunk_causal(context_, x, sigmas, text);
    } else {
      const std::vector<double> clean_sigmas(sigmas.size(), clean_level(step));
      at::Tensor clean = batch.latents;
      if (clean_sigmas[0] > 0.0) clean = at::lerp(clean, at::randn_like(clean), clean_sigmas[0]);
      v = generator_.teacher_forcing(context_, clean, x, clean_sigmas, sigmas, text);
    }
    const at::Tensor loss = (v - (noise - batch.latents)).square().mean();
    loss.backward();
    meter.add("loss", loss);
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  [[nodiscard]] double step_cost() const override {
    const bool teacher = context_.config.causal.mode == CausalMode::kTeacherForcing;
    return kForwardAndBackward *
           forward_cost(context_, context_.config.batch,
                        teacher ? Visibility::kTeacherForcing : Visibility::kChunkCausal);
  }

  [[nodiscard]] bool samples() const override { return true; }
  void begin_sampling() override { averaged_.parameters->assign(trained_.best()); }

  at::Tensor sample(const at::Tensor& noise, const TokenBatch& tokens) override {
    // Many re-noised steps: what the few-step list would show is a matter of the next stages.
    RolloutPlan plan = plan_;
    plan.timesteps.clear();
    plan.sigmas.clear();
    for (int64_t i = 0; i < context_.config.flow.sample_steps; ++i) {
      const double u =
          1.0 - static_cast<double>(i) / static_cast<double>(context_.config.flow.sample_steps);
      plan.sigmas.push_back(shifted(u, context_.config.flow.sample_shift));
      plan.timesteps.push_back(plan.sigmas.back() * static_cast<double>(FlowMatchSchedule::kSteps));
    }
    return roll_out_whole(context_, averaged_, plan, noise, text_.run(context_, tokens));
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    return publish_sets(context_, out, {{trained_, context_.recipe.generator.checkpoint}});
  }

 private:
  // One level a chunk, repeated for its frames.
  std::vector<double> draw_levels(int64_t step) const {
    const FlowConfig& flow = context_.config.flow;
    StepRandom random(context_, step, kLevelDraw);
    std::vector<double> sigmas;
    const int64_t chunks =
        context_.config.batch * context_.config.bank.latent_frames / plan_.chunk_frames;
    for (int64_t i = 0; i < chunks; ++i) {
      const bool uniform = random.uniform() < flow.uniform_share;
      const double u = random.uniform();
      const double drawn = logit_normal(flow, random);
      const double sigma = shifted(uniform ? u : drawn, flow.shift);
      sigmas.insert(sigmas.end(), static_cast<size_t>(plan_.chunk_frames), sigma);
    }
    return sigmas;
  }
  [[nodiscard]] double clean_level(int64_t step) const {
    return context_.config.causal.clean_noise * StepRandom(context_, step, kCleanDraw).uniform();
  }

  TrainContext& context_;
  RolloutPlan plan_;
  FrozenAutoencoder autoencoder_;
  TextNetwork text_;
  GeneratorNetwork generator_, averaged_;
  TrainedSet trained_;
  std::unique_ptr<TrainingClips> clips_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  std::unique_ptr<LatentBank> bank_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_causal_objective(TrainContext& context) {
  return open_objective<CausalObjective>(context);
}

}  // namespace ultraflash
