#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "stream/recipe_data.h"
#include "stream/shipped_models.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

TEST(RecipeTest, EveryPresetIsValidAndSurvivesItsOwnJson) {
  const std::vector<std::string> presets = Recipe::presets();
  EXPECT_EQ(presets.size(), 8U);
  for (const std::string& name : presets) {
    const Result<Recipe> recipe = Recipe::find(name);
    ASSERT_TRUE(recipe.ok()) << recipe.status().message();
    EXPECT_EQ(recipe->name(), name);
    EXPECT_FALSE(recipe->summary().empty());
    const Result<Recipe> again = Recipe::from_json(recipe->to_json(), "again");
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(again->to_json(), recipe->to_json());
  }
}

TEST(RecipeTest, SizesOfThePresets) {
  const auto size = [](const char* name) {
    const Result<Recipe> recipe = Recipe::find(name);
    const int64_t scale = recipe->default_scale();
    return std::pair(recipe->width(scale), recipe->height(scale));
  };
  EXPECT_EQ(size("self-forcing-480p"), std::pair(int64_t{832}, int64_t{480}));
  EXPECT_EQ(size("ultra-flash-1k"), std::pair(int64_t{1664}, int64_t{960}));
  EXPECT_EQ(size("ultra-flash-2k"), std::pair(int64_t{2496}, int64_t{1440}));
  EXPECT_EQ(size("longlive-480p"), std::pair(int64_t{832}, int64_t{480}));
  EXPECT_EQ(size("longlive-1k"), std::pair(int64_t{1664}, int64_t{960}));
  EXPECT_EQ(size("longlive-2k"), std::pair(int64_t{2496}, int64_t{1440}));
  EXPECT_EQ(size("pocket"), std::pair(int64_t{320}, int64_t{192}));
  EXPECT_EQ(size("pocket-lr"), std::pair(int64_t{160}, int64_t{96}));
}

// A clone stays small.
TEST(RecipeTest, ShippedWeightsTakeAtMost24Megabytes) {
  const std::filesystem::path folder = shipped_models_folder(Recipe::find("pocket")->data());
  ASSERT_FALSE(folder.empty());
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
  }
  EXPECT_GT(bytes, 10'000'000U) << "there are no weights";
  EXPECT_LE(bytes, 24'000'000U);
}

TEST(RecipeTest, LongLiveKeepsASinkAndAWindow) {
  const Result<Recipe> recipe = Recipe::find("longlive-1k");
  ASSERT_TRUE(recipe.ok());
  const GeneratorSpec& generator = recipe->data().generator;
  EXPECT_EQ(generator.cache_kind, CacheKind::kWindow);
  EXPECT_EQ(generator.cache_frames, 12);
  EXPECT_EQ(generator.sink_frames, 3);
  EXPECT_TRUE(generator.independent_first_frame);
  EXPECT_FALSE(generator.checkpoint.lora_files.empty());
}

TEST(RecipeTest, AFileMayBuildOnAPreset) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / "ultraflash-recipe-test.json";
  std::ofstream(path) << R"(// comments are fine
    {"base": "pocket", "name": "mine", "default_scale": 3,
     "generator": {"denoising_steps": [1000, 500]},
     "cascades": [{"scale": 3, "refiner": {"condition_noise_scale": 0.2}}]})";
  const Result<Recipe> recipe = Recipe::find(path.string());
  std::filesystem::remove(path);
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  EXPECT_EQ(recipe->name(), "mine");
  EXPECT_EQ(recipe->default_scale(), 3);
  EXPECT_EQ(recipe->data().generator.denoising_steps, (std::vector<int64_t>{1000, 500}));
  EXPECT_EQ(recipe->data().cascade(3)->refiner->condition_noise_scale, 0.2);
  EXPECT_EQ(recipe->data().cascade(3)->refiner->kv_len, 3) << "the rest of the cascade is kept";
  EXPECT_EQ(recipe->scales(), (std::vector<int64_t>{1, 2, 3}));
}

struct Bad {
  const char* name;
  const char* json;
  StatusCode code;
  const char* says;
};

class BadRecipeTest : public ::testing::TestWithParam<Bad> {};

