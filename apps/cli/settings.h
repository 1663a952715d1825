// The settings of generate: declared once, with names, defaults, ranges and help; read from the
// command line, environment and a settings file, and stored with the video.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ultraflash/engine.h"
#include "ultraflash/status.h"

namespace ultraflash::cli {

/// Options that say which engine to load; shared by generate and bench.
struct EngineSettings {
  std::string recipe = "pocket";
  std::string weights;
  bool random_weights = false;
  uint64_t weights_seed = 0;
  int64_t scale = 0;
  std::string device = "auto";
  std::string dtype = "auto";
  int threads = 0;
  std::string memory_limit;  // "8G", "500M"
  int64_t window = 0;
  int64_t sink = -1;

  void add_to(CLI::App& app);
  [[nodiscard]] Result<EngineOptions> engine_options() const;
  void write(nlohmann::ordered_json& json) const;
};

/// Options of one stream; shared by generate and bench.
struct StreamSettings {
  uint64_t seed = 0;
  std::string trim = "intended";
  double condition_noise = -1.0;
  int64_t dcm_steps = 0;
  std::string dcm_refresh_score;  // "", "sharpness", "never"
  double dcm_refresh_threshold = 0.62;
  bool dcm_sr_cache = false;
  int64_t dcm_sr_kv_len_min = 1;
  int64_t dcm_sr_warmup_groups = 2;

  void add_to(CLI::App& app);
  /// Fills everything but prompts and length.
  [[nodiscard]] Status fill(SessionOptions& options) const;
  void write(nlohmann::ordered_json& json) const;
};

/// "8G", "500M", "1.5GiB", "1000000" in bytes; 0 for an empty text.
Result<uint64_t> parse_bytes(const std::string& text);

}  // namespace ultraflash::cli
