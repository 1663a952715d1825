// How much memory a recipe takes on a device, from its shapes alone: before anything is allocated.
#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.h"
#include "stream/recipe_data.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct MemoryPlan {
  uint64_t weights = 0;
  uint64_t generator_cache = 0;  // keys and values
  uint64_t refiner_cache = 0;
  uint64_t text = 0;         // keys and values of the text, twice while a prompt changes
  uint64_t activations = 0;  // the widest moment of any stage, pictures on their way out included
  uint64_t libraries = 0;    // the driver's own, kernels and workspaces

  [[nodiscard]] uint64_t total() const {
    return weights + generator_cache + refiner_cache + text + activations + libraries;
  }
  /// "19.4 GiB (weights 5.3, caches 12.7, activations 1.2, libraries 0.2)"
  [[nodiscard]] std::string to_string() const;
};

struct MemoryQuestion {
  int64_t scale = 1;
  DType compute = DType::kF32;
  bool fp8_products = false;
  bool fp8_attention = false;  // and the caches with it
  bool gpu = false;
  bool own_cascade = false;  // generator and cascade at the same time
  bool low_resolution = false;
  bool text_encoder = false;  // a small one, held beside the rest
};

/// Caches, text and weights are exact; activations are counted from the widest tensors that live at
/// once in each stage.
MemoryPlan plan_memory(const RecipeData& recipe, const MemoryQuestion& question);

/// kOutOfMemory with what is needed and what there is, when `plan` does not fit into `available`
/// bytes. `what` says whose they are: "--memory-limit allows", "GPU 0 has ... free".
Status require_memory(const RecipeData& recipe, const MemoryPlan& plan, uint64_t available,
                      const std::string& what);

}  // namespace ultraflash