TEST_P(BadRecipeTest, IsRefusedWithAReason) {
  const Result<Recipe> recipe = Recipe::from_json(GetParam().json, "bad.json");
  ASSERT_FALSE(recipe.ok());
  EXPECT_EQ(recipe.status().code(), GetParam().code) << recipe.status().message();
  EXPECT_NE(recipe.status().message().find(GetParam().says), std::string::npos)
      << recipe.status().message();
  EXPECT_NE(recipe.status().message().find("bad.json"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, BadRecipeTest,
    ::testing::Values(
        Bad{"empty", "", StatusCode::kMalformed, "JSON object"},
        Bad{"list", "[]", StatusCode::kMalformed, "JSON object"},
        Bad{"cut", "{\"base\": \"pocket\"", StatusCode::kMalformed, "JSON object"},
        Bad{"unknown_field", R"({"base": "pocket", "generatr": {}})", StatusCode::kMalformed,
            "generatr"},
        Bad{"unknown_nested", R"({"base": "pocket", "generator": {"stepps": 1}})",
            StatusCode::kMalformed, "generator has no field 'stepps'"},
        Bad{"wrong_type", R"({"base": "pocket", "generator": {"latent_width": "x"}})",
            StatusCode::kMalformed, "generator.latent_width"},
        Bad{"fraction", R"({"base": "pocket", "generator": {"latent_width": 20.5}})",
            StatusCode::kMalformed, "generator.latent_width"},
        Bad{"huge_number",
            R"({"base": "pocket", "generator": {"latent_width": 99999999999999999999}})",
            StatusCode::kMalformed, "generator.latent_width"},
        Bad{"odd_size", R"({"base": "pocket", "generator": {"latent_width": 21}})",
            StatusCode::kInvalidArgument, "multiples of 16"},
        Bad{"zero_size", R"({"base": "pocket", "generator": {"latent_height": 0}})",
            StatusCode::kInvalidArgument, "latent_height"},
        Bad{"no_steps", R"({"base": "pocket", "generator": {"denoising_steps": []}})",
            StatusCode::kInvalidArgument, "denoising_steps"},
        Bad{"bad_heads", R"({"base": "pocket", "generator": {"network": {"num_heads": 7}}})",
            StatusCode::kInvalidArgument, "heads"},
        Bad{"small_window", R"({"base": "pocket", "generator": {"cache_frames": 4}})",
            StatusCode::kInvalidArgument, "no room"},
        Bad{"bad_enum", R"({"base": "pocket", "generator": {"cache_kind": "shrink"}})",
            StatusCode::kMalformed, "grow, window"},
        Bad{"unknown_base", R"({"base": "pockett"})", StatusCode::kNotFound, "pockett"},
        Bad{"no_default_scale", R"({"base": "pocket", "default_scale": 7})",
            StatusCode::kInvalidArgument, "default_scale 7"},
        Bad{"scale_mismatch",
            R"({"base": "pocket", "cascades": [{"scale": 2, "upsampler": {"network": {"scale": 3}}}]})",
            StatusCode::kInvalidArgument, "cascade 2x"},
        Bad{"text_mismatch",
            R"({"base": "pocket", "text": {"encoder": {"dim": 64, "dim_attn": 64}}})",
            StatusCode::kInvalidArgument, "text width"},
        Bad{"climbing_file",
            R"({"base": "pocket", "generator": {"checkpoint": {"files": ["a/../../b.pt"]}}})",
            StatusCode::kInvalidArgument, "generator.checkpoint: 'a/../../b.pt'"},
        Bad{"absolute_file",
            R"({"base": "pocket", "cascades": [{"scale": 1, "decoder": {"checkpoint": {"files": ["/x.pt"]}}}]})",
            StatusCode::kInvalidArgument, "decoder.checkpoint: '/x.pt'"},
        Bad{"climbing_adapter",
            R"({"base": "longlive-1k", "generator": {"checkpoint": {"lora_files": ["../x.pt"]}}})",
            StatusCode::kInvalidArgument, "'../x.pt'"},
        Bad{"nameless_tokenizer", R"({"base": "pocket", "text": {"tokenizer_files": [""]}})",
            StatusCode::kInvalidArgument, "text.tokenizer_files"},
        Bad{"climbing_models", R"({"base": "pocket", "shipped_models": ".."})",
            StatusCode::kInvalidArgument, "shipped_models"},
        Bad{"no_cascade", R"({"name": "x", "generator": {"network": {"text_dim": 4096}}})",
            StatusCode::kInvalidArgument, "no cascade"}),
    [](const ::testing::TestParamInfo<Bad>& tested) { return tested.param.name; });

TEST(RecipeTest, DeepNestingAndLargeFilesAreRefused) {
  std::string deep = "{\"generator\": ";
  for (int i = 0; i < 100000; ++i) deep += "[";
  EXPECT_EQ(Recipe::from_json(deep, "deep").status().code(), StatusCode::kMalformed);
  EXPECT_EQ(Recipe::from_json(std::string(2 << 20, ' '), "large").status().code(),
            StatusCode::kMalformed);
}

TEST(RecipeTest, MissingNamesListWhatThereIs) {
  const Status unknown = Recipe::find("no-such-recipe").status();
  EXPECT_EQ(unknown.code(), StatusCode::kNotFound);
  EXPECT_NE(unknown.message().find("pocket"), std::string::npos);
  EXPECT_EQ(Recipe::find("./missing.json").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraflash
