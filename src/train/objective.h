// Objective: one stage of training. The trainer (trainer.cc) owns time, log and checkpoints; an
// objective owns networks, data and losses. TrainContext is what they share.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "media/frame.h"
#include "models/loader.h"
#include "ops/executor.h"
#include "stream/recipe_data.h"
#include "train/config.h"
#include "train/journal.h"
#include "train/parallel/data_parallel.h"
#include "train/parameters.h"
#include "train/state.h"
#include "ultraflash/log.h"
#include "weights/binder.h"

namespace ultraflash {

struct TokenBatch;

struct TrainContext {
  TrainConfig config;
  RecipeData recipe;
  std::unique_ptr<Executor> executor;
  at::Device device{at::kCPU};
  DType compute = DType::kBF16;
  double progress = 0.0;  // part of the run that is done, set before every step
  Logger log;
  std::unique_ptr<DataParallel> parallel;  // null: one rank

  [[nodiscard]] int64_t rank() const { return parallel ? parallel->rank() : 0; }
  [[nodiscard]] int64_t ranks() const { return parallel ? parallel->size() : 1; }
  /// Added to seeds of what each rank draws for itself; 0 on rank 0.
  [[nodiscard]] uint64_t rank_seed() const {
    return static_cast<uint64_t>(rank()) * 0xA24BAED4963EE407ULL;
  }
  [[nodiscard]] Executor& ops() const { return *executor; }
  [[nodiscard]] at::TensorOptions f32() const {
    return at::TensorOptions(at::kFloat).device(device);
  }
  /// Pixels of the base size.
  [[nodiscard]] int64_t width() const { return recipe.generator.latent_width * 8; }
  [[nodiscard]] int64_t height() const { return recipe.generator.latent_height * 8; }
  [[nodiscard]] int64_t workers() const;
  [[nodiscard]] int64_t prefetch() const;
  /// Seeds the device's generator from the run's seed, the rank, a step and a purpose, so that what
  /// follows draws the same numbers whenever that step is run.
  void seed_step(int64_t step, int64_t purpose = 0) const;
  /// The same on every rank.
  void seed_shared_step(int64_t step, int64_t purpose) const;
};

/// Sums of scalars on the device; reading them is the only wait of a training step.
class Meter {
 public:
  void add(const std::string& name, const at::Tensor& scalar);
  /// Means since the last call, in the order of first use.
  Measures take();

 private:
  std::vector<std::string> order_;
  std::map<std::string, std::pair<at::Tensor, int64_t>> sums_;
};

class Objective {
 public:
  virtual ~Objective() = default;

  /// In the order of checkpoints; all begun.
  virtual std::vector<TrainedSet*> sets() = 0;
  /// Before the first step of this process: workers start, banks are filled.
  virtual Status start(int64_t first_step) = 0;
  /// Forward, backward and update; `lr_factor` scales every learning rate.
  virtual void step(int64_t step, double lr_factor, Meter& meter) = 0;
  /// Floating-point operations that a step of this rank takes on average, as step_cost.h counts
  /// them; 0: not counted.
  [[nodiscard]] virtual double step_cost() const { return 0.0; }
  /// Measured on unseen data with the averaged weights.
  virtual Measures evaluate() { return {}; }
  virtual std::optional<RgbImage> sheet() { return std::nullopt; }
  /// True for stages that draw clips for captions: they have sample(), and no sheet() or one of
  /// their own.
  [[nodiscard]] virtual bool samples() const { return false; }
  /// Before calls of sample() between two steps: brings the averaged weights to where it uses them.
  virtual void begin_sampling() {}
  /// Latents drawn from `noise` [batch, frames, h, w, c] in the way in which what is trained here
  /// will be used. Fresh noise comes from the device's generator.
  virtual at::Tensor sample(const at::Tensor& noise, const TokenBatch& tokens);
  /// Writes the averaged weights as published files below `out`.
  virtual Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) = 0;
};

Result<std::unique_ptr<Objective>> make_autoencoder_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_flow_matching_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_causal_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_ode_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_self_forcing_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_upsampler_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_sr_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_sr_sparse_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_reward_objective(TrainContext& context);
Result<std::unique_ptr<Objective>> make_preference_objective(TrainContext& context);

/// Binds a network to `set`: from the file or folder `init`, or from random numbers when it is
/// empty. `unused` lists name prefixes that may stay unread.
template <typename Bind>
Status bind_network(const TrainContext& context, ParameterSet& set, const std::string& init,
                    const CheckpointSpec& spec, const std::vector<std::string>& unused,
                    const Bind& bind);

/// The source that `init` names (see bind_network), and its label for messages.
struct InitialWeights {
  std::unique_ptr<ParameterSource> source;
  std::string label;
  static Result<InitialWeights> open(const TrainContext& context, const std::string& init,
                                     const CheckpointSpec& spec);
};

template <typename Bind>
Status bind_network(const TrainContext& context, ParameterSet& set, const std::string& init,
                    const CheckpointSpec& spec, const std::vector<std::string>& unused,
                    const Bind& bind) {
  UF_ASSIGN(const InitialWeights initial, InitialWeights::open(context, init, spec));
  set.bind_from(initial.source.get());
  Binder binder(set, initial.label);
  for (const std::string& prefix : unused) binder.ignore_unused(prefix);
  LoadTarget target;
  target.executor = context.executor.get();
  target.compute = context.compute;
  try {
    bind(Loader(binder, target));
  } catch (const Error& error) {
    return error.status();
  }
  set.bind_from(nullptr);
  return binder.finish();
}

/// A trained set and the file that its averaged weights go to.
struct PublishedSet {
  const TrainedSet& set;
  const CheckpointSpec& checkpoint;
  DType dtype = DType::kBF16;
};
/// Writes each set under the recipe's name for it below `out`; the paths, in order.
Result<std::vector<std::filesystem::path>> publish_sets(const TrainContext& context,
                                                        const std::filesystem::path& out,
                                                        const std::vector<PublishedSet>& sets);

/// A stage that is bound to its networks and data.
template <typename Stage>
Result<std::unique_ptr<Objective>> open_objective(TrainContext& context) {
  auto objective = std::make_unique<Stage>(context);
  UF_TRY(objective->bind());
  return std::unique_ptr<Objective>(std::move(objective));
}

}  // namespace ultraflash
