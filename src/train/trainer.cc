// The loop around an objective: time, learning rate, log, pictures, checkpoints.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>

#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"
#include "train/calibration.h"
#include "train/clips.h"
#include "train/degrade/degrade.h"
#include "train/journal.h"
#include "train/objective.h"
#include "train/parallel/rank_group.h"
#include "train/prepare.h"
#include "train/samples.h"
#include "train/text_embeddings.h"
#include "train/train.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

using Clock = std::chrono::steady_clock;

// Kept free at the end of a time limit for the last evaluation, the sheet and the files: this share
// of it, within bounds.
double reserve_seconds(double limit) { return std::clamp(0.04 * limit, 1.0, 25.0); }
constexpr double kMeasureMargin = 1.3;  // beside it, of the time that measuring took before

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Of several ranks each has the GPU of its number.
Result<Device> parse_device(const std::string& name, const RankGroup& group) {
  if (name == "cpu") return Device{};
  if (name == "cuda") return Device{DeviceType::kCuda, static_cast<int>(group.rank())};
  if (group.size() > 1) {
    return make_status(StatusCode::kInvalidArgument,
                       "{} ranks on '{}': say cuda, and each takes the GPU of its number",
                       group.size(), name);
  }
  if (name.starts_with("cuda:") && name.size() == 6 && name[5] >= '0' && name[5] <= '9') {
    return Device{DeviceType::kCuda, name[5] - '0'};
  }
  return make_status(StatusCode::kInvalidArgument, "'{}' is no device to train on; use cpu or cuda",
                     name);
}

Result<std::unique_ptr<Objective>> make_objective(TrainContext& context) {
  switch (context.config.stage) {
    case TrainStage::kAutoencoder:
      return make_autoencoder_objective(context);
    case TrainStage::kFlowMatching:
      return make_flow_matching_objective(context);
    case TrainStage::kCausal:
      return make_causal_objective(context);
    case TrainStage::kOde:
      return make_ode_objective(context);
    case TrainStage::kSelfForcing:
      return make_self_forcing_objective(context);
    case TrainStage::kUpsampler:
      return make_upsampler_objective(context);
    case TrainStage::kSr:
      return make_sr_objective(context);
    case TrainStage::kSrSparse:
      return make_sr_sparse_objective(context);
    case TrainStage::kReward:
      return make_reward_objective(context);
    case TrainStage::kPreference:
      return make_preference_objective(context);
  }
  return make_status(StatusCode::kInternal, "an unknown stage");
}

Result<TrainConfig> read_config(const TrainOptions& options) {
  std::vector<std::string> changes;
  if (options.random_weights) {
    for (const char* field : {"autoencoder", "text_encoder", "generator", "real_score", "decoder",
                              "upsampler", "refiner", "reward", "judge", "tokenizer"}) {
      changes.push_back(fmt::format("init.{}=", field));
    }
    changes.emplace_back("init.text_embeddings=random");
    changes.emplace_back("data.source=random");
  }
  changes.insert(changes.end(), options.set.begin(),
                 options.set.end());  // these have the last word
  UF_ASSIGN(TrainConfig config, load_train_config(options.config, changes));
  if (options.ranks > 0) config.gpus = options.ranks;
  if (options.trial) {
    config.flow.sample_clips = 0;
    config.evaluate.captions = 0;
    config.cascade.eval_clips = 0;
    config.preference.eval_rollouts = 0;
  }
  if (options.steps >= 0) config.steps = options.steps;
  UF_TRY(config.validate());
  return config;
}

// The captions of both sides of the hold-out.
Status write_embeddings(const TrainContext& context, const std::filesystem::path& path) {
  const BankConfig& bank = context.config.bank;
  std::vector<std::string> captions;
  for (const bool unseen : {false, true}) {
    UF_ASSIGN(const std::unique_ptr<TrainingClips> clips, TrainingClips::open(context, unseen));
    const int64_t count = clips->size() < 0 ? bank.clips : clips->size();
    for (int64_t i = 0; i < count; ++i) {
      // Stages that draw captions without clips take any of sixteen.
      for (int64_t variant = 0; variant < std::max<int64_t>(bank.captions, 16); ++variant) {
        captions.push_back(clips->caption(i, variant, /*full=*/unseen));
      }
    }
  }
  return TextEmbeddings::write(context, captions, path);
}

