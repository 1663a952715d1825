#include "train/state.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "core/check.h"
#include "ops/autograd/torch_tensor.h"
#include "weights/checkpoint.h"
#include "weights/safetensors_writer.h"

namespace ultraflash {
namespace {

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kFile = "state.safetensors";
constexpr const char* kCounters = "counters";  // f64: step, seconds, compact, ranks
constexpr float kLargestF8 = 448.0F;

void put(std::vector<NamedTensor>& tensors, std::string name, const at::Tensor& tensor) {
  tensors.push_back({std::move(name), from_torch(tensor.detach().to(at::kCPU).contiguous())});
}

// In 8 bits, as multiples of largest / 448.
void put_scaled(std::vector<NamedTensor>& tensors, const std::string& name, const at::Tensor& x) {
  const at::Tensor scale =
      x.detach().abs().max().to(at::kCPU, at::kFloat).clamp_min(1e-30F) / kLargestF8;
  put(tensors, name,
      (x.detach() / scale.to(x.device())).clamp(-kLargestF8, kLargestF8).to(at::kFloat8_e4m3fn));
  put(tensors, name + ".scale", scale.reshape({1}));
}

// Second moments are positive and spread over many orders of magnitude: their roots in 4 bits, two
// a byte, as steps of a factor of sqrt(2) below the largest of their row. What is smaller than
// 1/181 of it is taken for that much, which makes a step of Adam smaller, never larger.
constexpr double kStepsPerOctave = 2.0;
constexpr int64_t kLastStep = 15;

int64_t rows_of(at::IntArrayRef sizes) { return sizes.size() >= 2 ? sizes[0] : 1; }

void put_logarithmic(std::vector<NamedTensor>& tensors, const std::string& name,
                     const at::Tensor& x) {
  const at::Tensor rows = x.detach().to(at::kCPU, at::kFloat).reshape({rows_of(x.sizes()), -1});
  const at::Tensor largest = rows.amax(1, /*keepdim=*/true).clamp_min(1e-30F);
  at::Tensor steps = (rows / largest).log2().mul(-kStepsPerOctave).round();
  steps = steps.clamp(0.0, static_cast<double>(kLastStep)).to(at::kByte).reshape({-1});
  if (steps.numel() % 2 != 0) steps = at::cat({steps, at::zeros({1}, at::kByte)});
  const at::Tensor pairs = steps.reshape({-1, 2});
  put(tensors, name, pairs.select(1, 0) * 16 + pairs.select(1, 1));
  put(tensors, name + ".largest", largest.reshape({-1}));
}

struct Reader {
  const Checkpoint& checkpoint;

  Result<at::Tensor> get(const std::string& name, at::IntArrayRef sizes) const {
    UF_ASSIGN(const Tensor stored, checkpoint.tensor(name));
    const at::Tensor tensor = to_torch(stored);
    if (tensor.sizes() != sizes) {
      return make_status(StatusCode::kMalformed,
                         "{}: {} is {}; this checkpoint is of another config", checkpoint.label(),
                         name, stored.to_string());
    }
    return tensor;
  }
  Result<at::Tensor> get_scaled(const std::string& name, at::IntArrayRef sizes) const {
    UF_ASSIGN(const at::Tensor stored, get(name, sizes));
    UF_ASSIGN(const at::Tensor scale, get(name + ".scale", {1}));
    return stored.to(at::kFloat) * scale;
  }
  Result<at::Tensor> get_logarithmic(const std::string& name, at::IntArrayRef sizes) const {
    const int64_t count = c10::multiply_integers(sizes);
    UF_ASSIGN(const at::Tensor pairs, get(name, {(count + 1) / 2}));
    UF_ASSIGN(const at::Tensor largest, get(name + ".largest", {rows_of(sizes)}));
    const at::Tensor steps = at::stack({pairs.div(16, "floor"), pairs.remainder(16)}, 1)
                                 .reshape({-1})
                                 .narrow(0, 0, count);
    const at::Tensor shares = at::exp2(steps.to(at::kFloat) / -kStepsPerOctave);
    return (shares.reshape({rows_of(sizes), -1}) * largest.reshape({-1, 1})).reshape(sizes);
  }
};

Status load_set(const Reader& reader, TrainedSet& set, bool compact) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor>& leaves = set.parameters->leaves();
  const std::vector<std::string> names = set.parameters->names();
  for (size_t i = 0; i < leaves.size(); ++i) {
    const at::IntArrayRef sizes = leaves[i].sizes();
    const auto named = [&](const char* kind) {
      return fmt::format("{}.{}.{}", set.name, kind, names[i]);
    };
    if (compact) {
      UF_ASSIGN(const at::Tensor average, reader.get(named("average"), sizes));
      UF_ASSIGN(const at::Tensor difference, reader.get_scaled(named("difference"), sizes));
      UF_ASSIGN(const at::Tensor first, reader.get_scaled(named("first"), sizes));
      leaves[i].copy_(average.to(at::kFloat) + difference);
      if (set.average) set.average->values()[i].copy_(average);
      set.optimizer->first_moments()[i].copy_(first);
      set.optimizer->second_moments()[i].zero_();
      if (reader.checkpoint.find(named("second_root")) == nullptr) continue;
      UF_ASSIGN(const at::Tensor root, reader.get_logarithmic(named("second_root"), sizes));
      set.optimizer->second_moments()[i].copy_(root.square());
      continue;
    }
    UF_ASSIGN(const at::Tensor weight, reader.get(named("weight"), sizes));
    UF_ASSIGN(const at::Tensor first, reader.get(named("first"), sizes));
    UF_ASSIGN(const at::Tensor second, reader.get(named("second"), sizes));
    leaves[i].copy_(weight);
    set.optimizer->first_moments()[i].copy_(first);
    set.optimizer->second_moments()[i].copy_(second);
    if (set.average) {
      UF_ASSIGN(const at::Tensor average, reader.get(named("average"), sizes));
      set.average->values()[i].copy_(average);
    }
  }
  mark_changed(leaves);
  UF_ASSIGN(const at::Tensor updates, reader.get(set.name + ".updates", {1}));
  set.updates = static_cast<int64_t>(updates.item<float>());
  UF_ASSIGN(const at::Tensor applied, reader.get(set.name + ".applied", {1}));
  set.optimizer->updates().copy_(applied.reshape({}));
  return {};
}

}  // namespace

