// Cascaded streaming preference optimisation: ultra-flash-training section 5. The frozen generator
// and upsampler stream, under dynamic cache management that is drawn anew; the one-step sparse
// student refines group after group with its own keys and values, and learns in the last one to
// make what a stronger network makes of the same latents, rather than what it made itself when the
// stage began: a DPO loss, with distribution matching, the distance to its old result and a learned
// reward as anchors. The worse result is that of the copy that is the reference, in a stream of its
// own: the specification renews pairs every thousand steps, more than this stage has. (The result
// of the moment would put -beta |x - old|^2 into the sigmoid, which punishes every change.)
//
// The better result comes from the dense network of stage `sr`, several steps with guidance. A pair
// counts only where the held-out judge prefers it and where it is no further from the small
// pictures than a factor allows. The published consistency compares latents averaged over scale x
// scale; with an encoder of its own for each size latents cannot be compared, so decoded pictures
// are.
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <optional>

#include "ops/autograd/torch_tensor.h"
#include "train/distillation.h"
#include "train/objective.h"
#include "train/pictures.h"
#include "train/refiner_data.h"
#include "train/refiner_scores.h"
#include "train/refiner_stream.h"
#include "train/reward.h"
#include "train/rollout_bank.h"
#include "train/step_cost.h"

namespace ultraflash {
namespace {

enum : int64_t {
  kSettingsDraw = 1,
  kPictureDraw = 2,
  kLevelDraw = 3,
  kFakeNoise = 4,
  kEvalStreams = 5,
  kEvalNoise = 6
};
constexpr int64_t kEvalBatch = 4;  // streams that are measured at once
constexpr int64_t kEvalGroups = 10;

class PreferenceObjective final : public Objective {
 public:
  explicit PreferenceObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    if (config.init.real_score.empty() && config.data.source != "random") {
      return make_status(StatusCode::kInvalidArgument,
                         "preference: init.real_score must name the dense network of stage 'sr', "
                         "which draws the better results");
    }
    UF_ASSIGN(data_, RefinerData::open(context_));
    UF_ASSIGN(plan_, stream_plan(context_));
    UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, false));
    UF_ASSIGN(student_, Refiner::open(context_, config.init.refiner, /*trainable=*/true));
    UF_ASSIGN(reference_, student_.copy(context_, /*trainable=*/false));
    UF_ASSIGN(averaged_, student_.copy(context_, /*trainable=*/false));
    trained_.name = "refiner";
    trained_.parameters = student_.parameters;
    trained_.begin(config.optimizer, &config.ema);
    UF_ASSIGN(scores_, RefinerScores::open(context_, config.init.real_score));
    UF_ASSIGN(reward_, RewardTerm::open(context_));
    if (!config.init.judge.empty()) {
      UF_ASSIGN(judge_, RewardNetwork::open(context_, config.init.judge, /*trainable=*/false));
    }
    rollouts_ = std::make_unique<RolloutBank>(context_, generator_, data_->text(), data_->clips(),
                                              data_->tokenizer(), plan_);
    return {};
  }

  std::vector<TrainedSet*> sets() override {
    std::vector<TrainedSet*> sets = {&trained_};
    if (context_.config.preference.dmd > 0.0) sets.push_back(&scores_->fake());
    if (reward_) sets.push_back(&reward_->state());
    return sets;
  }

  Status start(int64_t first_step) override {
    rollouts_->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const PreferenceConfig& c = context_.config.preference;
    rollouts_->advance(step);
    const Group group = draw_group(step);
    const int64_t update = step - c.critic_first_steps;
    const bool learns =
        c.dmd == 0.0 || (update >= 0 && data_->takes_turn(update, c.critic_per_student));
    const at::Tensor x = update_student(step, group, learns, lr_factor, meter);
    if (c.dmd > 0.0) {
      context_.seed_step(step, kFakeNoise);
      scores_->learn(step, group.scale, x, group.y_last(), group.embeddings, meter);
    }
  }

  // Without decoded pictures, and the generator's new streams as if each chunk saw all before it.
  [[nodiscard]] double step_cost() const override {
    const TrainConfig& config = context_.config;
    const PreferenceConfig& c = config.preference;
    const double lead = 0.5 * static_cast<double>(c.groups - 1);  // groups before the last
    double sum = 0.0;
    for (const int64_t frames : c.group_frames) {
      sum += mean_over_scales(context_, [&](int64_t scale) {
        const double full = static_cast<double>(context_.recipe.cascade(scale)->refiner->kv_len);
        const double sparse = sparse_refiner_cost(context_, scale, config.batch, frames, full, 1.0);
        const double dense = dense_refiner_cost(context_, scale, config.batch, frames);
        const double upsampled =
            upsampler_cost(context_, scale, config.batch, config.bank.latent_frames);
        const double pairs = (2.0 * lead + kForwardAndBackward + 1.0 +
                              (1.0 - c.start_share) * (2.0 * kForwardAndBackward + 2.0)) *
                                 sparse +
                             2.0 * static_cast<double>(c.teacher_steps) * dense;
        if (c.dmd == 0.0) return upsampled + pairs;
        const auto turns = static_cast<double>(c.critic_per_student);
        return upsampled + kForwardAndBackward * dense + (pairs + 3.0 * dense) / turns +
               (1.0 - 1.0 / turns) * (lead + 1.0) * sparse;
      });
    }
    double cost = sum / static_cast<double>(c.group_frames.size());
    if (c.refresh_every > 0) {
      const auto steps = static_cast<double>(plan_.sigmas.size());
      cost += (steps + 1.0 - c.fewer_steps) *
              forward_cost(context_, c.make_batch, Visibility::kChunkCausal) /
              static_cast<double>(c.refresh_every);
    }
    return cost;
  }

  Measures evaluate() override {
    averaged_.parameters->assign(trained_.best());
    Measures measures = data_->evaluate([&](int64_t scale, const at::Tensor& y,
                                            const Tensor& embeddings, const RefinerData::Add& add) {
      const RefinerSpec& spec = *context_.recipe.cascade(scale)->refiner;
      const at::Tensor noise = at::randn_like(y);
      const auto streamed = [&](const Refiner& refiner) {
        const RefinerNetwork& network = refiner.at(scale);
        return refine_stream(context_, network, network.text(context_, embeddings), noise, y,
                             group_frames(spec), spec.kv_len, KvSchedule::kFull);
      };
      add("before", streamed(reference_));
      add("refined", streamed(averaged_));
    });
    if (context_.config.preference.eval_rollouts > 0) measure_streams(measures);
    return measures;
  }

  std::optional<RgbImage> sheet() override { return data_->sheet(); }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    const CascadeSpec* cascade = context_.recipe.cascade(context_.config.cascade.scales[0]);
    return publish_sets(context_, out, {{trained_, cascade->refiner->checkpoint}});
  }

 private:
  // Streams of one step, of which the last group learns.
  struct Group {
    int64_t scale = 2;
    int64_t frames = 6;  // of a group
    int64_t groups = 1;
    KvSchedule schedule = KvSchedule::kFull;
    at::Tensor low;    // f32 [batch, groups * frames, h, w, c]
    at::Tensor y;      // of the large size, as the next
    at::Tensor noise;  // that the student begins with
    Tensor embeddings;

    [[nodiscard]] at::Tensor part(const at::Tensor& x, int64_t group) const {
      return x.narrow(1, group * frames, frames);
    }
    [[nodiscard]] at::Tensor y_last() const { return part(y, groups - 1); }
    [[nodiscard]] at::Tensor noise_last() const { return part(noise, groups - 1); }
    [[nodiscard]] at::Tensor low_last() const { return part(low, groups - 1); }
  };

  [[nodiscard]] int64_t group_frames(const RefinerSpec& spec) const {
    return spec.group_chunks * context_.recipe.generator.frames_per_chunk;
  }
  [[nodiscard]] int64_t full_kv_len(int64_t scale) const {
    return context_.recipe.cascade(scale)->refiner->kv_len;
  }

  [[nodiscard]] Group draw_group(int64_t step) const {
    const at::NoGradGuard no_grad;
    const PreferenceConfig& c = context_.config.preference;
    // How long streams are is the same on every rank.
    StepRandom random = StepRandom::shared(context_, step, kSettingsDraw);
    const RefinerData::Size& size = data_->of_step(step);
    Group group;
    group.scale = size.scale;
    group.frames = c.group_frames[static_cast<size_t>(
        random.below(static_cast<int64_t>(c.group_frames.size())))];
    group.groups = 1 + random.below(c.groups);
    group.schedule = static_cast<KvSchedule>(random.below(3));
    const double noise = random.uniform() < 0.5 ? 0.0 : c.condition_noise;
    const int64_t frames = group.groups * group.frames;
    // Whole streams, whose convolutions have one shape whatever is drawn: a GPU looks for the best
    // algorithm of each shape once.
    const RolloutBank::Batch streams =
        rollouts_->sample(step, context_.config.batch, context_.config.bank.latent_frames);
    group.low = streams.low.narrow(1, 0, frames);
    group.embeddings = data_->text().run(context_, streams.tokens);
    context_.seed_step(step);
    group.y = size.upsampler.run_window(context_, streams.low, 0).narrow(1, 0, frames);
    if (noise > 0.0) group.y = at::lerp(group.y, at::randn_like(group.y), noise);
    group.noise = at::randn_like(group.y);
    return group;
  }

  // A stream of `refiner` before the last group.
  RefinerStream lead(const Group& group, const RefinerNetwork& network, const TextKv& text) const {
    const at::NoGradGuard no_grad;
    const int64_t full = full_kv_len(group.scale);
    RefinerStream stream(context_, network, text, group.y, group.frames, full);
    for (int64_t i = 0; i + 1 < group.groups; ++i) {
      (void)stream.next(group.part(group.noise, i), group.part(group.y, i),
                        kv_len_of(group.schedule, i, full));
    }
    return stream;
  }

  // The student's result for the last group, as a constant. With `learns` it takes a step.
  at::Tensor update_student(int64_t step, const Group& group, bool learns, double lr_factor,
                            Meter& meter) {
    const at::AutoGradMode mode(learns);
    const PreferenceConfig& c = context_.config.preference;
    const RefinerNetwork& network = student_.at(group.scale);
    const TextKv text = network.text(context_, group.embeddings);
    RefinerStream stream = lead(group, network, text);
    const std::vector<double> ones(static_cast<size_t>(context_.config.batch), 1.0);
    const at::Tensor noise = group.noise_last();
    const at::Tensor y = group.y_last();
    const at::Tensor x = noise - stream.flow(noise, y, ones);
    if (!learns) return x;
    // The frozen networks: what was made before this stage, and what is better.
    const Refiner& before = reference_;
    std::optional<RefinerStream> reference_stream;
    TextKv reference_text;
    at::Tensor old, better;
    const Tensor no_text = data_->no_text(context_.config.batch);
    {
      const at::NoGradGuard no_grad;
      reference_text = before.at(group.scale).text(context_, group.embeddings);
      reference_stream.emplace(lead(group, before.at(group.scale), reference_text));
      old = noise - reference_stream->flow(noise, y, ones);
      better = scores_->real()
                   .at(group.scale)
                   .sample_guided(context_, noise, y, group.embeddings, no_text, c.teacher_steps,
                                  c.teacher_shift, c.guidance);
    }
    at::Tensor loss, kept;
    if (data_->has_pictures()) {
      const RefinerData::Size& size = data_->of_step(step);
      const DecodedPair pictures =
          decode_pair(context_, size.autoencoders.large, x, better, context_.config.batch,
                      c.picture_frames, step, kPictureDraw);
      kept = chosen(group, size, pictures, old, meter);
      if (reward_) loss = reward_->loss(pictures.last_made(), pictures.last_truth(), meter);
    } else {
      kept = at::ones({context_.config.batch}, context_.f32());
    }
    const bool at_start = StepRandom::shared(context_, step, kLevelDraw).uniform() < c.start_share;
    const PreferenceErrors errors =
        at_start ? PreferenceErrors::at_start(x, old, better, old)
                 : errors_at_levels(step, stream, *reference_stream, y, better, old);
    const at::Tensor count = kept.sum().clamp_min(1.0);
    const at::Tensor preference = (kept * preference_loss(errors, c.beta)).sum() / count;
    const at::Tensor anchor = (x - old).square().mean();
    at::Tensor total = preference + c.anchor * anchor;
    if (loss.defined()) total = total + loss;
    if (c.dmd > 0.0) {
      const at::Tensor matching = dmd_loss(
          x, scores_->of(step, group.scale, x.detach(), y, group.embeddings, no_text, meter));
      total = total + c.dmd * matching;
      meter.add("matching", matching);
    }
    total.backward();
    meter.add("preference", preference);
    meter.add("accuracy",
              100.0 * (kept * (errors.bracket().detach() < 0.0).to(at::kFloat)).sum() / count);
    meter.add("kept", 100.0 * kept.mean());
    meter.add("anchor", anchor);
    meter.add("gradient_norm", trained_.update(lr_factor));
    return x.detach();
  }

  // The general form, at levels in [0, 1] (Flow-DPO).
  PreferenceErrors errors_at_levels(int64_t step, const RefinerStream& stream,
                                    const RefinerStream& reference, const at::Tensor& y,
                                    const at::Tensor& better, const at::Tensor& worse) const {
    StepRandom random(context_, step, kLevelDraw);
    std::vector<double> sigmas;
    for (int64_t i = 0; i < context_.config.batch; ++i) {
      sigmas.push_back(
          std::clamp(shifted(random.uniform(), context_.config.flow.shift), 0.02, 1.0));
    }
    const at::Tensor sigma = sigma_tensor(context_, sigmas, context_.config.batch);
    const at::Tensor noise = at::randn_like(better);
    const auto error = [&](const RefinerStream& network, const at::Tensor& z) {
      const at::Tensor v = network.flow(add_noise(z, noise, sigma), y, sigmas);
      return (v - (noise - z)).square().mean({1, 2, 3, 4});
    };
    PreferenceErrors errors;
    errors.better = error(stream, better);
    errors.worse = error(stream, worse);
    const at::NoGradGuard no_grad;
    errors.better_reference = error(reference, better);
    errors.worse_reference = error(reference, worse);
    return errors;
  }

  // How far large pictures are from small ones: f32 [batch].
  at::Tensor inconsistency(const at::Tensor& pictures, const at::Tensor& small) const {
    return (resized(pictures, small.size(2), small.size(3), ResizeFilter::kArea) - small)
        .abs()
        .mean({1, 2, 3, 4});
  }

  // f32 [batch], 1 for pairs that count.
  at::Tensor chosen(const Group& group, const RefinerData::Size& size, const DecodedPair& pictures,
                    const at::Tensor& old, Meter& meter) const {
    const at::NoGradGuard no_grad;
    const PreferenceConfig& c = context_.config.preference;
    const at::Tensor worse = decode_window(context_, size.autoencoders.large.decoder, old,
                                           pictures.first, pictures.frames, old.size(0));
    const at::Tensor small =
        decode_window(context_, size.autoencoders.small.decoder, group.low_last(), pictures.first,
                      pictures.frames, old.size(0));
    const at::Tensor of_better = inconsistency(pictures.truth.clamp(0.0, 1.0), small);
    const at::Tensor of_worse = inconsistency(worse.clamp(0.0, 1.0), small);
    meter.add("inconsistency_better", of_better.mean());
    meter.add("inconsistency", of_worse.mean());
    at::Tensor kept = of_better <= c.consistency * of_worse;
    if (judge_) {
      const at::Tensor guide = pictures.last_truth();
      const auto score = [&](const at::Tensor& shown) {
        return judged(pictures.last_of(shown), guide, pictures.frames);
      };
      const at::Tensor gap = score(pictures.truth) - score(worse);
      meter.add("judge_gap", gap.mean());
      meter.add("judge", score(pictures.made).mean());
      kept = kept.logical_and(gap >= c.judge_margin);
    }
    return kept.to(at::kFloat);
  }

  // The judge's scores of pictures [batch * frames, height, width, 3], means over frames, where
  // those of `guide` have most detail.
  at::Tensor judged(const at::Tensor& pictures, const at::Tensor& guide, int64_t frames) const {
    const Windows windows = busiest_windows(guide, context_.config.reward.crop);
    return judge_->standardised(context_, cropped(pictures, windows).clamp(0.0, 1.0))
        .view({-1, frames})
        .mean(1);
  }

  // --- held-out captions -------------------------------------------------------------------------

  void make_unseen() {
    if (unseen_low_.defined()) return;
    const int64_t count = context_.config.preference.eval_rollouts;
    Result<std::unique_ptr<TrainingClips>> clips = TrainingClips::open(context_, /*unseen=*/true);
    if (!clips.ok()) throw Error(clips.status());
    std::vector<TokenRow> rows;
    for (int64_t i = 0; i < count; ++i) {
      rows.push_back(data_->tokenizer().encode((*clips)->caption(i, 0, /*full=*/true)));
    }
    unseen_text_ = to_torch(data_->text().run(context_, CaptionTokenizer::batch(rows)));
    // Group numbers of training are not negative and small.
    unseen_low_ = draw_streams(context_, generator_, plan_, from_torch(unseen_text_), eval_frames(),
                               int64_t{1} << 40, kEvalStreams);
  }

  // Long enough to drift, where the generator's cache has no end.
  [[nodiscard]] int64_t eval_frames() const {
    const int64_t frames = context_.config.bank.latent_frames;
    if (plan_.window_frames == 0) return frames;
    int64_t group = 1;
    for (const RefinerData::Size& size : data_->sizes()) {
      group = std::max(group, group_frames(*context_.recipe.cascade(size.scale)->refiner));
    }
    return std::max(frames, kEvalGroups * group);
  }

  // Fixed pairs: the better result, and what the student made when the stage began.
  void measure_streams(Measures& measures) {
    const at::NoGradGuard no_grad;
    make_unseen();
    for (const RefinerData::Size& size : data_->sizes()) {
      StreamSums sums;
      for (int64_t first = 0; first < unseen_low_.size(0); first += kEvalBatch) {
        measure_some(size, first, std::min(kEvalBatch, unseen_low_.size(0) - first), sums);
      }
      const auto add = [&](const std::string& name, double value) {
        measures.emplace_back(fmt::format("{}_{}x", name, size.scale), value);
      };
      add("dpo_accuracy", 100.0 * sums.right / sums.pairs);
      if (sums.groups == 0.0) continue;
      constexpr std::array<const char*, 3> kNames = {"before", "student", "better"};
      for (size_t i = 0; i < kNames.size(); ++i) {
        const auto add_of = [&](const char* measure, double value) {
          add(fmt::format("streams_{}_{}", measure, kNames[i]), value);
        };
        const StreamSums::Of& of = sums.of[i];
        if (judge_) add_of("judge", of.judge / sums.groups);
        add_of("inconsistency", of.inconsistency / sums.groups);
        add_of("sharpness", of.sharpness / sums.groups);
        // Of the last group, in percent of the first.
        add_of("drift", 100.0 * (of.last_sharpness / std::max(of.first_sharpness, 1e-9) - 1.0));
      }
    }
  }

  struct StreamSums {
    struct Of {
      double judge = 0.0;
      double inconsistency = 0.0;
      double sharpness = 0.0;
      double first_sharpness = 0.0;
      double last_sharpness = 0.0;
    };
    std::array<Of, 3> of;  // before, student, better
    double groups = 0.0;
    double right = 0.0;
    double pairs = 0.0;
  };

  void measure_some(const RefinerData::Size& size, int64_t first, int64_t count, StreamSums& sums) {
    const PreferenceConfig& c = context_.config.preference;
    const int64_t full = full_kv_len(size.scale);
    const int64_t frames = group_frames(*context_.recipe.cascade(size.scale)->refiner);
    const int64_t groups = unseen_low_.size(1) / frames;
    const Tensor embeddings = from_torch(unseen_text_.narrow(0, first, count).contiguous());
    const Tensor no_text = data_->no_text(count);
    const at::Tensor low = unseen_low_.narrow(0, first, count);
    context_.seed_shared_step(first, kEvalNoise);
    const at::Tensor y = size.upsampler.run_window(context_, low, 0);
    const at::Tensor noise = at::randn_like(y);
    const auto streamed = [&](const Refiner& refiner) {
      const RefinerNetwork& network = refiner.at(size.scale);
      return refine_stream(context_, network, network.text(context_, embeddings), noise, y, frames,
                           full, KvSchedule::kDecaying);
    };
    const at::Tensor old = streamed(reference_);
    const at::Tensor x = streamed(averaged_);
    for (int64_t group = 0; group < groups; ++group) {
      const auto part = [&](const at::Tensor& z) { return z.narrow(1, group * frames, frames); };
      const at::Tensor better =
          scores_->real()
              .at(size.scale)
              .sample_guided(context_, part(noise), part(y), embeddings, no_text, c.teacher_steps,
                             c.teacher_shift, c.guidance);
      const at::Tensor bracket =
          PreferenceErrors::at_start(part(x), part(old), better, part(old)).bracket();
      sums.right +=
          (bracket < 0.0).sum().item<double>() + 0.5 * (bracket == 0.0).sum().item<double>();
      sums.pairs += static_cast<double>(count);
      if (!data_->has_pictures()) continue;
      sums.groups += 1.0;
      at::Tensor guide;
      const std::array<at::Tensor, 3> kinds = {part(old), part(x), better};
      // Backwards: crops lie where the better result has most detail.
      for (size_t i = kinds.size(); i-- > 0;) {
        const DecodedPair pictures =
            decode_pair(context_, size.autoencoders.large, kinds[i], kinds[i], count,
                        c.picture_frames, group, kPictureDraw);
        const at::Tensor shown = pictures.truth.clamp(0.0, 1.0);
        const at::Tensor last = pictures.last_truth().clamp(0.0, 1.0);
        if (!guide.defined()) guide = last;
        StreamSums::Of& of = sums.of[i];
        if (judge_) of.judge += judged(last, guide, pictures.frames).mean().item<double>();
        of.inconsistency +=
            inconsistency(shown, decode_window(context_, size.autoencoders.small.decoder, part(low),
                                               pictures.first, pictures.frames, count))
                .mean()
                .item<double>();
        const double sharpness =
            (difference(shown, 2).abs().mean() + difference(shown, 3).abs().mean()).item<double>();
        of.sharpness += sharpness;
        if (group == 0) of.first_sharpness += sharpness;
        if (group + 1 == groups) of.last_sharpness += sharpness;
      }
    }
  }

  TrainContext& context_;
  RolloutPlan plan_;
  GeneratorNetwork generator_;
  Refiner student_, reference_, averaged_;
  TrainedSet trained_;
  std::unique_ptr<RefinerScores> scores_;
  std::unique_ptr<RewardTerm> reward_;  // null: none
  std::optional<RewardNetwork> judge_;
  std::unique_ptr<RefinerData> data_;
  std::unique_ptr<RolloutBank> rollouts_;
  at::Tensor unseen_low_;   // f32 [eval_rollouts, eval_frames(), h, w, c]
  at::Tensor unseen_text_;  // embeddings of them
};

}  // namespace

Result<std::unique_ptr<Objective>> make_preference_objective(TrainContext& context) {
  return open_objective<PreferenceObjective>(context);
}

}  // namespace ultraflash