class Run {
 public:
  // `journal`: of rank 0, which alone writes files and reports. `samples`: null when none are
  // shown.
  Run(const TrainOptions& options, TrainContext& context, Objective& objective,
      std::unique_ptr<Samples> samples, std::optional<Journal> journal, const RunCounters& counters)
      : options_(options),
        context_(context),
        parallel_(*context.parallel),
        objective_(objective),
        samples_(std::move(samples)),
        journal_(std::move(journal)),
        counters_(counters),
        earlier_seconds_(counters.seconds),
        start_(Clock::now()) {}

  Result<TrainSummary> go() {
    const TrainConfig& config = context_.config;
    UF_TRY(check_ranks_agree());
    UF_TRY(objective_.start(counters_.step));
    const int64_t first = counters_.step;
    start_interval();
    last_measured_ = Clock::now();
    bool stop = false;  // what this rank wants
    Decision now = decide(stop);
    while (!now.stop && !now.time_is_over && counters_.step < config.steps) {
      const double factor = learning_rate_factor(config.optimizer, counters_.step, now.progress);
      context_.progress = now.progress;
      objective_.step(counters_.step, factor, meter_);
      ++counters_.step;
      const int64_t step = counters_.step;
      if (step % config.log_every == 0) UF_TRY(report(factor, stop));
      if (now.measure) UF_TRY(measure());
      if (config.sheet_every > 0 && step % config.sheet_every == 0) UF_TRY(look());
      if (config.checkpoint_every > 0 && step % config.checkpoint_every == 0) UF_TRY(save());
      if (options_.interrupted && options_.interrupted()) stop = true;
      if (options_.minutes > 0.0 && process_seconds() >= pause_seconds()) stop = true;
      if (options_.stop_after >= 0 && step - first >= options_.stop_after) stop = true;
      now = decide(stop);
    }
    if (counters_.step % config.log_every != 0) {
      UF_TRY(report(learning_rate_factor(config.optimizer, counters_.step, now.progress), stop));
    }
    TrainSummary summary;
    summary.step = counters_.step;
    summary.finished = counters_.step >= config.steps || now.time_is_over;
    if (context_.device.is_cuda()) {
      const Arena::Stats memory = context_.executor->memory();
      context_.log.info(fmt::format("most memory held on the GPU: {:.2f} GiB, reserved {:.2f} GiB",
                                    static_cast<double>(memory.peak_bytes) / (1 << 30),
                                    static_cast<double>(memory.reserved_bytes) / (1 << 30)));
    }
    if (options_.trial) return summary;
    UF_TRY(save());
    summary.checkpoint = checkpoint_;
    if (parallel_.leads()) {
      UF_ASSIGN(summary.weights, objective_.publish(options_.out));
    }
    UF_TRY(measure());
    UF_TRY(look());
    // Nobody leaves while another rank still waits for it.
    parallel_.synchronize();
    parallel_.group().meet();
    return summary;
  }

 private:
  [[nodiscard]] double process_seconds() const { return seconds_since(start_); }
  // The last measurement comes after the last step.
  [[nodiscard]] double reserve(double limit) const {
    return reserve_seconds(limit) + kMeasureMargin * measure_seconds_;
  }
  [[nodiscard]] double pause_seconds() const {
    const double limit = options_.minutes * 60.0;
    return limit - reserve(limit);
  }
  [[nodiscard]] double seconds() const { return earlier_seconds_ + process_seconds(); }
  [[nodiscard]] double limit() const { return context_.config.minutes * 60.0; }
  [[nodiscard]] bool out_of_time() const {
    return limit() > 0.0 && seconds() >= limit() - reserve(limit());
  }
  [[nodiscard]] double progress_of_run() const {
    const TrainConfig& config = context_.config;
    const double by_steps = static_cast<double>(counters_.step) /
                            static_cast<double>(std::max<int64_t>(config.steps, 1));
    if (!config.optimizer.schedule_by_time || limit() <= 0.0) return by_steps;
    return std::max(by_steps, seconds() / (limit() - reserve(limit())));
  }

