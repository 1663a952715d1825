#include <algorithm>
#include <utility>

#include "core/bytes.h"
#include "core/check.h"
#include "core/input_file.h"
#include "recipes/json_fields.h"
#include "recipes/presets.h"
#include "stream/recipe_data.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

constexpr int64_t kMaxRecipeBytes = int64_t{1} << 20;
constexpr int kMaxDepth = 32;
constexpr int kMaxBases = 8;
constexpr int64_t kPixelsPerLatent = 8;

const Preset* find_preset(std::string_view name) {
  for (const Preset& preset : all_presets()) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

std::string preset_list() {
  std::vector<std::string> names = Recipe::presets();
  return fmt::format("{}", fmt::join(names, ", "));
}

// Parses with a limit on nesting; a document that is too deep ends the parse.
Result<nlohmann::json> parse(std::string_view text, std::string_view label) {
  if (std::ssize(text) > kMaxRecipeBytes) {
    return make_status(StatusCode::kMalformed, "{}: {} bytes; a recipe has at most {}", label,
                       text.size(), kMaxRecipeBytes);
  }
  bool too_deep = false;
  nlohmann::json json = nlohmann::json::parse(
      text.begin(), text.end(),
      [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
        too_deep = too_deep || depth > kMaxDepth;
        return !too_deep;
      },
      /*allow_exceptions=*/false, /*ignore_comments=*/true);
  if (too_deep) {
    return make_status(StatusCode::kMalformed, "{}: nested more than {} levels deep", label,
                       kMaxDepth);
  }
  if (!json.is_object()) {
    return make_status(StatusCode::kMalformed, "{}: this is not a JSON object", label);
  }
  return json;
}

// The cascades of a recipe are merged by their scale, everything else as JSON merge patch says.
void merge(nlohmann::json& base, const nlohmann::json& patch) {
  nlohmann::json cascades = base.contains("cascades") ? base["cascades"] : nlohmann::json::array();
  nlohmann::json rest = patch;
  rest.erase("cascades");
  base.merge_patch(rest);
  if (patch.contains("cascades") && patch["cascades"].is_array() && cascades.is_array()) {
    for (const nlohmann::json& change : patch["cascades"]) {
      const auto same =
          std::find_if(cascades.begin(), cascades.end(), [&](const nlohmann::json& c) {
            return c.is_object() && change.is_object() && c.contains("scale") &&
                   change.contains("scale") && c["scale"] == change["scale"];
          });
      if (same == cascades.end()) {
        cascades.push_back(change);
      } else {
        same->merge_patch(change);
      }
    }
    base["cascades"] = std::move(cascades);
  } else if (patch.contains("cascades")) {
    base["cascades"] = patch["cascades"];
  }
}

Result<nlohmann::json> resolve(nlohmann::json json, std::string_view label, int bases) {
  const auto position = json.find("base");
  if (position == json.end()) return json;
  if (!position->is_string()) {
    return make_status(StatusCode::kMalformed, "{}: 'base' is no text", label);
  }
  const auto name = position->get<std::string>();
  const Preset* preset = find_preset(name);
  if (preset == nullptr) {
    return make_status(StatusCode::kNotFound, "{}: no preset '{}' to build on; there are {}", label,
                       name.substr(0, 60), preset_list());
  }
  if (bases >= kMaxBases) {
    return make_status(StatusCode::kMalformed, "{}: more than {} recipes build on each other",
                       label, kMaxBases);
  }
  UF_ASSIGN(nlohmann::json base_json, parse(preset->json, preset->name));
  UF_ASSIGN(nlohmann::json base, resolve(std::move(base_json), preset->name, bases + 1));
  json.erase("base");
  merge(base, json);
  return base;
}

}  // namespace

std::vector<std::string> Recipe::presets() {
  std::vector<std::string> names;
  for (const Preset& preset : all_presets()) names.emplace_back(preset.name);
  return names;
}

Result<Recipe> Recipe::from_json(std::string_view text, std::string_view label) {
  UF_ASSIGN(nlohmann::json parsed, parse(text, label));
  UF_ASSIGN(const nlohmann::json json, resolve(std::move(parsed), label, 0));
  auto data = std::make_shared<RecipeData>();
  Status status;
  JsonReader reader(json, "", status);
  data->visit_fields(reader);
  reader.finish();
  if (status.ok()) status = data->validate();
  if (!status.ok()) {
    return make_status(status.code(), "{}: {}", label, status.message());
  }
  if (data->name.empty()) data->name = std::string(label);
  return Recipe(std::move(data));
}

Result<Recipe> Recipe::from_file(const std::filesystem::path& path) {
  UF_ASSIGN(InputFile file, InputFile::open_regular(path.string()));
  UF_ASSIGN(const std::vector<uint8_t> bytes, file.read_rest(kMaxRecipeBytes));
  return from_json(as_text(as_byte_span(bytes)), path.string());
}

Result<Recipe> Recipe::find(std::string_view name_or_path) {
  if (name_or_path.find('/') != std::string_view::npos || name_or_path.ends_with(".json")) {
    return from_file(std::filesystem::path(name_or_path));
  }
  const Preset* preset = find_preset(name_or_path);
  if (preset == nullptr) {
    return make_status(StatusCode::kNotFound,
                       "no recipe '{}'; there are {}, or give the path of a recipe file",
                       name_or_path.substr(0, 60), preset_list());
  }
  return from_json(preset->json, preset->name);
}

const std::string& Recipe::name() const { return data_->name; }
const std::string& Recipe::summary() const { return data_->summary; }
std::string Recipe::to_json() const {
  RecipeData copy = *data_;
  return JsonWriter::write(copy).dump(2);
}
std::vector<int64_t> Recipe::scales() const {
  std::vector<int64_t> scales;
  for (const CascadeSpec& cascade : data_->cascades) scales.push_back(cascade.scale);
  std::sort(scales.begin(), scales.end());
  return scales;
}
int64_t Recipe::default_scale() const { return data_->default_scale; }
int64_t Recipe::width(int64_t scale) const {
  return data_->generator.latent_width * kPixelsPerLatent * scale;
}
int64_t Recipe::height(int64_t scale) const {
  return data_->generator.latent_height * kPixelsPerLatent * scale;
}
int64_t Recipe::frames_per_second() const { return data_->frames_per_second; }

}  // namespace ultraflash
