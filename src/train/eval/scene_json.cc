#include "train/eval/scene_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "weights/strict_json.h"

namespace ultraflash::world {
namespace {

constexpr size_t kMaxLineBytes = 64 << 10;
constexpr size_t kMaxLines = 100'000;

template <typename Enum>
void put(nlohmann::ordered_json& json, const char* key, const std::optional<Enum>& value) {
  if (value.has_value()) json[key] = std::string(name_of(*value));
}

template <typename Enum, size_t N>
Status get(const nlohmann::json& json, const char* key,
           const std::array<std::string_view, N>& names, std::string_view label,
           std::optional<Enum>& value) {
  const auto found = json.find(key);
  if (found == json.end()) return {};
  if (found->is_string()) {
    const auto name = std::find(names.begin(), names.end(), found->get_ref<const std::string&>());
    if (name != names.end()) {
      value = static_cast<Enum>(name - names.begin());
      return {};
    }
  }
  return make_status(StatusCode::kMalformed, "{}: \"{}\" is none of: {}", label, key,
                     fmt::join(names, ", "));
}

Status get(const nlohmann::json& json, const char* key, std::string_view label,
           std::optional<bool>& value) {
  const auto found = json.find(key);
  if (found == json.end()) return {};
  if (!found->is_boolean()) {
    return make_status(StatusCode::kMalformed, "{}: \"{}\" is neither true nor false", label, key);
  }
  value = found->get<bool>();
  return {};
}

Status check_keys(const nlohmann::json& json, std::initializer_list<std::string_view> known,
                  std::string_view label) {
  if (!json.is_object()) return make_status(StatusCode::kMalformed, "{}: not an object", label);
  for (const auto& item : json.items()) {
    if (std::find(known.begin(), known.end(), item.key()) == known.end()) {
      return make_status(StatusCode::kMalformed, "{}: \"{}\" is none of: {}", label,
                         item.key().substr(0, 60), fmt::join(known, ", "));
    }
  }
  return {};
}

Result<NamedObject> parse_object(const nlohmann::json& json, std::string_view label) {
  UF_TRY(check_keys(json, {"shape", "colour", "texture", "size", "motion", "speed", "spinning"},
                    label));
  NamedObject object;
  UF_TRY(get(json, "shape", kShapeNames, label, object.shape));
  UF_TRY(get(json, "colour", kColourNames, label, object.colour));
  UF_TRY(get(json, "texture", kTextureNames, label, object.texture));
  UF_TRY(get(json, "size", kSizeNames, label, object.size));
  UF_TRY(get(json, "motion", kMotionNames, label, object.motion));
  UF_TRY(get(json, "speed", kSpeedNames, label, object.speed));
  UF_TRY(get(json, "spinning", label, object.spinning));
  return object;
}

Result<CaptionLine> parse_line(const std::string& text, const std::string& label) {
  UF_ASSIGN(const nlohmann::json json, parse_strict_json(text, label));
  UF_TRY(check_keys(json, {"file", "caption", "scene"}, label));
  CaptionLine line;
  for (const auto& [key, value] : {std::pair("file", &line.file), {"caption", &line.caption}}) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_string()) {
      return make_status(StatusCode::kMalformed, "{}: \"{}\" is missing or no text", label, key);
    }
    *value = found->get<std::string>();
  }
  const std::filesystem::path file = std::filesystem::path(line.file).lexically_normal();
  if (line.file.empty() || line.file.find('\0') != std::string::npos || file.is_absolute() ||
      *file.begin() == "..") {
    return make_status(StatusCode::kInvalidArgument, "{}: the file must lie inside the folder",
                       label);
  }
  const auto scene = json.find("scene");
  if (scene != json.end()) {
    UF_ASSIGN(line.scene, parse_scene(*scene, label));
    return line;
  }
  Result<NamedScene> parsed = parse_caption(line.caption);
  if (!parsed.ok()) {
    return make_status(parsed.status().code(), "{}: {}", label, parsed.status().message());
  }
  line.scene = *std::move(parsed);
  return line;
}

}  // namespace

nlohmann::ordered_json scene_json(const NamedScene& scene) {
  nlohmann::ordered_json json;
  json["objects"] = nlohmann::ordered_json::array();
  for (const NamedObject& object : scene.objects) {
    nlohmann::ordered_json item = nlohmann::ordered_json::object();
    put(item, "shape", object.shape);
    put(item, "colour", object.colour);
    put(item, "texture", object.texture);
    put(item, "size", object.size);
    put(item, "motion", object.motion);
    put(item, "speed", object.speed);
    if (object.spinning.has_value()) item["spinning"] = *object.spinning;
    json["objects"].push_back(std::move(item));
  }
  put(json, "background", scene.ground);
  if (scene.gradient.has_value()) json["gradient"] = *scene.gradient;
  if (scene.starry.has_value()) json["starry"] = *scene.starry;
  return json;
}

std::string caption_line_json(const CaptionLine& line) {
  const nlohmann::ordered_json json = {
      {"file", line.file}, {"caption", line.caption}, {"scene", scene_json(line.scene)}};
  return json.dump();
}

Result<NamedScene> parse_scene(const nlohmann::json& json, std::string_view label) {
  UF_TRY(check_keys(json, {"objects", "background", "gradient", "starry"}, label));
  NamedScene scene;
  const auto objects = json.find("objects");
  if (objects == json.end() || !objects->is_array() || objects->empty() || objects->size() > 2) {
    return make_status(StatusCode::kMalformed, "{}: \"objects\" must list one or two objects",
                       label);
  }
  for (const nlohmann::json& item : *objects) {
    UF_ASSIGN(const NamedObject object, parse_object(item, label));
    scene.objects.push_back(object);
  }
  UF_TRY(get(json, "background", kGroundNames, label, scene.ground));
  UF_TRY(get(json, "gradient", label, scene.gradient));
  UF_TRY(get(json, "starry", label, scene.starry));
  return scene;
}

Result<std::vector<CaptionLine>> read_captions(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    return make_status(StatusCode::kNotFound, "{}: no such file", path);
  }
  std::ifstream stream(path, std::ios::binary);
  std::vector<CaptionLine> lines;
  std::string text;
  for (size_t number = 1; std::getline(stream, text); ++number) {
    const std::string label = fmt::format("{}: line {}", path, number);
    if (text.empty()) continue;
    if (text.size() > kMaxLineBytes || number > kMaxLines) {
      return make_status(StatusCode::kUnsupported, "{}: more than {} lines, or of {} bytes", label,
                         kMaxLines, kMaxLineBytes);
    }
    UF_ASSIGN(CaptionLine line, parse_line(text, label));
    lines.push_back(std::move(line));
  }
  if (stream.bad()) return make_status(StatusCode::kIo, "{}: reading failed", path);
  if (lines.empty()) return make_status(StatusCode::kMalformed, "{}: no captions in it", path);
  return lines;
}

}  // namespace ultraflash::world
