// The super-resolution transformer becomes what streams run: block-sparse and causal, and one step
// from noise to latents. ultra-flash-training section 4. First the flow loss alone, until the
// network is used to reading few blocks; then the student's one step, by regression onto the true
// latents and their pictures, and by distribution matching: a frozen dense network (real) and one
// that learns the student's output (fake) score what it makes. A learned reward may join
// (reward.h).
#include <algorithm>
#include <set>

#include "ops/autograd/torch_tensor.h"
#include "train/distillation.h"
#include "train/objective.h"
#include "train/refiner_data.h"
#include "train/refiner_scores.h"
#include "train/refiner_stream.h"
#include "train/reward.h"
#include "train/step_cost.h"

namespace ultraflash {
namespace {

enum : int64_t { kGroupDraw = 1, kPictureDraw = 2, kFakeDraw = 4 };

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
    UF_ASSIGN(reward_, RewardTerm::open(context_));
    matching_ = config.sr_sparse.dmd > 0.0;
    if (!matching_) return {};
    // A student that goes on from another run has its dense teacher elsewhere.
    const std::string& teacher =
        config.init.real_score.empty() ? config.init.refiner : config.init.real_score;
    UF_ASSIGN(scores_, RefinerScores::open(context_, teacher));
    return {};
  }

  std::vector<TrainedSet*> sets() override {
    std::vector<TrainedSet*> sets = {&trained_};
    if (matching_) sets.push_back(&scores_->fake());
    if (reward_) sets.push_back(&reward_->state());
    return sets;
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
    if (!matching_ || data_->takes_turn(step, c.critic_per_student)) {
      update_student(step, group, lr_factor, meter);
    }
    if (matching_) update_fake(step, group, meter);
  }

  // Of the part of the run that is on; decoded pictures are not counted.
  [[nodiscard]] double step_cost() const override {
    const TrainConfig& config = context_.config;
    const SrSparseConfig& c = config.sr_sparse;
    const double ratio = 0.5 * (c.least_ratio + c.most_ratio);
    const double cached = c.stream_share * 0.5 * static_cast<double>(1 + c.max_kv_len);
    double sum = 0.0;
    for (const int64_t frames : c.group_frames) {
      sum += mean_over_scales(context_, [&](int64_t scale) {
        const double group =
            sparse_refiner_cost(context_, scale, config.batch, frames, cached, ratio);
        const double dense = dense_refiner_cost(context_, scale, config.batch, frames);
        const double upsampled = upsampler_cost(context_, scale, config.batch, frames);
        const double learnt = upsampled + (kForwardAndBackward + c.stream_share) * group;
        if (context_.progress < c.adaptation || !matching_) return learnt;
        const auto turns = static_cast<double>(c.critic_per_student);
        return (learnt + 3.0 * dense) / turns + upsampled + (1.0 + c.stream_share) * group +
               kForwardAndBackward * dense;
      });
    }
    return sum / static_cast<double>(c.group_frames.size());
  }

  // All from one noise. "dense" is the student with dense attention; "teacher" is the real score
  // with the steps of config.flow, "teacher_one_step" with one. These two do not change and are
  // drawn once.
  Measures evaluate() override {
    averaged_.parameters->assign(trained_.best());
    return data_->evaluate([&](int64_t scale, const at::Tensor& y, const Tensor& embeddings,
                               const RefinerData::Add& add) {
      const FlowConfig& flow = context_.config.flow;
      const at::Tensor noise = at::randn_like(y);
      add("refined", stream(scale, noise, y, embeddings));
      const RefinerNetwork& network = averaged_.at(scale);
      add("dense", network.sample(context_, noise, y, network.text(context_, embeddings), 1, 1.0));
      if (!matching_ || !teacher_shown_.insert(scale).second) return;
      const RefinerNetwork& teacher = scores_->real().at(scale);
      const TextKv text = teacher.text(context_, embeddings);
      add("teacher",
          teacher.sample(context_, noise, y, text, flow.sample_steps, flow.sample_shift));
      add("teacher_one_step", teacher.sample(context_, noise, y, text, 1, 1.0));
    });
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
    if ((c.picture > 0.0 || reward_) && data_->has_pictures()) {
      const DecodedPair pictures =
          decode_pair(context_, data_->of_step(step).autoencoders.large, x, z, c.picture_clips,
                      c.picture_frames, step, kPictureDraw);
      const at::Tensor picture = picture_distance(pictures, context_.config.cascade.spectrum);
      loss = loss + c.picture * picture;
      meter.add("picture", picture);
      if (reward_) {
        loss = loss + reward_->loss(pictures.last_made(), pictures.last_truth(), meter);
      }
    }
    if (matching_) {
      const at::Tensor matching =
          dmd_loss(x, scores_->of(step, group.scale, x.detach(), group.last(group.batch.y),
                                  group.batch.embeddings, data_->no_text(x.size(0)), meter));
      loss = loss + c.dmd * matching;
      meter.add("matching", matching);
    }
    loss.backward();
    meter.add("student_loss", loss);
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  void update_fake(int64_t step, const Group& group, Meter& meter) {
    context_.seed_step(step, kFakeDraw);
    const at::Tensor x = one_step(group, /*gradient=*/false);
    scores_->learn(step, group.scale, x, group.last(group.batch.y), group.batch.embeddings, meter);
  }

  // Clips as a stream makes them, in the recipe's groups.
  at::Tensor stream(int64_t scale, const at::Tensor& noise, const at::Tensor& y,
                    const Tensor& embeddings) const {
    const RefinerNetwork& network = averaged_.at(scale);
    const RefinerSpec& spec = *context_.recipe.cascade(scale)->refiner;
    const int64_t group = spec.group_chunks * context_.recipe.generator.frames_per_chunk;
    return refine_stream(context_, network, network.text(context_, embeddings), noise, y, group,
                         spec.kv_len, KvSchedule::kFull);
  }

  TrainContext& context_;
  Refiner student_, averaged_;
  bool matching_ = false;
  TrainedSet trained_;
  std::unique_ptr<RefinerScores> scores_;  // null: no distribution matching
  std::unique_ptr<RewardTerm> reward_;     // null: none
  std::unique_ptr<RefinerData> data_;
  std::set<int64_t> teacher_shown_;  // scales whose report has the teacher's results
};

}  // namespace

Result<std::unique_ptr<Objective>> make_sr_sparse_objective(TrainContext& context) {
  return open_objective<SrSparseObjective>(context);
}

}  // namespace ultraflash
