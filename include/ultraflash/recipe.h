// Recipe: which networks make a stream, their sizes, sampler, cache policy and checkpoint files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

struct RecipeData;

/// Immutable; cheap to copy. Presets are data (src/recipes/presets/*.json), and a file of the same
/// form may name one of them as its "base" and change fields of it (docs/recipes.md).
class Recipe {
 public:
  /// A preset by name, or a recipe file by path (a name with a '/' or ending in ".json").
  /// kNotFound with the list of presets, kMalformed or kInvalidArgument naming the field.
  static Result<Recipe> find(std::string_view name_or_path);
  static Result<Recipe> from_file(const std::filesystem::path& path);
  /// `label` stands for the file in messages.
  static Result<Recipe> from_json(std::string_view text, std::string_view label);
  /// Names of the presets.
  static std::vector<std::string> presets();

  [[nodiscard]] const std::string& name() const;
  [[nodiscard]] const std::string& summary() const;
  /// The whole recipe as JSON, every field written out.
  [[nodiscard]] std::string to_json() const;
  /// Enlargements it can make; 1 is the generator's own size.
  [[nodiscard]] std::vector<int64_t> scales() const;
  [[nodiscard]] int64_t default_scale() const;
  /// Size of the pictures at `scale`, in pixels.
  [[nodiscard]] int64_t width(int64_t scale) const;
  [[nodiscard]] int64_t height(int64_t scale) const;
  [[nodiscard]] int64_t frames_per_second() const;

  [[nodiscard]] const RecipeData& data() const { return *data_; }
  explicit Recipe(std::shared_ptr<const RecipeData> data) : data_(std::move(data)) {}

 private:
  std::shared_ptr<const RecipeData> data_;
};

}  // namespace ultraflash
