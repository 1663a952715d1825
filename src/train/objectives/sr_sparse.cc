// The super-resolution transformer becomes what streams run: block-sparse and causal, and one step
// from noise to latents. ultra-flash-training section 4. First the flow loss alone, until the
// network is used to reading few blocks; then the student's one step, by regression onto the true
// latents and their pictures, and by distribution matching: a frozen dense network (real) and one
// that learns the student's output (fake) score what it makes.
#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "train/distillation.h"
#include "train/objective.h"
#include "train/refiner_data.h"

namespace ultraflash {
namespace {

enum : int64_t { kGroupDraw = 1, kPictureDraw = 2, kScoreDraw = 3, kFakeDraw = 4 };

class SrSparseObjective final : public Objective {
 public:
  explicit SrSparseObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(data_, RefinerData::open(context_));
    UF_ASSIGN(student_, Refiner::open(context_, config.init.refiner, /*trainable=*/true));
    UF_ASSIGN(averaged_, student_.copy(context_, /*trainable=*/false));
    trained_.name = "refiner";
    trained_.parameters = student_.parameters;
    trained_.begin(config.optimizer, &config.ema);
    matching_ = config.sr_sparse.dmd > 0.0;
    if (!matching_) return {};
    // A student that goes on from another run has its dense teacher elsewhere.
    const std::string& teacher =
        config.init.real_score.empty() ? config.init.refiner : config.init.real_score;
    UF_ASSIGN(real_, Refiner::open(context_, teacher, /*trainable=*/false));
    UF_ASSIGN(fake_, real_.copy(context_, /*trainable=*/true));
    trained_fake_.name = "fake_score";
    trained_fake_.parameters = fake_.parameters;
    trained_fake_.begin(config.critic_optimizer, nullptr);
    return {};
  }

  std::vector<TrainedSet*> sets() override {
    if (matching_) return {&trained_, &trained_fake_};
    return {&trained_};
  }

  Status start(int64_t first_step) override {
    data_->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const SrSparseConfig& c = context_.config.sr_sparse;
    data_->advance(step);
    const Group group = draw_group(step);
    if (context_.progress < c.adaptation) {
      adapt(step, group, lr_factor, meter);
      return;
    }
    if (!matching_ || step % c.critic_per_student == 0) {
      update_student(step, group, lr_factor, meter);
    }
    if (matching_) update_fake(step, group, meter);
  }

  Measures evaluate() override {
    averaged_.parameters->assign(trained_.best());
    return data_->evaluate(
        [&](int64_t scale, const at::Tensor& y, const Tensor& embeddings,
            const RefinerData::Add& add) { add("refined", stream(scale, y, embeddings)); });
  }

  std::optional<RgbImage> sheet() override { return data_->sheet(); }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    const CascadeSpec* cascade = context_.recipe.cascade(context_.config.cascade.scales[0]);
    return publish_sets(context_, out, {{trained_, cascade->refiner->checkpoint}});
  }

 private:
  // Clips of one step: one group of frames, or two of which the first fills the caches alone.
  struct Group {
    int64_t scale = 2;
    int64_t frames = 6;  // of one group
    int64_t groups = 1;
    SparseBudget budget;
    RefinerData::Batch batch;

    /// Frames of the group that learns.
    [[nodiscard]] at::Tensor last(const at::Tensor& x) const {
      return x.narrow(1, (groups - 1) * frames, frames);
    }
  };

  [[nodiscard]] Group draw_group(int64_t step) const {
    const SrSparseConfig& c = context_.config.sr_sparse;
    // Groups of one length on every rank.
    StepRandom random = StepRandom::shared(context_, step, kGroupDraw);
    Group group;
    group.scale = data_->of_step(step).scale;
    group.frames = c.group_frames[static_cast<size_t>(
        random.below(static_cast<int64_t>(c.group_frames.size())))];
    group.groups = random.uniform() < c.stream_share ? 2 : 1;
    group.budget.kv_len = 1 + random.below(c.max_kv_len);
    group.budget.ratio_factor = c.least_ratio + (c.most_ratio - c.least_ratio) * random.uniform();
    group.batch = data_->sample(step, group.groups * group.frames, /*may_drop=*/false);
    return group;
  }

  // The student's flow prediction of the last group; the one before it leaves keys and values that
  // are constants.
  at::Tensor last_flow(const Group& group, const at::Tensor& x, const std::vector<double>& sigmas,
                       bool gradient) const {
    const RefinerNetwork& network = student_.at(group.scale);
    const at::AutoGradMode mode(gradient);
    const TextKv text = network.text(context_, group.batch.embeddings);
    SparseSrState state =
        network.make_state(context_, x, group.frames, context_.config.sr_sparse.max_kv_len);
    at::Tensor v;
    for (int64_t i = 0; i < group.groups; ++i) {
      const at::AutoGradMode of_group(gradient && i + 1 == group.groups);
      v = network.sparse(context_, x.narrow(1, i * group.frames, group.frames),
                         group.batch.y.narrow(1, i * group.frames, group.frames), sigmas, text,
                         state, group.budget);
    }
    return v;
  }

