// Random weights of any size in the published file formats, for speed and memory at full size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ultraflash/log.h"
#include "ultraflash/recipe.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct RandomWeightsOptions {
  uint64_t seed = 0;
  int64_t scale = 0;           // cascade to make weights for; 0: all
  std::optional<DType> dtype;  // f32, bf16 or f16; absent: what the published files hold
  bool text_encoder = true;    // 11 GB for the published recipes
};

struct WrittenWeights {
  std::string role;
  std::filesystem::path path;
  int64_t tensors = 0;
  int64_t parameters = 0;
};

/// Writes every checkpoint that `recipe` needs below `folder`, under the first name the recipe
/// looks for: PyTorch archives for .pt and .pth (with the published wrapper key), else safetensors,
/// and the LoRA adapter where the recipe merges one. An engine that loads the folder has the very
/// weights that EngineOptions::random_weights draws with the same seed (up to rounding to the
/// stored type, and without the adapter). Files that exist are not overwritten (kInvalidArgument).
Result<std::vector<WrittenWeights>> make_random_weights(const Recipe& recipe,
                                                        const std::filesystem::path& folder,
                                                        const RandomWeightsOptions& options,
                                                        const ProgressFn& progress);

}  // namespace ultraflash
