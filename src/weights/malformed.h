// What the readers of this layer say of a file that cannot be right.
#pragma once

#include <string_view>
#include <utility>

#include "core/check.h"

namespace ultraflash {

/// kMalformed, "<label>: <message>".
template <typename... Args>
[[nodiscard]] Status malformed(std::string_view label, fmt::format_string<Args...> format,
                               Args&&... args) {
  return make_status(StatusCode::kMalformed, "{}: {}", label,
                     fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace ultraflash
