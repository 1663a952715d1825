#include "train/objective.h"

#include <algorithm>
#include <mutex>
#include <thread>

#include "stream/networks.h"
#include "train/text_batches.h"
#include "weights/checkpoint.h"
#include "weights/parameter_source.h"

namespace ultraflash {

int64_t TrainContext::workers() const {
  if (config.data.workers > 0) return config.data.workers;
  const auto processors = static_cast<int64_t>(std::thread::hardware_concurrency());
  return std::max<int64_t>(1, processors / ranks() - 1);
}

int64_t TrainContext::prefetch() const {
  return config.data.prefetch > 0 ? config.data.prefetch : 2 * workers();
}

namespace {

void seed_device(const at::Device& device, uint64_t seed) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::lock_guard lock(generator.mutex());
  generator.set_current_seed(seed);
}

uint64_t step_seed(const TrainConfig& config, int64_t step, int64_t purpose) {
  // Odd multipliers spread consecutive steps and purposes over the seeds.
  return static_cast<uint64_t>(config.seed) * 0x9E3779B97F4A7C15ULL +
         static_cast<uint64_t>(step) * 0xD1B54A32D192ED03ULL +
         static_cast<uint64_t>(purpose) * 0x8CB92BA72F3D8DD7ULL;
}

}  // namespace

void TrainContext::seed_step(int64_t step, int64_t purpose) const {
  seed_device(device, step_seed(config, step, purpose) + rank_seed());
}

void TrainContext::seed_shared_step(int64_t step, int64_t purpose) const {
  seed_device(device, step_seed(config, step, purpose));
}

at::Tensor Objective::sample(const at::Tensor& /*noise*/, const TokenBatch& /*tokens*/) {
  throw_error(StatusCode::kInternal, "a stage that draws no clips was asked for some");
}

Result<std::vector<std::filesystem::path>> publish_sets(const TrainContext& context,
                                                        const std::filesystem::path& out,
                                                        const std::vector<PublishedSet>& sets) {
  std::vector<std::filesystem::path> paths;
  for (const PublishedSet& published : sets) {
    // Under the first of the recipe's names that says what it is.
    const std::vector<std::string>& files = published.checkpoint.files;
    const auto named = std::find_if(files.begin(), files.end(), [](const std::string& file) {
      return file.ends_with(".safetensors");
    });
    paths.push_back(out / (named != files.end() ? *named : files[0]));
    UF_TRY(save_parameters(
        paths.back(), published.set.parameters->names(), published.set.best(), published.dtype,
        {{"format", "pt"},
         {"source", fmt::format("ultraflash train, {}", stage_name(context.config.stage))}}));
  }
  return paths;
}

void Meter::add(const std::string& name, const at::Tensor& scalar) {
  const at::NoGradGuard no_grad;
  auto [position, fresh] = sums_.try_emplace(name);
  auto& [sum, count] = position->second;
  if (fresh) order_.push_back(name);
  const at::Tensor value = scalar.detach().to(at::kDouble).reshape({});
  sum = sum.defined() ? sum + value : value;
  ++count;
}

Measures Meter::take() {
  Measures measures;
  std::vector<at::Tensor> sums;
  for (const std::string& name : order_) sums.push_back(sums_[name].first);
  if (!sums.empty()) {
    const at::Tensor host = at::stack(sums).to(at::kCPU);
    for (size_t i = 0; i < order_.size(); ++i) {
      measures.emplace_back(order_[i], host.const_data_ptr<double>()[i] /
                                           static_cast<double>(sums_[order_[i]].second));
    }
  }
  order_.clear();
  sums_.clear();
  return measures;
}

Result<InitialWeights> InitialWeights::open(const TrainContext& context, const std::string& init,
                                            const CheckpointSpec& spec) {
  InitialWeights initial;
  if (init.empty()) {
    const auto seed = static_cast<uint64_t>(context.config.seed);
    initial.source = std::make_unique<RandomSource>(file_seed(seed, spec));
    initial.label = "random weights";
    return initial;
  }
  std::filesystem::path path = init;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    const std::filesystem::path found = find_weights(path, spec.files);
    if (found.empty()) {
      return make_status(StatusCode::kNotFound, "{}: no {} here; run the stage that makes it first",
                         init, fmt::join(spec.files, " or "));
    }
    path = found;
  }
  CheckpointOptions options;
  options.wrapper = spec.wrapper;
  options.wrapper_order = default_wrapper_order(spec.prefer_ema);
  UF_ASSIGN(Checkpoint checkpoint, Checkpoint::open(path, options));
  initial.source = std::make_unique<CheckpointSource>(std::move(checkpoint));
  initial.label = path.string();
  return initial;
}

}  // namespace ultraflash
