// Stage 3b: the causal transformer learns to jump from the noise levels of the step list to the end
// of the bidirectional teacher's trajectory. wan-self-forcing 8.8. Trajectories are made here, by
// the frozen teacher, and kept on the device in a ring.
#include <algorithm>
#include <cmath>

#include "ops/autograd/torch_tensor.h"
#include "train/latent_bank.h"
#include "train/objective.h"
#include "train/rollout.h"
#include "train/step_cost.h"

namespace ultraflash {
namespace {

enum : int64_t { kIndexDraw = 1, kPairDraw = 2, kTrajectoryNoise = 3 };

class OdeObjective final : public Objective {
 public:
  explicit OdeObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    const GeneratorSpec& spec = context_.recipe.generator;
    UF_ASSIGN(plan_, RolloutPlan::make(context_));
    for (size_t i = 0; i < spec.denoising_steps.size(); ++i) {
      const int64_t place = (1000 - spec.denoising_steps[i]) * config.ode.teacher_steps;
      const double sigma = shifted(
          1.0 - static_cast<double>(place) / 1000.0 / static_cast<double>(config.ode.teacher_steps),
          config.ode.teacher_shift);
      if (place % 1000 != 0 || std::abs(sigma - plan_.sigmas[i]) > 1e-5) {
        return make_status(StatusCode::kInvalidArgument,
                           "ode: the teacher's {} steps with shift {} do not pass the recipe's "
                           "step {} (sigma {})",
                           config.ode.teacher_steps, config.ode.teacher_shift,
                           spec.denoising_steps[i], plan_.sigmas[i]);
      }
      keep_.push_back(place / 1000);
    }
    UF_ASSIGN(text_, TextNetwork::open(context_, config.init.text_encoder, false));
    UF_ASSIGN(teacher_, GeneratorNetwork::open(context_, config.init.real_score, false));
    UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, true));
    UF_ASSIGN(averaged_, GeneratorNetwork::open(context_, config.init.generator, false));
    trained_.name = "generator";
    trained_.parameters = generator_.parameters;
    trained_.begin(config.optimizer, &config.ema);
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context_));
    tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
    return {};
  }

  std::vector<TrainedSet*> sets() override { return {&trained_}; }

  Status start(int64_t first_step) override {
    const OdeConfig& c = context_.config.ode;
    first_step_ = first_step;
    next_group_ = c.refresh_every > 0 ? first_step / c.refresh_every : 0;
    for (int64_t i = 0; i < groups(); ++i) make_group();
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const TrainConfig& config = context_.config;
    if (config.ode.refresh_every > 0 && step > first_step_ &&
        step % config.ode.refresh_every == 0) {
      make_group();
    }
    // Pairs, and for each chunk which level of the trajectory it starts from.
    const int64_t frames = config.bank.latent_frames;
    const auto levels = static_cast<int64_t>(keep_.size());
    StepRandom random(context_, step, kIndexDraw);
    at::Tensor places = at::empty({config.batch}, at::kLong);
    at::Tensor rows = at::empty({config.batch, frames}, at::kLong);
    std::vector<double> sigmas;
    std::vector<const TokenRow*> tokens;
    for (int64_t i = 0; i < config.batch; ++i) {
      const int64_t place = random.below(config.ode.pairs);
      places.mutable_data_ptr<int64_t>()[i] = place;
      tokens.push_back(&captions_[static_cast<size_t>(place)]);
      int64_t level = 0;
      for (int64_t frame = 0; frame < frames; ++frame) {
        if (frame % plan_.chunk_frames == 0) level = random.below(levels);
        rows.mutable_data_ptr<int64_t>()[i * frames + frame] =
            (place * (levels + 1) + level) * frames + frame;
        sigmas.push_back(plan_.sigmas[static_cast<size_t>(level)]);
      }
    }
    const std::vector<int64_t> sizes = trajectories_.sizes().vec();
    const at::Tensor final_latents =
        trajectories_.select(1, levels).index_select(0, places.to(context_.device)).to(at::kFloat);
    const at::Tensor x = trajectories_.reshape({-1, sizes[3], sizes[4], sizes[5]})
                             .index_select(0, rows.reshape({-1}).to(context_.device))
                             .reshape(final_latents.sizes())
                             .to(at::kFloat);
    Tensor embeddings;
    {
      const at::NoGradGuard no_grad;
      embeddings = text_.run(context_, CaptionTokenizer::batch(tokens));
    }
    const TextKv text = generator_.text(context_, embeddings);
    const at::Tensor v = generator_.chunk_causal(context_, x, sigmas, text);
    const at::Tensor x0 = x - sigma_tensor(context_, sigmas, config.batch) * v;
    const at::Tensor loss = (x0 - final_latents).square().mean();
    loss.backward();
    meter.add("loss", loss);
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  // With the teacher's trajectories, spread over the steps between them.
  [[nodiscard]] double step_cost() const override {
    const OdeConfig& c = context_.config.ode;
    double cost = kForwardAndBackward *
                  forward_cost(context_, context_.config.batch, Visibility::kChunkCausal);
    if (c.refresh_every > 0) {
      const double passes = (c.guidance == 1.0 ? 1.0 : 2.0) * static_cast<double>(c.teacher_steps);
      cost += passes * forward_cost(context_, c.make_batch, Visibility::kAll) /
              static_cast<double>(c.refresh_every);
    }
    return cost;
  }

  [[nodiscard]] bool samples() const override { return true; }
  void begin_sampling() override { averaged_.parameters->assign(trained_.best()); }

  at::Tensor sample(const at::Tensor& noise, const TokenBatch& tokens) override {
    return roll_out_whole(context_, averaged_, plan_, noise, text_.run(context_, tokens));
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    return publish_sets(context_, out, {{trained_, context_.recipe.generator.checkpoint}});
  }

 private:
  [[nodiscard]] int64_t groups() const {
    return context_.config.ode.pairs / context_.config.ode.make_batch;
  }
  [[nodiscard]] at::Tensor noise_of(int64_t count) const {
    const GeneratorSpec& spec = context_.recipe.generator;
    return at::randn({count, context_.config.bank.latent_frames, spec.latent_height,
                      spec.latent_width, spec.network.in_dim},
                     context_.f32());
  }

  // Trajectories of group `next_group_`, which depend on its number alone.
  void make_group() {
    const OdeConfig& c = context_.config.ode;
    const at::NoGradGuard no_grad;
    const int64_t place = next_group_ % groups() * c.make_batch;
    const int64_t first_clip = (next_group_ * context_.ranks() + context_.rank()) * c.make_batch;
    captions_.resize(static_cast<size_t>(c.pairs));
    StepRandom random(context_, next_group_, kPairDraw);
    std::vector<const TokenRow*> rows;
    for (int64_t i = 0; i < c.make_batch; ++i) {
      TokenRow& row = captions_[static_cast<size_t>(place + i)];
      row = tokenizer_->encode(clips_->caption(first_clip + i, random.below(16), /*full=*/false));
      rows.push_back(&row);
    }
    const std::vector<const TokenRow*> none(rows.size(), &tokenizer_->empty());
    const TextKv text = teacher_.text(context_, text_.run(context_, CaptionTokenizer::batch(rows)));
    const TextKv empty =
        teacher_.text(context_, text_.run(context_, CaptionTokenizer::batch(none)));
    context_.seed_step(next_group_, kTrajectoryNoise);
    std::vector<at::Tensor> states;
    at::Tensor end =
        sample_bidirectional(context_, teacher_, noise_of(c.make_batch), text, empty,
                             c.teacher_steps, c.teacher_shift, c.guidance, keep_, &states);
    states.push_back(std::move(end));
    const at::Tensor group = at::stack(states, 1);  // [n, levels + 1, frames, h, w, c]
    if (!trajectories_.defined()) {
      std::vector<int64_t> sizes = group.sizes().vec();
      sizes[0] = c.pairs;
      trajectories_ = at::empty(sizes, group.options().dtype(at::kBFloat16));
    }
    trajectories_.narrow(0, place, c.make_batch).copy_(group);
    ++next_group_;
  }

  TrainContext& context_;
  RolloutPlan plan_;
  std::vector<int64_t> keep_;  // teacher steps whose states are kept
  TextNetwork text_;
  GeneratorNetwork teacher_, generator_, averaged_;
  TrainedSet trained_;
  std::unique_ptr<TrainingClips> clips_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  int64_t first_step_ = 0;
  int64_t next_group_ = 0;
  at::Tensor trajectories_;  // bf16 [pairs, levels + 1, frames, h, w, c]; the last is the end
  std::vector<TokenRow> captions_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_ode_objective(TrainContext& context) {
  return open_objective<OdeObjective>(context);
}

}  // namespace ultraflash
