// Stage 2: the text encoder and the bidirectional transformer together, by flow matching:
// x = (1 - s) z + s e, target e - z. Sigmas are logit-normal and shifted; a share of them is
// uniform, so that every level is seen.
#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "train/generator.h"
#include "train/latent_bank.h"
#include "train/objective.h"
#include "train/step_cost.h"

namespace ultraflash {
namespace {

constexpr int64_t kSigmaPurpose = 1;
constexpr int64_t kUnseenPurpose = 2;

class FlowMatchingObjective final : public Objective {
 public:
  explicit FlowMatchingObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(autoencoder_, FrozenAutoencoder::open(context_));
    UF_ASSIGN(text_, TextNetwork::open(context_, config.init.text_encoder, true));
    UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, true));
    UF_ASSIGN(averaged_text_, TextNetwork::open(context_, config.init.text_encoder, false));
    UF_ASSIGN(averaged_generator_, GeneratorNetwork::open(context_, config.init.generator, false));
    trained_text_.name = "text_encoder";
    trained_text_.parameters = text_.parameters;
    trained_generator_.name = "generator";
    trained_generator_.parameters = generator_.parameters;
    if (!text_.prepared) trained_text_.begin(config.optimizer, &config.ema);
    trained_generator_.begin(config.optimizer, &config.ema);
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(unseen_, TrainingClips::open(context_, /*unseen=*/true));
    UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context_));
    tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
    bank_ = std::make_unique<LatentBank>(context_, autoencoder_, *clips_, *tokenizer_);
    return {};
  }

  std::vector<TrainedSet*> sets() override {
    if (text_.prepared) return {&trained_generator_};
    return {&trained_text_, &trained_generator_};
  }

  Status start(int64_t first_step) override {
    bank_->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const TrainConfig& config = context_.config;
    bank_->advance(step);
    const LatentBatch batch = bank_->sample(step, config.batch, config.flow.text_dropout);
    const std::vector<double> sigmas = draw_sigmas(step, config.batch);
    context_.seed_step(step);
    const at::Tensor noise = at::randn_like(batch.latents);
    const at::Tensor x =
        add_noise(batch.latents, noise, sigma_tensor(context_, sigmas, config.batch));
    const TextKv text = generator_.text(context_, text_.run(context_, batch.tokens));
    const at::Tensor v = generator_.bidirectional(context_, x, sigmas, text);
    const at::Tensor loss = (v - (noise - batch.latents)).square().mean();
    loss.backward();
    meter.add("loss", loss);
    if (!text_.prepared) meter.add("gradient_norm_text", trained_text_.update(lr_factor));
    meter.add("gradient_norm", trained_generator_.update(lr_factor));
  }

  [[nodiscard]] double step_cost() const override {
    return kForwardAndBackward * forward_cost(context_, context_.config.batch, Visibility::kAll);
  }

  Measures evaluate() override {
    // The same clips and noise every time, so that the curve shows the network alone.
    const at::NoGradGuard no_grad;
    const int64_t count = std::max<int64_t>(context_.config.flow.sample_clips, 1);
    use_average();
    if (!unseen_latents_.defined()) {
      unseen_latents_ = latents_of(context_, autoencoder_, *unseen_, count);
    }
    const TextKv text =
        averaged_generator_.text(context_, averaged_text_.run(context_, unseen_tokens(count)));
    context_.seed_step(0, kUnseenPurpose);
    const at::Tensor noise = at::randn_like(unseen_latents_);
    Measures measures;
    double sum = 0.0;
    constexpr std::array<double, 3> kLevels = {0.2, 0.5, 0.8};
    for (const double sigma : kLevels) {
      const std::vector<double> sigmas(static_cast<size_t>(count), sigma);
      const at::Tensor x = at::lerp(unseen_latents_, noise, sigma);
      const at::Tensor v = averaged_generator_.bidirectional(context_, x, sigmas, text);
      const double loss = (v - (noise - unseen_latents_)).square().mean().item<double>();
      measures.emplace_back(fmt::format("unseen_loss_{:.1f}", sigma), loss);
      sum += loss / static_cast<double>(kLevels.size());
    }
    measures.emplace_back("unseen_loss", sum);
    return measures;
  }

  [[nodiscard]] bool samples() const override { return true; }
  void begin_sampling() override { use_average(); }

  at::Tensor sample(const at::Tensor& noise, const TokenBatch& tokens) override {
    const FlowConfig& flow = context_.config.flow;
    const std::vector<const TokenRow*> none(static_cast<size_t>(noise.size(0)),
                                            &tokenizer_->empty());
    const TextKv text = averaged_generator_.text(context_, averaged_text_.run(context_, tokens));
    const TextKv empty = averaged_generator_.text(
        context_, averaged_text_.run(context_, CaptionTokenizer::batch(none)));
    return sample_bidirectional(context_, averaged_generator_, noise, text, empty,
                                flow.sample_steps, flow.sample_shift, flow.guidance);
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    std::vector<PublishedSet> sets;
    if (!text_.prepared) sets.push_back({trained_text_, context_.recipe.text.checkpoint});
    sets.push_back({trained_generator_, context_.recipe.generator.checkpoint});
    return publish_sets(context_, out, sets);
  }

 private:
  std::vector<double> draw_sigmas(int64_t step, int64_t count) const {
    const FlowConfig& flow = context_.config.flow;
    StepRandom random(context_, step, kSigmaPurpose);
    std::vector<double> sigmas;
    for (int64_t i = 0; i < count; ++i) {
      const bool uniform = random.uniform() < flow.uniform_share;
      const double u = random.uniform();
      const double drawn = logit_normal(flow, random);
      sigmas.push_back(shifted(uniform ? u : drawn, flow.shift));
    }
    return sigmas;
  }

  void use_average() {
    if (!text_.prepared) averaged_text_.parameters->assign(trained_text_.best());
    averaged_generator_.parameters->assign(trained_generator_.best());
  }

  [[nodiscard]] TokenBatch unseen_tokens(int64_t count) const {
    std::vector<TokenRow> rows;
    for (int64_t i = 0; i < count; ++i) {
      rows.push_back(tokenizer_->encode(unseen_->caption(i, 0, /*full=*/true)));
    }
    return CaptionTokenizer::batch(rows);
  }

  TrainContext& context_;
  FrozenAutoencoder autoencoder_;
  TextNetwork text_, averaged_text_;
  GeneratorNetwork generator_, averaged_generator_;
  TrainedSet trained_text_, trained_generator_;
  std::unique_ptr<TrainingClips> clips_, unseen_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  at::Tensor unseen_latents_;
  std::unique_ptr<LatentBank> bank_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_flow_matching_objective(TrainContext& context) {
  return open_objective<FlowMatchingObjective>(context);
}

}  // namespace ultraflash
