// UF_CHECK: for our own mistakes only. It stays on in release builds, outside inner loops.
#pragma once

#include <fmt/format.h>

#include <string>

#include "ultraflash/status.h"

namespace ultraflash::internal {
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& message);
}  // namespace ultraflash::internal

/// Throws Error(kInternal) naming the place when `condition` does not hold; the rest is a fmt
/// format string with its arguments and says what should hold.
#define UF_CHECK(condition, ...)                                           \
  do {                                                                     \
    if (!(condition)) [[unlikely]]                                         \
      ::ultraflash::internal::check_failed(__FILE__, __LINE__, #condition, \
                                           ::fmt::format(__VA_ARGS__));    \
  } while (false)

namespace ultraflash {

/// A Result's Status with a formatted message.
template <typename... Args>
[[nodiscard]] Status make_status(StatusCode code, fmt::format_string<Args...> format,
                                 Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}

/// Throws Error with a formatted message; for operations and models.
template <typename... Args>
[[noreturn]] void throw_error(StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace ultraflash
