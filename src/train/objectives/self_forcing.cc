// Stage 4: the causal generator learns on its own rollouts, against the distribution of the
// bidirectional teacher. wan-self-forcing 8.2 to 8.6.
#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "train/discriminator.h"
#include "train/distillation.h"
#include "train/latent_bank.h"
#include "train/objective.h"
#include "train/rollout.h"

namespace ultraflash {
namespace {

enum : int64_t { kGeneratorDraw = 1, kCriticDraw = 2, kSheetDraw = 3 };

class SelfForcingObjective final : public Objective {
 public:
  explicit SelfForcingObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(plan_, RolloutPlan::make(context_));
    if (config.bank.latent_frames % plan_.chunk_frames != 0) {
      return make_status(StatusCode::kInvalidArgument,
                         "bank.latent_frames {} is no multiple of the recipe's chunks of {}",
                         config.bank.latent_frames, plan_.chunk_frames);
    }
    gan_ = config.self_forcing.loss == DistillationLoss::kGan;
    // The other losses need no clips, and the autoencoder for sheets alone.
    if (gan_ || config.flow.sample_clips > 0) {
      UF_ASSIGN(autoencoder_, FrozenAutoencoder::open(context_));
    }
    UF_ASSIGN(text_, TextNetwork::open(context_, config.init.text_encoder, false));
    UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, true));
    UF_ASSIGN(averaged_, GeneratorNetwork::open(context_, config.init.generator, false));
    UF_ASSIGN(fake_, GeneratorNetwork::open(context_, config.init.real_score, true));
    UF_ASSIGN(real_, GeneratorNetwork::open(context_, config.init.real_score, false));
    trained_generator_.name = "generator";
    trained_generator_.parameters = generator_.parameters;
    trained_generator_.begin(config.optimizer, &config.ema);
    trained_fake_.name = "fake_score";
    trained_fake_.parameters = fake_.parameters;
    trained_fake_.begin(config.critic_optimizer, nullptr);
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(unseen_, TrainingClips::open(context_, /*unseen=*/true));
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
    if (step % config.critic_per_generator == 0) update_generator(step, lr_factor, meter);
    update_critic(step, lr_factor, meter);
  }

  std::optional<RgbImage> sheet() override {
    const int64_t count = context_.config.flow.sample_clips;
    if (count == 0) return std::nullopt;
    const at::NoGradGuard no_grad;
    averaged_.parameters->assign(trained_generator_.best());
    std::vector<TokenRow> rows;
    for (int64_t i = 0; i < count; ++i) {
      rows.push_back(tokenizer_->encode(unseen_->caption(i, 0, /*full=*/true)));
      context_.log.info(fmt::format("sheet row {}: {}", i + 1, unseen_->caption(i, 0, true)));
    }
    context_.seed_step(0, kSheetDraw);
    const std::vector<int64_t> last(chunks(), static_cast<int64_t>(plan_.timesteps.size()) - 1);
    const at::Tensor x =
        roll_out(context_, averaged_, plan_, draw_noise(count), embed(rows), last, false);
    return clip_sheet(autoencoder_.decode(context_, x), 8);
  }

  [[nodiscard]] bool samples() const override { return true; }
  void begin_sampling() override { averaged_.parameters->assign(trained_generator_.best()); }
  at::Tensor sample(const at::Tensor& noise, const TokenBatch& tokens) override {
    return roll_out_whole(context_, averaged_, plan_, noise, text_.run(context_, tokens));
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    const std::filesystem::path path = out / context_.recipe.generator.checkpoint.files[0];
    UF_TRY(save_parameters(path, generator_.parameters->names(), trained_generator_.best(),
                           DType::kBF16,
                           {{"format", "pt"}, {"source", "ultraflash train, self_forcing"}}));
    return std::vector{path};
  }

 private:
  struct Draw {
    std::vector<TokenRow> rows;
    std::vector<int64_t> exits;
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
    const auto steps = static_cast<int64_t>(plan_.timesteps.size());
    for (size_t i = 0; i < chunks(); ++i) {
      const bool repeat = i > 0 && config.self_forcing.same_exit_step;
      result.exits.push_back(repeat ? result.exits[0] : random.below(steps));
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

  [[nodiscard]] at::Tensor draw_noise(int64_t count) const {
    const GeneratorSpec& spec = context_.recipe.generator;
    return at::randn({count, context_.config.bank.latent_frames, spec.latent_height,
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

  void update_generator(int64_t step, double lr_factor, Meter& meter) {
    const TrainConfig& config = context_.config;
    const SelfForcingConfig& c = config.self_forcing;
    const Draw d = draw(step, kGeneratorDraw);
    context_.seed_step(step, kGeneratorDraw);
    const Tensor embeddings = embed(d.rows);
    const at::Tensor x = roll_out(context_, generator_, plan_, draw_noise(config.batch), embeddings,
                                  d.exits, /*gradient=*/true);
    const at::Tensor sigma = sigma_tensor(context_, d.sigmas, config.batch);
    const at::Tensor noise = at::randn_like(x);
    Tensor empty;
    {
      const std::vector<TokenRow> none(static_cast<size_t>(config.batch), tokenizer_->empty());
      empty = embed(none);
    }
    at::Tensor loss;
    const auto scores_of = [&](const at::Tensor& x_t) {
      const at::Tensor fake = estimate(fake_, x_t, d.sigmas, sigma, embeddings);
      const at::Tensor guided = estimate(real_, x_t, d.sigmas, sigma, embeddings);
      const at::Tensor unguided = estimate(real_, x_t, d.sigmas, sigma, empty);
      return Scores{fake, guided + c.guidance * (guided - unguided)};
    };
    if (gan_) {
      loss = c.gan_weight * adversarial_loss(discriminator_.logits(
                                context_, fake_, add_noise(x, noise, sigma), d.sigmas, embeddings));
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
    const Tensor embeddings = embed(d.rows);
    const at::Tensor x = roll_out(context_, generator_, plan_, draw_noise(config.batch), embeddings,
                                  d.exits, /*gradient=*/false);
    const at::Tensor sigma = sigma_tensor(context_, d.sigmas, config.batch);
    const at::Tensor noise = at::randn_like(x);
    const at::Tensor x_t = add_noise(x, noise, sigma);
    at::Tensor loss;
    if (gan_) {
      // Real clips at the same noise levels, with captions of their own.
      const LatentBatch clips = bank_->sample(step, config.batch, 0.0);
      Tensor real_embeddings;
      {
        const at::NoGradGuard no_grad;
        real_embeddings = text_.run(context_, clips.tokens);
      }
      at::Tensor v;
      const at::Tensor fake = discriminator_.logits(context_, fake_, x_t, d.sigmas, embeddings, &v);
      const at::Tensor real = discriminator_.logits(
          context_, fake_, add_noise(clips.latents, noise, sigma), d.sigmas, real_embeddings);
      const at::Tensor adversarial = discriminator_loss(real, fake);
      loss = (v - (noise - x)).square().mean() + config.self_forcing.gan_weight * adversarial;
      meter.add("discriminator_loss", adversarial);
    } else {
      const TextKv text = fake_.text(context_, embeddings);
      const at::Tensor v = fake_.bidirectional(context_, x_t, d.sigmas, text);
      loss = (v - (noise - x)).square().mean();
    }
    loss.backward();
    if (gan_) trained_heads_.update(lr_factor);
    meter.add("critic_loss", loss);
    meter.add("critic_gradient_norm", trained_fake_.update(lr_factor));
  }

  TrainContext& context_;
  RolloutPlan plan_;
  FrozenAutoencoder autoencoder_;
  TextNetwork text_;
  GeneratorNetwork generator_, averaged_, fake_, real_;
  TrainedSet trained_generator_, trained_fake_;
  std::unique_ptr<TrainingClips> clips_, unseen_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  bool gan_ = false;
  Discriminator discriminator_;
  TrainedSet trained_heads_;
  std::unique_ptr<LatentBank> bank_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_self_forcing_objective(TrainContext& context) {
  auto objective = std::make_unique<SelfForcingObjective>(context);
  UF_TRY(objective->bind());
  return std::unique_ptr<Objective>(std::move(objective));
}

}  // namespace ultraflash