  void adapt(int64_t step, const Group& group, double lr_factor, Meter& meter) {
    const std::vector<double> sigmas = data_->draw_sigmas(step);
    const at::Tensor& z = group.batch.z;
    const at::Tensor noise = at::randn_like(z);
    const at::Tensor x = add_noise(z, noise, sigma_tensor(context_, sigmas, z.size(0)));
    const at::Tensor v = last_flow(group, x, sigmas, /*gradient=*/true);
    const at::Tensor loss = (v - group.last(noise - z)).square().mean();
    loss.backward();
    meter.add("flow_loss", loss);
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  // What the student makes of the last group in its one step.
  at::Tensor one_step(const Group& group, bool gradient) const {
    const at::Tensor noise = at::randn_like(group.batch.z);
    const std::vector<double> ones(static_cast<size_t>(noise.size(0)), 1.0);
    return group.last(noise) - last_flow(group, noise, ones, gradient);
  }

  void update_student(int64_t step, const Group& group, double lr_factor, Meter& meter) {
    const SrSparseConfig& c = context_.config.sr_sparse;
    const at::Tensor x = one_step(group, /*gradient=*/true);
    const at::Tensor z = group.last(group.batch.z);
    const at::Tensor latent = (x - z).square().mean();
    at::Tensor loss = c.latent * latent;
    meter.add("latent", latent);
    if (!data_->one_size()) meter.add(fmt::format("latent_{}x", group.scale), latent);
    if (c.picture > 0.0 && data_->has_pictures()) {
      const at::Tensor picture =
          picture_distance(context_, data_->of_step(step).autoencoders.large, x, z, c.picture_clips,
                           c.picture_frames, step, kPictureDraw);
      loss = loss + c.picture * picture;
      meter.add("picture", picture);
    }
    if (matching_) {
      const at::Tensor matching = dmd_loss(x, scores(step, group, x.detach(), meter));
      loss = loss + c.dmd * matching;
      meter.add("matching", matching);
    }
    loss.backward();
    meter.add("student_loss", loss);
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  // x0 estimates of the noised output. Without text the condition stays.
  Scores scores(int64_t step, const Group& group, const at::Tensor& x, Meter& meter) const {
    const at::NoGradGuard no_grad;
    const std::vector<double> sigmas = draw_score_sigmas(step, kScoreDraw);
    const at::Tensor sigma = sigma_tensor(context_, sigmas, x.size(0));
    const at::Tensor x_t = add_noise(x, at::randn_like(x), sigma);
    const at::Tensor y = group.last(group.batch.y);
    const auto estimate = [&](const Refiner& refiner, const Tensor& embeddings) {
      const RefinerNetwork& network = refiner.at(group.scale);
      return x_t -
             sigma * network.dense(context_, x_t, y, sigmas, network.text(context_, embeddings));
    };
    const at::Tensor fake = estimate(fake_, group.batch.embeddings);
    const at::Tensor real = estimate(real_, group.batch.embeddings);
    const at::Tensor without = estimate(real_, data_->no_text(x.size(0)));
    // The two parts of the update: matching, and augmentation by guidance.
    meter.add("matching_part", (fake - real).abs().mean());
    meter.add("augmentation_part", (real - without).abs().mean());
    return {fake, at::lerp(without, real, context_.config.sr_sparse.guidance)};
  }

  void update_fake(int64_t step, const Group& group, Meter& meter) {
    context_.seed_step(step, kFakeDraw);
    const at::Tensor x = one_step(group, /*gradient=*/false);
    const std::vector<double> sigmas = draw_score_sigmas(step, kFakeDraw);
    const at::Tensor noise = at::randn_like(x);
    const at::Tensor x_t = add_noise(x, noise, sigma_tensor(context_, sigmas, x.size(0)));
    const RefinerNetwork& network = fake_.at(group.scale);
    const at::Tensor v = network.dense(context_, x_t, group.last(group.batch.y), sigmas,
                                       network.text(context_, group.batch.embeddings));
    const at::Tensor loss = (v - (noise - x)).square().mean();
    loss.backward();
    meter.add("fake_loss", loss);
    const OptimizerConfig& critic = context_.config.critic_optimizer;
    meter.add("fake_gradient_norm",
              trained_fake_.update(learning_rate_factor(critic, step, context_.progress)));
  }

  [[nodiscard]] std::vector<double> draw_score_sigmas(int64_t step, int64_t purpose) const {
    const SrSparseConfig& c = context_.config.sr_sparse;
    StepRandom random(context_, step, purpose);
    std::vector<double> sigmas;
    for (int64_t i = 0; i < context_.config.batch; ++i) {
      sigmas.push_back(
          std::clamp(shifted(random.uniform(), c.timestep_shift), c.min_sigma, c.max_sigma));
    }
    return sigmas;
  }

  // Clips as a stream makes them, in the recipe's groups.
  at::Tensor stream(int64_t scale, const at::Tensor& y, const Tensor& embeddings) const {
    const RefinerNetwork& network = averaged_.at(scale);
    const RefinerSpec& spec = *context_.recipe.cascade(scale)->refiner;
    const int64_t group = spec.group_chunks * context_.recipe.generator.frames_per_chunk;
    const std::vector<double> ones(static_cast<size_t>(y.size(0)), 1.0);
    const TextKv text = network.text(context_, embeddings);
    SparseSrState state = network.make_state(context_, y, group, spec.kv_len);
    std::vector<at::Tensor> parts;
    for (int64_t first = 0; first < y.size(1); first += group) {
      const at::Tensor condition = y.narrow(1, first, std::min(group, y.size(1) - first));
      const at::Tensor noise = at::randn_like(condition);
      parts.push_back(noise - network.sparse(context_, noise, condition, ones, text, state,
                                             {spec.kv_len, 1.0}));
    }
    return at::cat(parts, 1);
  }

  TrainContext& context_;
  Refiner student_, averaged_, real_, fake_;
  bool matching_ = false;
  TrainedSet trained_, trained_fake_;
  std::unique_ptr<RefinerData> data_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_sr_sparse_objective(TrainContext& context) {
  return open_objective<SrSparseObjective>(context);
}

}  // namespace ultraflash
