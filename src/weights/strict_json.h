// JSON from files that nobody vouches for.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "ultraflash/status.h"

namespace ultraflash {

struct JsonLimits {
  int max_depth = 16;                     // of nested objects and arrays
  int64_t max_values = int64_t{4} << 20;  // in the whole document
};

/// `text` as one JSON value. On top of the grammar: a key twice in one object, nesting or a number
/// of values past the limits, and invalid UTF-8 are kMalformed. Messages start with `label`.
Result<nlohmann::json> parse_strict_json(std::string_view text, std::string_view label,
                                         const JsonLimits& limits = {});

}  // namespace ultraflash
