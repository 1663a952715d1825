// Scenes and captions as JSON: the lines of captions.jsonl.
//
//   {"file": "clip_00000.mp4", "caption": "a red ball ...",
//    "scene": {"objects": [{"shape": "circle", "colour": "red", "texture": "plain",
//                           "size": "small", "motion": "left", "speed": "slow", "spinning":
//                           false}],
//              "background": "black", "gradient": false, "starry": true}}
//
// "scene" is optional, and so is everything in it: what is left out is not measured. Without it the
// caption is parsed.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "train/world/caption.h"
#include "ultraflash/status.h"

namespace ultraflash::world {

struct CaptionLine {
  std::string file;  // relative to the folder of captions.jsonl, and inside it
  std::string caption;
  NamedScene scene;
};

nlohmann::ordered_json scene_json(const NamedScene& scene);
std::string caption_line_json(const CaptionLine& line);

/// kMalformed for what is no scene, naming `label`.
Result<NamedScene> parse_scene(const nlohmann::json& json, std::string_view label);

/// The whole file. kNotFound, kIo, kMalformed and kInvalidArgument with the number of the line.
Result<std::vector<CaptionLine>> read_captions(const std::string& path);

}  // namespace ultraflash::world
