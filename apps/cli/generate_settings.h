// The settings of generate: what the video shows, how long it is, where it goes.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "settings.h"
#include "ultraflash/engine.h"
#include "ultraflash/recipe.h"
#include "ultraflash/status.h"

namespace ultraflash::cli {

struct GenerateSettings {
  EngineSettings engine;
  StreamSettings stream;
  std::string settings_file;
  std::string prompt;
  std::string prompt_file;
  std::vector<std::string> prompt_at;
  std::string switch_mode = "plain";
  std::string text_embedding;
  std::string save_text_embedding;
  double seconds = 0.0;
  int64_t frames = 0;
  int64_t chunks = 0;
  bool endless = false;
  std::string out = "ultraflash.mp4";
  std::string format;
  std::string codec = "auto";
  int crf = 0;
  int64_t bitrate = 0;
  std::string preset;
  std::string save_lr;
  int enlarge = 1;
  bool json = false;

  void add_to(CLI::App& app);
  /// Reads the settings file, if there is one, and refuses what contradicts itself. Sets the
  /// default length.
  Status complete(CLI::App& app);
  /// One prompt for each video, all of them usable.
  [[nodiscard]] Result<std::vector<std::string>> prompts() const;
  /// Everything but the prompt.
  [[nodiscard]] Result<SessionOptions> session_options(const Recipe& recipe) const;
  [[nodiscard]] Result<EngineOptions> engine_options() const;
  /// Where the video of prompt `index` of `count` goes: for several, a number before the ending.
  [[nodiscard]] std::string output_path(size_t index, size_t count) const;
  [[nodiscard]] std::string low_resolution_path(size_t index, size_t count) const;
  /// All that is needed to make the video of `prompt` again, in the form of a settings file.
  [[nodiscard]] nlohmann::ordered_json stored(const std::string& prompt) const;
};

/// True for "-" and its other name.
bool goes_to_stdout(const std::string& path);

}  // namespace ultraflash::cli
