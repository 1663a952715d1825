#include "stream/shipped_models.h"

#include <system_error>

namespace ultraflash {

std::filesystem::path shipped_models_folder(const RecipeData& recipe) {
  if (recipe.shipped_models.empty()) return {};
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path installed = program.parent_path().parent_path() / "share" /
                                            "ultraflash" / "models" / recipe.shipped_models;
    if (std::filesystem::is_directory(installed, error)) return installed;
  }
  const std::filesystem::path source =
      std::filesystem::path(UF_SOURCE_MODELS_DIR) / recipe.shipped_models;
  return std::filesystem::is_directory(source, error) ? source : std::filesystem::path();
}

}  // namespace ultraflash
