// Where the models that ship with the program lie.
#pragma once

#include <filesystem>

#include "stream/recipe_data.h"

namespace ultraflash {

/// The folder of the recipe's shipped models, or an empty path: below models/ next to the installed
/// program (../share/ultraflash/models), or in the source tree it was built from.
std::filesystem::path shipped_models_folder(const RecipeData& recipe);

}  // namespace ultraflash