void TrainedSet::begin(const OptimizerConfig& config, const EmaConfig* ema) {
  optimizer = std::make_unique<Optimizer>(*parameters, config);
  if (ema != nullptr) average = std::make_unique<WeightAverage>(*parameters, *ema);
}

at::Tensor TrainedSet::update(double factor) {
  if (parallel != nullptr && parallel->size() > 1) {
    if (!gradients) gradients = std::make_unique<GradientBuffer>(parameters->leaves());
    gradients->take(parameters->leaves());
    parallel->average(gradients->flat());
  }
  at::Tensor norm = optimizer->step(optimizer->config().lr * factor);
  if (average) average->update(*parameters, updates);
  ++updates;
  return norm;
}

Result<std::filesystem::path> save_state(const std::filesystem::path& out,
                                         const std::vector<TrainedSet*>& sets,
                                         const RunCounters& counters, bool compact) {
  std::vector<NamedTensor> tensors;
  put(tensors, kCounters,
      at::tensor({static_cast<double>(counters.step), counters.seconds, compact ? 1.0 : 0.0,
                  static_cast<double>(counters.ranks)},
                 at::kDouble));
  for (const TrainedSet* set : sets) {
    const std::vector<at::Tensor>& leaves = set->parameters->leaves();
    const std::vector<std::string> names = set->parameters->names();
    put(tensors, set->name + ".updates",
        at::full({1}, static_cast<double>(set->updates), at::kFloat));
    put(tensors, set->name + ".applied", set->optimizer->updates().reshape({1}));
    for (size_t i = 0; i < leaves.size(); ++i) {
      const auto named = [&](const char* kind) {
        return fmt::format("{}.{}.{}", set->name, kind, names[i]);
      };
      const at::Tensor& second = set->optimizer->second_moments()[i];
      if (compact) {
        const at::Tensor average = set->best()[i].detach().to(at::kBFloat16);
        put(tensors, named("average"), average);
        put_scaled(tensors, named("difference"), leaves[i].detach() - average.to(at::kFloat));
        put_scaled(tensors, named("first"), set->optimizer->first_moments()[i]);
        // Muon has none.
        if (second.any().item<bool>())
          put_logarithmic(tensors, named("second_root"), second.sqrt());
        continue;
      }
      put(tensors, named("weight"), leaves[i]);
      put(tensors, named("first"), set->optimizer->first_moments()[i]);
      put(tensors, named("second"), second);
      if (set->average) put(tensors, named("average"), set->average->values()[i]);
    }
  }
  const std::filesystem::path final_path = out / fmt::format("{}{:08}", kPrefix, counters.step);
  const std::filesystem::path temporary = out / ".checkpoint-new";
  std::error_code error;
  std::filesystem::remove_all(temporary, error);
  std::filesystem::create_directories(temporary, error);
  if (error) {
    return make_status(StatusCode::kIo, "{}: cannot be made: {}", temporary.string(),
                       error.message());
  }
  UF_TRY(save_sharded_safetensors(temporary / kFile, tensors,
                                  {{"format", "ultraflash training state"}}, kMaxPartBytes));
  std::filesystem::remove_all(final_path, error);
  std::filesystem::rename(temporary, final_path, error);
  if (error) {
    return make_status(StatusCode::kIo, "{}: cannot be named: {}", final_path.string(),
                       error.message());
  }
  for (const auto& entry : std::filesystem::directory_iterator(out, error)) {
    if (entry.path().filename().string().starts_with(kPrefix) && entry.path() != final_path) {
      std::filesystem::remove_all(entry.path(), error);
    }
  }
  return final_path;
}

std::filesystem::path newest_state(const std::filesystem::path& out) {
  std::filesystem::path newest;
  int64_t newest_step = -1;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(out, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t step = -1;
    const char* begin = name.data() + std::string_view(kPrefix).size();
    std::from_chars(begin, name.data() + name.size(), step);
    if (step > newest_step) {
      newest_step = step;
      newest = entry.path();
    }
  }
  return newest;
}

Status load_state(const std::filesystem::path& path, const std::vector<TrainedSet*>& sets,
                  RunCounters& counters) {
  CheckpointOptions options;
  options.clean_names = false;
  UF_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(path, options));
  const Reader reader{checkpoint};
  UF_ASSIGN(const at::Tensor numbers, reader.get(kCounters, {4}));
  counters.step = static_cast<int64_t>(numbers[0].item<double>());
  counters.seconds = numbers[1].item<double>();
  const bool compact = numbers[2].item<double>() != 0.0;
  counters.ranks = static_cast<int64_t>(numbers[3].item<double>());
  for (TrainedSet* set : sets) UF_TRY(load_set(reader, *set, compact));
  return {};
}

}  // namespace ultraflash
