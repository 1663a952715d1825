#include "settings.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "quality_score.h"

namespace ultraflash::cli {

Result<uint64_t> parse_bytes(const std::string& text) {
  if (text.empty()) return uint64_t{0};
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  const std::string unit(end);
  static const std::vector<std::pair<std::string, double>> kUnits = {
      {"", 1.0},    {"B", 1.0},      {"k", 1e3},      {"K", 1e3},      {"M", 1e6},
      {"G", 1e9},   {"T", 1e12},     {"kB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 1024.0}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  for (const auto& [name, factor] : kUnits) {
    if (unit != name || end == text.c_str()) continue;
    const double bytes = number * factor;
    if (!(bytes >= 1.0) || bytes > 0x1p62) break;
    return static_cast<uint64_t>(bytes);
  }
  return Status(StatusCode::kInvalidArgument,
                fmt::format("'{}' is no amount of memory; write it like 8G, 500M or 6GiB", text));
}

void EngineSettings::add_to(CLI::App& app) {
  app.add_option("-r,--recipe", recipe, "Preset (see 'ultraflash list') or recipe file")
      ->envname("UF_RECIPE")
      ->capture_default_str();
  app.add_option("-w,--weights", weights,
                 "Folder with the published checkpoints; default: the shipped models")
      ->envname("UF_WEIGHTS");
  app.add_flag("--random-weights", random_weights, "Draw all weights at random, read no files");
  app.add_option("--weights-seed", weights_seed, "Seed of random weights")->capture_default_str();
  app.add_option("--scale", scale, "Enlargement: 1 for the generator's own size; 0: the recipe's")
      ->capture_default_str();
  app.add_option("--device", device, "auto, cpu, cuda or cuda:N")
      ->envname("UF_DEVICE")
      ->capture_default_str();
  app.add_option("--dtype", dtype, "Type to compute in: auto, f32 or bf16")
      ->envname("UF_DTYPE")
      ->capture_default_str();
  app.add_option("--threads", threads, "CPU threads; 0: all")
      ->envname("UF_THREADS")
      ->capture_default_str();
  app.add_option("--memory-limit", memory_limit,
                 "Most memory for activations and caches, e.g. 8G; default: no limit");
  app.add_option("--window", window, "KV cache in latent frames, sink included; 0: the recipe's")
      ->capture_default_str();
  app.add_option("--sink", sink, "First latent frames that stay in the cache; -1: the recipe's")
      ->capture_default_str();
}

Result<EngineOptions> EngineSettings::engine_options() const {
  EngineOptions options;
  options.device = device;
  options.dtype = dtype;
  options.weights_dir = weights;
  options.random_weights = random_weights;
  options.random_weights_seed = weights_seed;
  options.scale = scale;
  options.threads = threads;
  options.window_frames = window;
  options.sink_frames = sink;
  UF_ASSIGN(options.memory_limit_bytes, parse_bytes(memory_limit));
  return options;
}

void EngineSettings::write(nlohmann::ordered_json& json) const {
  json["recipe"] = recipe;
  json["weights"] = weights;
  json["random_weights"] = random_weights;
  json["weights_seed"] = weights_seed;
  json["scale"] = scale;
  json["device"] = device;
  json["dtype"] = dtype;
  json["threads"] = threads;
  json["memory_limit"] = memory_limit;
  json["window"] = window;
  json["sink"] = sink;
}

void StreamSettings::add_to(CLI::App& app) {
  app.add_option("--seed", seed, "Seed of all noise")->capture_default_str();
  app.add_option("--trim", trim,
                 "First frames to drop: 'intended' (3) or 'released' (6, as the released scripts)")
      ->check(CLI::IsMember({"intended", "released"}))
      ->capture_default_str();
  app.add_option("--condition-noise", condition_noise,
                 "Noise mixed into the SR condition, 0 to 1; -1: the recipe's")
      ->capture_default_str();
  const std::string group = "Dynamic cache management (faster, approximate; all off by default)";
  app.add_option("--dcm-steps", dcm_steps, "Denoising steps of chunks after the first; 0: all")
      ->group(group)
      ->capture_default_str();
  app.add_option("--dcm-refresh", dcm_refresh_score,
                 "Skip the context pass: 'sharpness' (of good frames) or 'never' (run it)")
      ->group(group)
      ->check(CLI::IsMember({"", "sharpness", "never"}));
  app.add_option("--dcm-refresh-threshold", dcm_refresh_threshold,
                 "Score above which the context pass is skipped")
      ->group(group)
      ->capture_default_str();
  app.add_flag("--dcm-sr-cache", dcm_sr_cache, "Let the SR cache shrink as the stream goes on")
      ->group(group);
  app.add_option("--dcm-sr-kv-len-min", dcm_sr_kv_len_min, "Least temporal blocks of the SR cache")
      ->group(group)
      ->capture_default_str();
  app.add_option("--dcm-sr-warmup", dcm_sr_warmup_groups, "Groups before the SR cache shrinks")
      ->group(group)
      ->capture_default_str();
}

Status StreamSettings::fill(SessionOptions& options) const {
  options.seed = seed;
  options.trim = trim == "released" ? TrimRule::kReleased : TrimRule::kIntended;
  options.condition_noise_scale = condition_noise;
  CacheManagement& dcm = options.cache_management;
  dcm.steps_after_first_chunk = dcm_steps;
  if (dcm_refresh_score == "sharpness") dcm.refresh_score = sharpness_score;
  dcm.never_refresh = dcm_refresh_score == "never";
  if (!std::isfinite(dcm_refresh_threshold)) {
    return Status(StatusCode::kInvalidArgument, "--dcm-refresh-threshold must be a finite number");
  }
  dcm.refresh_threshold = dcm_refresh_threshold;
  dcm.adapt_sr_cache = dcm_sr_cache;
  dcm.sr_kv_len_min = dcm_sr_kv_len_min;
  dcm.sr_warmup_groups = dcm_sr_warmup_groups;
  return {};
}

void StreamSettings::write(nlohmann::ordered_json& json) const {
  json["seed"] = seed;
  json["trim"] = trim;
  json["condition_noise"] = condition_noise;
  json["dcm_steps"] = dcm_steps;
  json["dcm_refresh"] = dcm_refresh_score;
  json["dcm_refresh_threshold"] = dcm_refresh_threshold;
  json["dcm_sr_cache"] = dcm_sr_cache;
  json["dcm_sr_kv_len_min"] = dcm_sr_kv_len_min;
  json["dcm_sr_warmup"] = dcm_sr_warmup_groups;
}

}  // namespace ultraflash::cli
