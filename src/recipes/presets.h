// The presets, compiled in from presets/*.json.
#pragma once

#include <span>
#include <string_view>

namespace ultraflash {

struct Preset {
  std::string_view name;  // file name without ".json"
  std::string_view json;
};

/// In alphabetical order.
std::span<const Preset> all_presets();

}  // namespace ultraflash
