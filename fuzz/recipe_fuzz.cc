// Recipe files: any text is a recipe or a reason.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "ultraflash/recipe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const ultraflash::Result<ultraflash::Recipe> recipe =
      ultraflash::Recipe::from_json(text, "recipe");
  if (recipe.ok()) {
    // What was accepted must survive its own JSON.
    if (!ultraflash::Recipe::from_json(recipe->to_json(), "again").ok()) std::abort();
  } else if (recipe.status().message().empty()) {
    std::abort();
  }
  return 0;
}
