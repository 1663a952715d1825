#include "settings.h"

#include <fmt/format.h>

#include <limits>

#include "options.h"
#include "stream/quality_score.h"

namespace ultraflash::cli {

namespace {

constexpr int64_t kMaxLatentFrames = 100'000;
constexpr uint64_t kMaxSeed = std::numeric_limits<uint64_t>::max();

}  // namespace

std::string dump_json(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', /*ensure_ascii=*/false,
                   nlohmann::ordered_json::error_handler_t::replace);
}

CLI::Option* add_settings_file(CLI::App& app, std::string& path) {
  return add_text(app, "--settings", path, "FILE",
                  "Read options from this JSON file, by their long names: {\"seed\": 7, "
                  "\"prompt\": \"a red circle\"}. The command line wins.");
}

void EngineSettings::add_to(CLI::App& app) {
  from_environment(
      add_text(app, "-r,--recipe", recipe, "NAME", "Preset (see 'ultraflash list') or recipe file"),
      "UF_RECIPE");
  from_environment(add_text(app, "-w,--weights", weights, "FOLDER",
                            "Folder with the published checkpoints", {"the shipped models"}),
                   "UF_WEIGHTS");
  app.add_flag("--random-weights", random_weights, "Draw all weights at random, read no files");
  add_integer(app, "--weights-seed", weights_seed, uint64_t{0}, kMaxSeed, "Seed of random weights");
  add_integer(app, "--scale", scale, int64_t{0}, int64_t{16},
              "Enlargement of the generator's own size; 0: the recipe's");
  from_environment(
      add_text(app, "--device", device, "NAME", "Where to compute: auto, cpu, cuda or cuda:N"),
      "UF_DEVICE");
  from_environment(
      add_choice(app, "--dtype", dtype, {"auto", "f32", "bf16", "fp8"}, "Type to compute in"),
      "UF_DTYPE");
  add_choice(app, "--attention", attention, {"auto", "fp8"},
             "Self-attention: auto (in --dtype, bf16 beside fp8) or fp8");
  add_choice(app, "--fp8-sums", fp8_sums, {"exact", "fast"},
             "Sums of products with --dtype fp8: exact (f32) or fast (those of the tensor cores)");
  from_environment(add_integer(app, "--threads", threads, 0, 1024, "CPU threads; 0: all"),
                   "UF_THREADS");
  add_bytes(
      app, "--memory-limit", memory_limit,
      "Most memory, such as 8G: of a GPU for everything, of the host for activations and caches",
      {"what the device has"});
  add_choice(app, "--cuda-graphs", cuda_graphs, {"on", "off"},
             "GPU: record steady work once and replay it");
  add_choice(app, "--overlap", overlap, {"on", "off"},
             "GPU: run the cascade of one group beside the generator of the next");
  add_integer(app, "--window", window, int64_t{0}, kMaxLatentFrames,
              "KV cache in latent frames, sink included; 0: the recipe's");
  add_integer(app, "--sink", sink, int64_t{-1}, kMaxLatentFrames,
              "First latent frames that stay in the cache; -1: the recipe's");
}

Result<EngineOptions> EngineSettings::engine_options() const {
  EngineOptions options;
  options.device = device;
  options.dtype = dtype;
  options.attention = attention;
  options.fp8_sums = fp8_sums;
  options.weights_dir = weights;
  options.random_weights = random_weights;
  options.random_weights_seed = weights_seed;
  options.scale = scale;
  options.threads = threads;
  options.cuda_graphs = cuda_graphs == "on";
  options.overlap = overlap == "on";
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
  json["attention"] = attention;
  json["fp8_sums"] = fp8_sums;
  json["threads"] = threads;
  json["memory_limit"] = memory_limit;
  json["cuda_graphs"] = cuda_graphs;
  json["overlap"] = overlap;
  json["window"] = window;
  json["sink"] = sink;
}

void StreamSettings::add_to(CLI::App& app) {
  add_integer(app, "--seed", seed, uint64_t{0}, kMaxSeed, "Seed of all noise");
  add_choice(app, "--trim", trim, {"intended", "released"},
             "First frames to drop: 3, or 6 as the released scripts do");
  add_number(app, "--condition-noise", condition_noise, -1.0, 1.0,
             "Noise mixed into the SR condition; below 0: the recipe's");
  const std::string group = "Dynamic cache management (faster, approximate; all off by default)";
  add_integer(app, "--dcm-steps", dcm_steps, int64_t{0}, int64_t{1000},
              "Denoising steps of chunks after the first; 0: all")
      ->group(group);
  add_choice(app, "--dcm-refresh", dcm_refresh_score, {"always", "sharpness", "never"},
             "When the context pass runs: always, unless the last frame is sharp, never")
      ->group(group);
  add_number(app, "--dcm-refresh-threshold", dcm_refresh_threshold, 0.0, 1.0,
             "Sharpness score above which the context pass is skipped")
      ->group(group);
  app.add_flag("--dcm-sr-cache", dcm_sr_cache, "Let the SR cache shrink as the stream goes on")
      ->group(group);
  add_integer(app, "--dcm-sr-kv-len-min", dcm_sr_kv_len_min, int64_t{1}, int64_t{1000},
              "Least length of the SR cache, in blocks of 2 latent frames")
      ->group(group);
  add_integer(app, "--dcm-sr-warmup", dcm_sr_warmup_groups, int64_t{0}, int64_t{1'000'000},
              "Groups of chunks before the SR cache shrinks")
      ->group(group);
}

void StreamSettings::fill(SessionOptions& options) const {
  options.seed = seed;
  options.trim = trim == "released" ? TrimRule::kReleased : TrimRule::kIntended;
  options.condition_noise_scale = condition_noise;
  CacheManagement& dcm = options.cache_management;
  dcm.steps_after_first_chunk = dcm_steps;
  if (dcm_refresh_score == "sharpness") dcm.refresh_score = sharpness_score;
  dcm.never_refresh = dcm_refresh_score == "never";
  dcm.refresh_threshold = dcm_refresh_threshold;
  dcm.adapt_sr_cache = dcm_sr_cache;
  dcm.sr_kv_len_min = dcm_sr_kv_len_min;
  dcm.sr_warmup_groups = dcm_sr_warmup_groups;
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
