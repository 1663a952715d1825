// ultraflash list and doctor: what there is, and what this build and machine can do.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "common.h"
#include "media/frame_sink.h"
#include "ops/devices.h"
#include "options.h"
#include "settings.h"
#include "stream/networks.h"
#include "stream/shipped_models.h"
#include "ultraflash/recipe.h"
#include "ultraflash/version.h"

namespace ultraflash::cli {
namespace {

struct Needs {
  std::string role;
  std::vector<std::string> files;
  int64_t parameters = 0;
};

// Parameters of every checkpoint of a recipe at its default scale.
std::vector<Needs> needs_of(const Recipe& recipe) {
  std::vector<Needs> needs;
  for (const NetworkFile& file : network_files(recipe.data(), recipe.default_scale())) {
    SpecSource no_data;
    Binder binder(no_data, file.role);
    file.bind(Loader(binder, {}));
    Needs need{file.role, file.spec.files, 0};
    for (const ParameterSpec& spec : binder.specs()) need.parameters += spec.shape.numel();
    needs.push_back(std::move(need));
  }
  return needs;
}

int run_list(bool as_json, const std::string& show) {
  if (!show.empty()) {
    const Result<Recipe> recipe = Recipe::find(show);
    if (!recipe.ok()) return fail(recipe.status());
    fmt::print("{}\n", recipe->to_json());
    return 0;
  }
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const std::string& name : Recipe::presets()) {
    const Result<Recipe> recipe = Recipe::find(name);
    if (!recipe.ok()) return fail(recipe.status());
    const std::vector<Needs> needs = needs_of(*recipe);
    const int64_t scale = recipe->default_scale();
    if (as_json) {
      nlohmann::ordered_json files = nlohmann::ordered_json::array();
      for (const Needs& need : needs) {
        files.push_back(
            {{"network", need.role}, {"files", need.files}, {"parameters", need.parameters}});
      }
      all.push_back({{"name", name},
                     {"summary", recipe->summary()},
                     {"width", recipe->width(scale)},
                     {"height", recipe->height(scale)},
                     {"scales", recipe->scales()},
                     {"default_scale", scale},
                     {"frames_per_second", recipe->frames_per_second()},
                     {"random_weights", recipe->data().random_weights},
                     {"networks", files}});
      continue;
    }
    int64_t total = 0;
    for (const Needs& need : needs) total += need.parameters;
    fmt::print("{}: {}\n", name, recipe->summary());
    fmt::print("  {}x{} at {} frames/s; scales {}; {} parameters ({} in bf16)\n",
               recipe->width(scale), recipe->height(scale), recipe->frames_per_second(),
               fmt::join(recipe->scales(), ", "), human_count(total),
               human_bytes(static_cast<uint64_t>(total) * 2));
    for (const Needs& need : needs) {
      fmt::print("    {:<10} {:>8}  {}\n", need.role, human_count(need.parameters),
                 fmt::join(need.files, " | "));
    }
    if (recipe->data().random_weights)
      fmt::print("    without --weights they are drawn at random\n");
  }
  if (as_json) fmt::print("{}\n", dump_json(all, 2));
  return 0;
}

uint64_t meminfo(const std::string& field) {
  std::ifstream stream("/proc/meminfo");
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with(field + ":")) return std::stoull(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

int run_doctor(bool as_json) {
  const std::vector<DeviceReport> devices = list_devices();
  const std::vector<std::string> encoders = available_video_encoders();
  const Result<Recipe> pocket = Recipe::find("pocket");
  const std::filesystem::path models =
      pocket.ok() ? shipped_models_folder(pocket->data()) : std::filesystem::path();
  const unsigned cores = std::thread::hardware_concurrency();
  if (as_json) {
    nlohmann::ordered_json json = {{"version", version()}, {"commit", commit()}};
    for (const DeviceReport& device : devices) {
      json["devices"].push_back(
          {{"name", device.name}, {"usable", device.usable}, {"description", device.description}});
    }
    json["processors"] = cores;
    json["memory_bytes"] = meminfo("MemTotal");
    json["memory_available_bytes"] = meminfo("MemAvailable");
    json["video_encoders"] = encoders;
    json["shipped_models"] = models.string();
    fmt::print("{}\n", dump_json(json, 2));
    return 0;
  }
  fmt::print("ultraflash {} ({})\n", version(), commit());
  for (const DeviceReport& device : devices) {
    fmt::print("  {} {}: {}\n", device.usable ? "yes" : "no ", device.name, device.description);
  }
  fmt::print("  {} processors, {} of memory, {} available\n", cores,
             human_bytes(meminfo("MemTotal")), human_bytes(meminfo("MemAvailable")));
  fmt::print("  {} video files: {}\n", encoders.empty() ? "no " : "yes",
             encoders.empty() ? "this build or machine has no encoder; y4m, png and raw work"
                              : fmt::format("{}", fmt::join(encoders, ", ")));
  fmt::print(
      "  {} shipped models: {}\n", models.empty() ? "no " : "yes",
      models.empty() ? "not found next to the program or in its source tree" : models.string());
  return 0;
}

}  // namespace

void add_list(CLI::App& app, Command& chosen) {
  auto json = std::make_shared<bool>(false);
  auto show = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("list", "List the recipes and what they need");
  add_text(*command, "recipe", *show, "NAME",
           "Print this recipe (preset or file) in full, as JSON");
  command->add_flag("--json", *json, "Print JSON");
  command->callback(
      [json, show, &chosen] { chosen = [json, show] { return run_list(*json, *show); }; });
}

void add_doctor(CLI::App& app, Command& chosen) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("doctor", "Say what this build and this machine can do");
  command->add_flag("--json", *json, "Print JSON");
  command->callback([json, &chosen] { chosen = [json] { return run_doctor(*json); }; });
}

}  // namespace ultraflash::cli
