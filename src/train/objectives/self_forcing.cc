// Stage 4: the causal generator learns on its own rollouts, against the distribution of the
// bidirectional teacher. wan-self-forcing 8.2 to 8.6.
#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "train/discriminator.h"
#include "train/distillation.h"
#include "train/latent_bank.h"
#include "train/objective.h"
#include "train/rollout.h"
#include "train/step_cost.h"

namespace ultraflash {
namespace {

enum : int64_t { kGeneratorDraw = 1, kCriticDraw = 2, kExitDraw = 16 };

class SelfForcingObjective final : public Objective {
 public:
  explicit SelfForcingObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(plan_, RolloutPlan::make(context_));
    gan_ = config.self_forcing.loss == DistillationLoss::kGan;
    const bool sampled = config.flow.sample_clips > 0 || config.evaluate.captions > 0;
    // The other losses need no clips.
    if (gan_) {
      UF_ASSIGN(autoencoder_, FrozenAutoencoder::open(context_));
    }
    UF_ASSIGN(text_, TextNetwork::open(context_, config.init.text_encoder, false));
    UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, true));
    if (sampled) {
      UF_ASSIGN(averaged_, generator_.copy(context_, false));
    }
    UF_ASSIGN(fake_, GeneratorNetwork::open(context_, config.init.real_score, true));
    if (!gan_) {
      UF_ASSIGN(real_, fake_.copy(context_, false));
    }
    trained_generator_.name = "generator";
    trained_generator_.parameters = generator_.parameters;
    trained_generator_.begin(config.optimizer, &config.ema);
    trained_fake_.name = "fake_score";
    trained_fake_.parameters = fake_.parameters;
    trained_fake_.begin(config.critic_optimizer, nullptr);
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context_));
    tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
    if (gan_) {
      UF_ASSIGN(discriminator_, Discriminator::make(context_));
      trained_heads_.name = "discriminator";
      trained_heads_.parameters = discriminator_.parameters();
      trained_heads_.begin(config.critic_optimizer, nullptr);
      bank_ = std::make_unique<LatentBank>(context_, autoencoder_, *clips_, *tokenizer_);
    }
    return {};
  }

  std::vector<TrainedSet*> sets() override {
    if (gan_) return {&trained_generator_, &trained_fake_, &trained_heads_};
    return {&trained_generator_, &trained_fake_};
  }

  Status start(int64_t first_step) override {
    if (bank_) bank_->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const SelfForcingConfig& config = context_.config.self_forcing;
    if (bank_) bank_->advance(step);
    const int64_t update = step - config.critic_first_steps;
    if (update >= 0 && update % config.critic_per_generator == 0) {
      update_generator(step, lr_factor, meter);
    }
    // The critic's rate has a schedule of its own.
    const OptimizerConfig& critic = context_.config.critic_optimizer;
    const double progress = static_cast<double>(step) /
                            static_cast<double>(std::max<int64_t>(context_.config.steps, 1));
    update_critic(step, learning_rate_factor(critic, step, progress), meter);
  }

  // Of DMD: the critic on a rollout each step; every critic_per_generator steps a rollout of which
  // one pass is differentiated, and the scores of the fake and (twice) the real network. SiD and
  // GAN differentiate their scores too, which is not counted.
  [[nodiscard]] double step_cost() const override {
    const TrainConfig& config = context_.config;
    const double all = forward_cost(context_, config.batch, Visibility::kAll);
    const double causal = forward_cost(context_, config.batch, Visibility::kChunkCausal);
    const auto steps = static_cast<int64_t>(plan_.timesteps.size());
    // A stream leads on average over half of what stream_frames has more, through every step.
    const double lead = 0.5 *
                        static_cast<double>(std::max<int64_t>(
                            config.self_forcing.stream_frames - config.bank.latent_frames, 0)) /
                        static_cast<double>(config.bank.latent_frames);
    const double rollout =
        causal * (rollout_passes(context_, steps) + lead * static_cast<double>(steps + 1));
    return rollout + kForwardAndBackward * all +
           (rollout + (kForwardAndBackward - 1.0) * causal + 3.0 * all) /
               static_cast<double>(config.self_forcing.critic_per_generator);
  }

  [[nodiscard]] bool samples() const override { return true; }
  void begin_sampling() override { averaged_.parameters->assign(trained_generator_.best()); }
  at::Tensor sample(const at::Tensor& noise, const TokenBatch& tokens) override {
    return roll_out_whole(context_, averaged_, plan_, noise, text_.run(context_, tokens));
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    return publish_sets(context_, out,
                        {{trained_generator_, context_.recipe.generator.checkpoint}});
  }

 private:
  struct Draw {
    std::vector<TokenRow> rows;
    std::vector<int64_t> exits;
    int64_t lead_frames = 0;  // of the stream before the clip that is scored
    std::vector<double> sigmas;
  };

  [[nodiscard]] size_t chunks() const {
    return static_cast<size_t>(context_.config.bank.latent_frames / plan_.chunk_frames);
  }

  // Captions, exit steps and noise levels of one update.
  Draw draw(int64_t step, int64_t purpose) const {
    const TrainConfig& config = context_.config;
    StepRandom random(context_, step, purpose);
    Draw result;
    // The steps that a rollout takes decide how long it is: no rank shall wait for another.
    StepRandom exits = StepRandom::shared(context_, step, purpose + kExitDraw);
    const auto steps = static_cast<int64_t>(plan_.timesteps.size());
    for (size_t i = 0; i < chunks(); ++i) {
      const bool repeat = i > 0 && config.self_forcing.same_exit_step;
      result.exits.push_back(repeat ? result.exits[0] : exits.below(steps));
    }
    if (config.self_forcing.stream_frames > 0) {
      const int64_t most =
          (config.self_forcing.stream_frames - config.bank.latent_frames) / plan_.chunk_frames;
      result.lead_frames = exits.below(most + 1) * plan_.chunk_frames;
    }
    for (int64_t i = 0; i < config.batch; ++i) {
      const int64_t clip = random.below(int64_t{1} << 30);
      result.rows.push_back(
          tokenizer_->encode(clips_->caption(clip, random.below(16), /*full=*/false)));
      const double sigma = shifted(random.uniform(), config.self_forcing.timestep_shift);
      result.sigmas.push_back(
          std::clamp(sigma, config.self_forcing.min_sigma, config.self_forcing.max_sigma));
    }
    return result;
  }

  [[nodiscard]] Tensor embed(const std::vector<TokenRow>& rows) const {
    const at::NoGradGuard no_grad;
    std::vector<const TokenRow*> pointers;
    for (const TokenRow& row : rows) pointers.push_back(&row);
    return text_.run(context_, CaptionTokenizer::batch(pointers));
  }

  [[nodiscard]] at::Tensor draw_noise(int64_t count, int64_t lead_frames) const {
    const GeneratorSpec& spec = context_.recipe.generator;
    return at::randn({count, lead_frames + context_.config.bank.latent_frames, spec.latent_height,
                      spec.latent_width, spec.network.in_dim},
                     context_.f32());
  }

  // x0 estimate of a score network.
  at::Tensor estimate(const GeneratorNetwork& score, const at::Tensor& x,
                      const std::vector<double>& sigmas, const at::Tensor& sigma,
                      const Tensor& embeddings) const {
    const TextKv text = score.text(context_, embeddings);
    return x - sigma * score.bidirectional(context_, x, sigmas, text);
  }

  // What one update is about: the text of the rollout and, for the GAN objective, the clips that
  // really have that text.
  struct Subject {
    Tensor embeddings;
    at::Tensor real;  // f32 [batch, frames, h, w, c]; undefined without
  };
  Subject subject(const Draw& d, int64_t step, int64_t purpose) const {
    if (!gan_) return {embed(d.rows), {}};
    const LatentBatch clips = bank_->sample(step, context_.config.batch, 0.0, purpose);
    const at::NoGradGuard no_grad;
    return {text_.run(context_, clips.tokens), clips.latents};
  }

  // The discriminator's logits of two noised batches with the same text and noise levels, from one
  // pass of the trunk. `flow` receives its prediction for the first.
  std::pair<at::Tensor, at::Tensor> logits_of(const at::Tensor& first, const at::Tensor& second,
                                              const Draw& d, const Tensor& embeddings,
                                              at::Tensor* flow = nullptr) const {
    std::vector<double> sigmas = d.sigmas;
    sigmas.insert(sigmas.end(), d.sigmas.begin(), d.sigmas.end());
    const at::Tensor text = to_torch(embeddings);
    at::Tensor v;
    const at::Tensor logits = discriminator_.logits(context_, fake_, at::cat({first, second}),
                                                    sigmas, from_torch(at::cat({text, text})), &v);
    const int64_t batch = first.size(0);
    if (flow != nullptr) *flow = v.narrow(0, 0, batch);
    return {logits.narrow(0, 0, batch), logits.narrow(0, batch, batch)};
  }

  void update_generator(int64_t step, double lr_factor, Meter& meter) {
    const TrainConfig& config = context_.config;
    const SelfForcingConfig& c = config.self_forcing;
    const Draw d = draw(step, kGeneratorDraw);
    context_.seed_step(step, kGeneratorDraw);
    const Subject about = subject(d, step, kGeneratorDraw);
    const at::Tensor x =
        roll_out(context_, generator_, plan_, draw_noise(config.batch, d.lead_frames),
                 about.embeddings, d.exits, /*gradient=*/true);
    const at::Tensor sigma = sigma_tensor(context_, d.sigmas, config.batch);
    const at::Tensor noise = at::randn_like(x);
    at::Tensor loss;
    const auto scores_of = [&](const at::Tensor& x_t) {
      const std::vector<TokenRow> none(static_cast<size_t>(config.batch), tokenizer_->empty());
      const at::Tensor fake = estimate(fake_, x_t, d.sigmas, sigma, about.embeddings);
      const at::Tensor guided = estimate(real_, x_t, d.sigmas, sigma, about.embeddings);
      const at::Tensor unguided = estimate(real_, x_t, d.sigmas, sigma, embed(none));
      return Scores{fake, guided + c.guidance * (guided - unguided)};
    };
    if (gan_) {
      const at::Tensor real = add_noise(about.real, at::randn_like(x), sigma);
      const auto [fake_logits, real_logits] =
          logits_of(add_noise(x, noise, sigma), real, d, about.embeddings);
      loss = c.gan_weight * adversarial_loss(real_logits, fake_logits, c.gan_relativistic);
    } else if (c.loss == DistillationLoss::kSid) {
      loss = sid_loss(x, scores_of(add_noise(x, noise, sigma)), c.sid_alpha);
    } else {
      Scores scores;
      {
        const at::NoGradGuard no_grad;
        scores = scores_of(add_noise(x.detach(), noise, sigma));
      }
      loss = dmd_loss(x, scores);
      meter.add("score_gap", (scores.fake - scores.real).abs().mean());
    }
    loss.backward();
    // The gradients of SiD and GAN pass through the scores.
    trained_fake_.optimizer->zero_grad();
    if (gan_) trained_heads_.optimizer->zero_grad();
    meter.add("generator_loss", loss);
    meter.add("gradient_norm", trained_generator_.update(lr_factor));
  }

  void update_critic(int64_t step, double lr_factor, Meter& meter) {
    const TrainConfig& config = context_.config;
    const Draw d = draw(step, kCriticDraw);
    context_.seed_step(step, kCriticDraw);
    const Subject about = subject(d, step, kCriticDraw);
    const at::Tensor x =
        roll_out(context_, generator_, plan_, draw_noise(config.batch, d.lead_frames),
                 about.embeddings, d.exits, /*gradient=*/false);
    const at::Tensor sigma = sigma_tensor(context_, d.sigmas, config.batch);
    const at::Tensor noise = at::randn_like(x);
    const at::Tensor x_t = add_noise(x, noise, sigma);
    const auto denoising_loss = [&](const at::Tensor& v) {
      return (v - (noise - x)).square().mean();
    };
    at::Tensor loss;
    if (gan_) {
      loss = discriminate(x_t, add_noise(about.real, noise, sigma), d, about.embeddings,
                          denoising_loss, meter);
    } else {
      const TextKv text = fake_.text(context_, about.embeddings);
      loss = denoising_loss(fake_.bidirectional(context_, x_t, d.sigmas, text));
    }
    loss.backward();
    if (gan_) trained_heads_.update(lr_factor * config.self_forcing.discriminator_lr_ratio);
    meter.add("critic_loss", loss);
    meter.add("critic_gradient_norm", trained_fake_.update(lr_factor));
  }

  template <typename DenoisingLoss>
  at::Tensor discriminate(const at::Tensor& fake, const at::Tensor& real, const Draw& d,
                          const Tensor& embeddings, const DenoisingLoss& denoising_loss,
                          Meter& meter) const {
    const SelfForcingConfig& c = context_.config.self_forcing;
    at::Tensor flow;
    const auto [fake_logits, real_logits] = logits_of(fake, real, d, embeddings, &flow);
    const at::Tensor adversarial = discriminator_loss(real_logits, fake_logits, c.gan_relativistic);
    meter.add("discriminator_loss", adversarial);
    meter.add("logit_gap", (real_logits - fake_logits).mean());
    at::Tensor loss = c.gan_critic_weight * adversarial;
    if (c.gan_denoising_weight > 0.0) loss = loss + c.gan_denoising_weight * denoising_loss(flow);
    // Added at half their weight, as in the reference.
    const auto add_penalty = [&](const char* name, double weight, double deviation,
                                 const at::Tensor& x, const at::Tensor& logits) {
      if (weight == 0.0) return;
      const at::Tensor disturbed = discriminator_.logits(
          context_, fake_, x + deviation * at::randn_like(x), d.sigmas, embeddings);
      const at::Tensor penalty = slope_penalty(logits, disturbed, deviation);
      meter.add(name, penalty);
      loss = loss + 0.5 * weight * penalty;
    };
    add_penalty("r1", c.gan_r1_weight, c.gan_r1_sigma, real, real_logits);
    add_penalty("r2", c.gan_r2_weight, c.gan_r2_sigma, fake, fake_logits);
    return loss;
  }

  TrainContext& context_;
  RolloutPlan plan_;
  FrozenAutoencoder autoencoder_;
  TextNetwork text_;
  GeneratorNetwork generator_, averaged_, fake_, real_;
  TrainedSet trained_generator_, trained_fake_;
  std::unique_ptr<TrainingClips> clips_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  bool gan_ = false;
  Discriminator discriminator_;
  TrainedSet trained_heads_;
  std::unique_ptr<LatentBank> bank_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_self_forcing_objective(TrainContext& context) {
  return open_objective<SelfForcingObjective>(context);
}

}  // namespace ultraflash
