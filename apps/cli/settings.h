// Settings that generate and bench share: declared once, with names, defaults, ranges and help;
// read from the command line, the environment and a settings file, and stored with the video.
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
  std::string attention = "auto";
  std::string fp8_sums = "exact";
  int threads = 0;
  std::string memory_limit;  // "8G", "500M"
  std::string cuda_graphs = "on";
  std::string overlap = "off";
  int64_t window = 0;
  int64_t sink = -1;

  void add_to(CLI::App& app);
  [[nodiscard]] Result<EngineOptions> engine_options() const;
  /// Under the names that --settings reads back.
  void write(nlohmann::ordered_json& json) const;
};

/// Options of one stream; shared by generate and bench.
struct StreamSettings {
  uint64_t seed = 0;
  std::string trim = "intended";
  double condition_noise = -1.0;
  int64_t dcm_steps = 0;
  std::string dcm_refresh_score = "always";
  double dcm_refresh_threshold = 0.62;
  bool dcm_sr_cache = false;
  int64_t dcm_sr_kv_len_min = 1;
  int64_t dcm_sr_warmup_groups = 2;

  void add_to(CLI::App& app);
  /// Fills everything but prompts and length.
  void fill(SessionOptions& options) const;
  void write(nlohmann::ordered_json& json) const;
};

/// Text of a JSON value; names of files may hold bytes that are no UTF-8, they become U+FFFD.
std::string dump_json(const nlohmann::ordered_json& json, int indent);

/// `--settings FILE` of generate and bench.
CLI::Option* add_settings_file(CLI::App& app, std::string& path);

}  // namespace ultraflash::cli