  // What all ranks do before a step: stop when any of them wants to; the clock is that of rank 0.
  struct Decision {
    bool stop = false;
    bool time_is_over = false;
    bool measure = false;  // after the step
    double progress = 0.0;
  };
  Decision decide(bool stop) {
    const double every = context_.config.evaluate.every_minutes * 60.0;
    const bool measure = every > 0.0 && seconds_since(last_measured_) >= every;
    const std::array<double, 4> mine = {stop ? 1.0 : 0.0, out_of_time() ? 1.0 : 0.0,
                                        measure ? 1.0 : 0.0, progress_of_run()};
    const std::vector<double> all = parallel_.group().gather(mine);
    Decision decision;
    for (size_t i = 0; i < all.size(); i += mine.size()) {
      decision.stop = decision.stop || all[i] != 0.0;
    }
    decision.time_is_over = all[1] != 0.0;
    decision.measure = all[2] != 0.0;
    decision.progress = all[3];
    return decision;
  }

  // Ranks that took other steps than rank 0 would train another network without a sign of it.
  Status check_ranks_agree() {
    if (parallel_.size() == 1) return {};
    for (const TrainedSet* set : objective_.sets()) {
      const uint64_t mine = checksum(set->parameters->leaves());
      const uint64_t average = set->average ? checksum(set->average->values()) : 0;
      const std::vector<uint64_t> all = parallel_.group().gather(std::array{mine, average});
      for (size_t rank = 1; rank < static_cast<size_t>(parallel_.size()); ++rank) {
        if (all[2 * rank] == all[0] && all[2 * rank + 1] == all[1]) continue;
        return make_status(StatusCode::kInternal,
                           "step {}: the {} of '{}' differ between ranks 0 and {}", counters_.step,
                           all[2 * rank] == all[0] ? "averages" : "weights", set->name, rank);
      }
    }
    return {};
  }

  // Means over the steps since the last report, and over ranks.
  Measures take_measures() {
    Measures measures = meter_.take();
    std::vector<double> values;
    for (const auto& [name, value] : measures) values.push_back(value);
    parallel_.group().sum(values);
    for (size_t i = 0; i < values.size(); ++i) {
      measures[i].second = values[i] / static_cast<double>(parallel_.size());
    }
    return measures;
  }

  // Clips of all ranks; operations of one of them (see step_cost.h); memory of the fullest.
  void add_speed(Measures& measures, double step_seconds) {
    const std::array<double, 1> peak = {parallel_.take_peak_memory()};
    const std::vector<double> peaks = parallel_.group().gather(std::span<const double>(peak));
    measures.emplace_back(
        "clips_per_second",
        static_cast<double>(context_.config.batch * parallel_.size()) / step_seconds);
    const double cost = objective_.step_cost();
    if (cost > 0.0) measures.emplace_back("tflops", 1e-12 * cost / step_seconds);
    const double most = *std::max_element(peaks.begin(), peaks.end());
    if (most > 0.0) measures.emplace_back("peak_gb", 1e-9 * most);
  }

  // The one place of the loop that waits for the device.
  Status report(double factor, bool& stop) {
    Measures measures = take_measures();
    UF_TRY(check_ranks_agree());
    const auto steps = static_cast<double>(std::max<int64_t>(counters_.step - interval_step_, 1));
    const double step_seconds = seconds_since(interval_start_) / steps;
    start_interval();
    measures.emplace_back("lr", context_.config.optimizer.lr * factor);
    measures.emplace_back("step_seconds", step_seconds);
    add_speed(measures, step_seconds);
    if (!journal_) return {};
    UF_TRY(journal_->add(counters_.step, seconds(), measures));
    if (!options_.progress) return {};
    TrainProgress progress;
    progress.step = counters_.step;
    progress.steps = context_.config.steps;
    progress.seconds = seconds();
    progress.limit_seconds = limit();
    progress.step_seconds = step_seconds;
    progress.text = measures_text(measures);
    if (!measured_.empty()) progress.text += "  |  " + measures_text(main_measures(measured_));
    if (!options_.progress(progress)) stop = true;
    return {};
  }

