// ultraflash inspect, convert, make-weights: checkpoint files.
#include <fmt/format.h>

#include <cctype>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "interrupt.h"
#include "media/video_reader.h"
#include "options.h"
#include "recipes/random_weights.h"
#include "settings.h"
#include "ultraflash/recipe.h"
#include "weights/convert.h"
#include "weights/inspect.h"

namespace ultraflash::cli {
namespace {

// --- inspect -----------------------------------------------------------------------------------

struct InspectSettings {
  std::string file;
  bool tensors = false;
  bool count = false;
  bool json = false;
};

// Whether the name is a video's: what a checkpoint can be has other endings.
bool is_video(const std::filesystem::path& path) {
  std::string ending = path.extension().string();
  for (char& c : ending) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const char* known : {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".y4m", ".png"}) {
    if (ending == known) return true;
  }
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return false;
  for (auto entry = std::filesystem::directory_iterator(path, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->path().extension() == ".png") return true;
  }
  return false;
}

int inspect_video(const InspectSettings& settings) {
  Result<VideoReader> reader = VideoReader::open(settings.file);
  if (!reader.ok()) return fail(reader.status());
  const VideoInfo info = reader->info();
  int64_t frames = info.frames;
  if (settings.count) {
    frames = 0;
    for (;; ++frames) {
      const Result<std::optional<VideoFrame>> frame = reader->next();
      if (!frame.ok()) return fail(frame.status());
      if (!frame->has_value()) break;
    }
  }
  const auto or_null = [](auto value) {
    return value < 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(value);
  };
  nlohmann::ordered_json json = {{"file", settings.file},
                                 {"container", info.container},
                                 {"codec", info.codec},
                                 {"width", info.format.width},
                                 {"height", info.format.height},
                                 {"frames", or_null(frames)},
                                 {"seconds", or_null(info.duration_s)}};
  nlohmann::ordered_json metadata = nlohmann::ordered_json::object();
  for (const auto& [key, value] : info.metadata) {
    // What this program stores is JSON itself.
    const nlohmann::ordered_json parsed =
        nlohmann::ordered_json::parse(value, nullptr, /*allow_exceptions=*/false);
    metadata[key] =
        key == "ultraflash_settings" && parsed.is_object() ? parsed : nlohmann::ordered_json(value);
  }
  json["metadata"] = metadata;
  if (settings.json) {
    fmt::print("{}\n", dump_json(json, 2));
    return 0;
  }
  fmt::print("{}: {}, {}, {}x{}", settings.file, info.container, info.codec, info.format.width,
             info.format.height);
  if (frames >= 0) fmt::print(", {} frames", frames);
  if (info.duration_s >= 0.0) fmt::print(", {:.2f} s", info.duration_s);
  fmt::print("\n");
  for (const auto& [key, value] : metadata.items()) {
    fmt::print("  {}: {}\n", key,
               value.is_string() ? value.get<std::string>() : dump_json(value, 2));
  }
  return 0;
}

nlohmann::ordered_json totals_json(const TensorTotals& totals) {
  return {
      {"tensors", totals.tensors}, {"parameters", totals.parameters}, {"bytes", totals.size_bytes}};
}

int inspect_checkpoint(const InspectSettings& settings) {
  const Result<CheckpointDescription> described = describe_checkpoint(settings.file);
  if (!described.ok()) return fail(described.status());
  const CheckpointDescription& d = *described;
  if (settings.json) {
    nlohmann::ordered_json json = {{"file", d.path},
                                   {"format", checkpoint_format_name(d.format)},
                                   {"files", d.files},
                                   {"file_bytes", d.file_bytes},
                                   {"totals", totals_json(d.totals)}};
    for (const auto& [key, totals] : d.by_wrapper) json["by_key"][key] = totals_json(totals);
    for (const auto& [type, totals] : d.by_type) json["by_type"][type] = totals_json(totals);
    json["metadata"] = d.metadata;
    for (const CheckpointExtra& extra : d.extras) {
      json["extras"].push_back({{"name", extra.name}, {"kind", extra.kind}, {"value", extra.text}});
    }
    for (const TensorDescription& tensor : d.entries) {
      json["tensors"].push_back({{"key", tensor.wrapper},
                                 {"name", tensor.name},
                                 {"dtype", tensor.type_name},
                                 {"shape", tensor.shape.sizes()},
                                 {"bytes", tensor.size_bytes}});
    }
    fmt::print("{}\n", dump_json(json, 2));
    return 0;
  }
  fmt::print("{}: {}, {} in {} file{}\n", d.path, checkpoint_format_name(d.format),
             human_bytes(static_cast<uint64_t>(d.file_bytes)), d.files.size(),
             d.files.size() == 1 ? "" : "s");
  fmt::print("  {} tensors, {} parameters\n", d.totals.tensors, human_count(d.totals.parameters));
  for (const auto& [key, totals] : d.by_wrapper) {
    if (!key.empty()) fmt::print("  key '{}': {} tensors\n", key, totals.tensors);
  }
  for (const auto& [type, totals] : d.by_type) {
    fmt::print("  {}: {} tensors, {}\n", type, totals.tensors,
               human_bytes(static_cast<uint64_t>(totals.size_bytes)));
  }
  for (const auto& [key, value] : d.metadata) {
    fmt::print("  {}: {}{}\n", key, value.substr(0, 200), value.size() > 200 ? " ..." : "");
  }
  for (const CheckpointExtra& extra : d.extras) {
    fmt::print("  {} ({}): {}\n", extra.name, extra.kind, extra.text);
  }
  constexpr size_t kShown = 20;
  const size_t shown = settings.tensors ? d.entries.size() : std::min(kShown, d.entries.size());
  for (size_t i = 0; i < shown; ++i) {
    const TensorDescription& tensor = d.entries[i];
    fmt::print("    {}{} {} {}\n", tensor.wrapper.empty() ? "" : tensor.wrapper + ": ", tensor.name,
               tensor.type_name, tensor.shape.to_string());
  }
  if (shown < d.entries.size()) {
    fmt::print("    ... and {} more (--tensors lists all)\n", d.entries.size() - shown);
  }
  return 0;
}

// --- convert -----------------------------------------------------------------------------------

struct ConvertSettings {
  std::string input;
  std::string output;
  std::string dtype;
  std::vector<std::string> lora;
  double lora_scale = 1.0;
  std::string average;
  double average_share = 0.5;
  std::string shard;
  std::string key;
  std::string output_key;
  std::string prefix;
  std::vector<std::string> drop;
  bool no_ema = false;
  bool keep_names = false;
};

int run_convert(const ConvertSettings& settings) {
  ConvertOptions options;
  if (!settings.dtype.empty()) options.dtype = dtype_from_name(settings.dtype);
  for (const std::string& file : settings.lora) {
    options.adapters.push_back({file, settings.lora_scale, std::nullopt});
  }
  if (!settings.average.empty()) {
    options.average = ConvertAverage{settings.average, settings.average_share};
  }
  const Result<uint64_t> shard = parse_bytes(settings.shard);
  if (!shard.ok()) return fail(shard.status());
  options.max_shard_bytes = static_cast<int64_t>(*shard);
  options.output_wrapper = settings.output_key;
  options.input.wrapper = settings.key;
  options.input.wrapper_order = default_wrapper_order(!settings.no_ema);
  options.input.prefix = settings.prefix;
  options.dropped = settings.drop;
  options.input.clean_names = !settings.keep_names;
  const InterruptGuard interrupt("stopping", [] {});
  ProgressLine progress;
  const Status status =
      convert_checkpoint(settings.input, settings.output, options, [&](const Progress& p) {
        progress.update(
            p.total > 0 ? static_cast<double>(p.done) / static_cast<double>(p.total) : -1.0,
            fmt::format("{} written", human_bytes(static_cast<uint64_t>(p.done))));
        return !interrupt.interrupted();
      });
  progress.finish();
  if (!status.ok()) return fail(status);
  fmt::print("{}: written\n", settings.output);
  return 0;
}

// --- make-weights ------------------------------------------------------------------------------

struct MakeSettings {
  std::string recipe;
  std::string folder;
  uint64_t seed = 0;
  int64_t scale = 0;
  std::string dtype;
  bool no_text = false;
};

int run_make_weights(const MakeSettings& settings) {
  const Result<Recipe> recipe = Recipe::find(settings.recipe);
  if (!recipe.ok()) return fail(recipe.status());
  RandomWeightsOptions options;
  options.seed = settings.seed;
  options.scale = settings.scale;
  options.text_encoder = !settings.no_text;
  if (!settings.dtype.empty()) options.dtype = dtype_from_name(settings.dtype);
  const InterruptGuard interrupt("stopping", [] {});
  ProgressLine progress;
  const auto written =
      make_random_weights(*recipe, settings.folder, options, [&](const Progress& p) {
        progress.update(
            p.total > 0 ? static_cast<double>(p.done) / static_cast<double>(p.total) : -1.0,
            fmt::format("{}: {} parameters", p.stage, human_count(p.done)));
        return !interrupt.interrupted();
      });
  progress.finish();
  if (!written.ok()) return fail(written.status());
  for (const WrittenWeights& file : *written) {
    fmt::print("{}: {}, {} tensors, {} parameters\n", file.path.string(), file.role, file.tensors,
               human_count(file.parameters));
  }
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<InspectSettings>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show what is in a checkpoint, or how a video was made");
  add_text(*command, "file", settings->file, "FILE",
           "Checkpoint file, index or folder; or a video, y4m file or folder of pictures")
      ->required();
  command->add_flag("--tensors", settings->tensors, "List every tensor of a checkpoint");
  command->add_flag("--count", settings->count,
                    "Read a video to its end and count the frames, rather than believe its header");
  command->add_flag("--json", settings->json, "Print JSON");
  command->callback([settings, &chosen] {
    chosen = [settings] {
      return is_video(settings->file) ? inspect_video(*settings) : inspect_checkpoint(*settings);
    };
  });
}

void add_convert(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<ConvertSettings>();
  CLI::App* command = app.add_subcommand(
      "convert", "Convert a checkpoint: format, type, averages, merged adapters, shards");
  add_text(*command, "input", settings->input, "IN", "Checkpoint file, index or folder")
      ->required();
  add_text(*command, "output", settings->output, "OUT", "Output: .safetensors, .pt or .pth")
      ->required();
  add_choice(*command, "--dtype", settings->dtype, {"f32", "bf16", "f16", "f8_e4m3"},
             "Type of the floating-point tensors", {"as it is"});
  command->add_option("--lora", settings->lora, "Merge this adapter (may be repeated)")
      ->option_text("FILE")
      ->allow_extra_args(false);
  add_number(*command, "--lora-scale", settings->lora_scale, -1000.0, 1000.0,
             "Strength of the adapters");
  add_text(*command, "--average", settings->average, "FILE",
           "Average with this checkpoint of the same tensors", {"none"});
  add_number(*command, "--average-share", settings->average_share, 0.0, 1.0,
             "Share of --average in the result");
  add_bytes(*command, "--shard", settings->shard, "Safetensors: largest shard, such as 5G",
            {"one file"});
  add_text(*command, "--key", settings->key, "NAME", "Key of the outermost dictionary to take",
           {"generator_ema, generator, model, ... in this order"});
  add_text(*command, "--output-key", settings->output_key, "NAME",
           "PyTorch: key around the tensors", {"none"});
  add_text(*command, "--prefix", settings->prefix, "TEXT",
           "Only tensors whose names start so; it is removed", {"all tensors"});
  command
      ->add_option("--drop", settings->drop,
                   "Leave out tensors whose names begin so (may be repeated)")
      ->option_text("TEXT")
      ->allow_extra_args(false);
  command->add_flag("--no-ema", settings->no_ema, "Prefer 'generator' to 'generator_ema'");
  command->add_flag("--keep-names", settings->keep_names, "Do not remove wrappers' prefixes");
  command->callback(
      [settings, &chosen] { chosen = [settings] { return run_convert(*settings); }; });
}

void add_make_weights(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<MakeSettings>();
  CLI::App* command = app.add_subcommand(
      "make-weights", "Write random weights of a recipe in the published file formats");
  add_text(*command, "recipe", settings->recipe, "RECIPE", "Preset or recipe file")->required();
  add_text(*command, "folder", settings->folder, "FOLDER",
           "Where to write them; existing files are not overwritten")
      ->required();
  add_integer(*command, "--seed", settings->seed, uint64_t{0}, std::numeric_limits<uint64_t>::max(),
              "Seed of the weights");
  add_integer(*command, "--scale", settings->scale, int64_t{0}, int64_t{16},
              "Only this enlargement; 0: all");
  add_choice(*command, "--dtype", settings->dtype, {"f32", "bf16", "f16"}, "Type of all weights",
             {"as published"});
  command->add_flag("--no-text-encoder", settings->no_text,
                    "Leave out the text encoder (11 GB for the published recipes)");
  command->callback(
      [settings, &chosen] { chosen = [settings] { return run_make_weights(*settings); }; });
}

}  // namespace ultraflash::cli
