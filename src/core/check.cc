#include "core/check.h"

#include <string_view>

namespace ultraflash::internal {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  std::string_view path(file);
  if (const size_t slash = path.rfind("src/"); slash != std::string_view::npos) {
    path.remove_prefix(slash);
  }
  throw_error(StatusCode::kInternal, "{}:{}: expected {}: {}; this is a defect of ultraflash", path,
              line, condition, message);
}

}  // namespace ultraflash::internal