  // Every rank draws its share of the clips.
  Status measure() {
    if (!samples_ || context_.config.evaluate.captions == 0) return {};
    last_measured_ = Clock::now();
    objective_.begin_sampling();
    measured_ = samples_->measure([this](const SampleRequest& request) {
      return objective_.sample(request.noise, request.tokens);
    });
    measure_seconds_ = seconds_since(last_measured_);
    if (journal_) {
      Measures measures = measured_;
      measures.emplace_back("measure_seconds", measure_seconds_);
      UF_TRY(journal_->add(counters_.step, seconds(), measures));
      context_.log.info(fmt::format("step {}: {} ({:.1f} s)", counters_.step,
                                    measures_text(measured_), measure_seconds_));
    }
    start_interval();
    return {};
  }

  Status look() {
    if (!journal_) return {};
    const Measures measures = objective_.evaluate();
    if (!measures.empty()) {
      context_.log.info(fmt::format("step {}: {}", counters_.step, measures_text(measures)));
      UF_TRY(journal_->add(counters_.step, seconds(), measures));
    }
    std::optional<RgbImage> image = objective_.sheet();
    if (!image && samples_) {
      objective_.begin_sampling();
      image = samples_->sheet([this](const SampleRequest& request) {
        return objective_.sample(request.noise, request.tokens);
      });
    }
    if (image) UF_TRY(journal_->save_picture("sheet", *image));
    UF_TRY(journal_->draw_curves());
    start_interval();
    return {};
  }

  Status save() {
    if (!parallel_.leads()) return {};
    counters_.seconds = seconds();
    counters_.ranks = parallel_.size();
    UF_ASSIGN(checkpoint_, save_state(options_.out, objective_.sets(), counters_,
                                      context_.config.compact_checkpoint));
    return {};
  }

  void start_interval() {
    interval_start_ = Clock::now();
    interval_step_ = counters_.step;
  }

  const TrainOptions& options_;
  TrainContext& context_;
  DataParallel& parallel_;
  Objective& objective_;
  std::unique_ptr<Samples> samples_;
  std::optional<Journal> journal_;
  RunCounters counters_;
  double earlier_seconds_;
  Clock::time_point start_;
  Clock::time_point interval_start_;
  int64_t interval_step_ = 0;
  Clock::time_point last_measured_;
  double measure_seconds_ = 0.0;  // of the last time
  Measures measured_;
  Meter meter_;
  std::filesystem::path checkpoint_;
};

Result<TrainSummary> run(const TrainOptions& options, const std::shared_ptr<RankGroup>& group) {
  TrainContext context;
  UF_ASSIGN(context.config, read_config(options));
  if (context.config.gpus != group->size()) {
    return make_status(StatusCode::kInvalidArgument,
                       "the config asks for {} ranks, and {} were started", context.config.gpus,
                       group->size());
  }
  UF_ASSIGN(const Recipe recipe, Recipe::find(context.config.recipe));
  context.recipe = recipe.data();
  if (context.config.crop.height > 0) {
    context.recipe.generator.latent_height = context.config.crop.height;
    context.recipe.generator.latent_width = context.config.crop.width;
  }
  UF_ASSIGN(const Device device, parse_device(options.device, *group));
  open_torch_device(device);
  context.device = to_torch(device);
  UF_ASSIGN(context.parallel, DataParallel::open(group, context.device));
  context.executor = make_autograd_executor(
      {.device = device, .recompute = context.config.recompute == Recompute::kBlocks});
  context.compute = context.config.compute == ComputeType::kBF16 ? DType::kBF16 : DType::kF32;
  const bool leads = group->leads();
  if (leads) context.log = options.log;
  // Shapes repeat from step to step, so trying the convolution algorithms once pays.
  at::globalContext().setBenchmarkCuDNN(device.type == DeviceType::kCuda);

  std::error_code error;
  std::filesystem::create_directories(options.out, error);  // ranks may do so at once
  if (error) {
    return make_status(StatusCode::kIo, "{}: cannot be made: {}", options.out.string(),
                       error.message());
  }
  if (!options.write_embeddings.empty()) {
    UF_TRY(write_embeddings(context, options.write_embeddings));
    return TrainSummary{0, true, {options.write_embeddings}, {}};
  }
  if (options.degradations || options.prepare > 0 || context.config.degrade.share > 0.0) {
    UF_ASSIGN(const std::string what, degrade::describe(context.config.degrade));
    if (degrade::stands_in(context.config.degrade)) {
      context.log.warning(what);
    } else {
      context.log.info(what);
    }
  }
  if (options.prepare > 0) {
    UF_TRY(prepare_clips(context, options.prepare, options.out));
    return TrainSummary{0, true, {}, {}};
  }
  if (options.degradations) {
    UF_ASSIGN(const Journal journal, Journal::open(options.out, 0));
    UF_ASSIGN(const RgbImage sheet, degrade::degradation_sheet(context));
    UF_TRY(journal.save_picture("degradations", sheet));
    return TrainSummary{0, true, {}, {}};
  }
  if (options.calibrate) {
    UF_ASSIGN(const std::filesystem::path path, calibrate_cache_management(context, options.out));
    return TrainSummary{0, true, {path}, {}};
  }
  UF_ASSIGN(const std::unique_ptr<Objective> objective, make_objective(context));
  RunCounters counters;
  if (options.resume) {
    const std::filesystem::path checkpoint = newest_state(options.out);
    if (!checkpoint.empty()) {
      UF_TRY(load_state(checkpoint, objective->sets(), counters));
      context.log.info(fmt::format("resuming from {}", checkpoint.string()));
      if (counters.ranks != group->size()) {
        context.log.warning(fmt::format(
            "this run was trained by {} ranks and goes on with {}: other clips and noise than it "
            "would have had, so its weights will not be the same bit for bit",
            counters.ranks, group->size()));
      }
    }
    group->meet();  // rank 0 removes this checkpoint when it writes its own
  }
  int64_t parameters = 0;
  for (TrainedSet* set : objective->sets()) {
    set->parallel = context.parallel.get();
    parameters += set->parameters->parameter_count();
  }
  context.log.info(fmt::format("training {} parameters on {}, {}, {} clips a step", parameters,
                               context.executor->description(), context.parallel->description(),
                               context.config.batch * group->size()));
  context.log.info(train_config_json(context.config, 2));
  std::optional<Journal> journal;
  if (leads) {
    UF_ASSIGN(journal, Journal::open(options.out, counters.step));
    UF_TRY(journal->add_config(train_config_json(context.config, -1)));
  }
  std::unique_ptr<Samples> samples;
  if (objective->samples() &&
      (context.config.flow.sample_clips > 0 || context.config.evaluate.captions > 0)) {
    UF_ASSIGN(samples, Samples::open(context));
  }
  return Run(options, context, *objective, std::move(samples), std::move(journal), counters).go();
}

Result<TrainSummary> run_or_catch(const TrainOptions& options,
                                  const std::shared_ptr<RankGroup>& group) {
  try {
    return run(options, group);
  } catch (const Error& error) {
    return error.status();
  } catch (const c10::OutOfMemoryError& error) {
    return make_status(StatusCode::kOutOfMemory, "{}", error.what_without_backtrace());
  } catch (const c10::Error& error) {
    return make_status(StatusCode::kDevice, "libtorch: {}", error.what_without_backtrace());
  }
}

}  // namespace

Result<TrainSummary> run_training(const TrainOptions& options) {
  UF_ASSIGN(const std::shared_ptr<RankGroup> group, RankGroup::from_environment());
  Result<TrainSummary> summary = run_or_catch(options, group);
  // Who falls with another rank has nothing to say.
  if (!summary.ok() && summary.status().code() != StatusCode::kCancelled) {
    group->fail(summary.status());
  }
  return summary;
}

Result<int64_t> training_ranks(const TrainOptions& options) {
  UF_ASSIGN(const TrainConfig config, read_config(options));
  return config.gpus;
}

Result<std::string> describe_training(const TrainOptions& options) {
  UF_ASSIGN(const TrainConfig config, read_config(options));
  return train_config_json(config, 2);
}

}  // namespace ultraflash
