// A recipe small enough for tests: every stage of the cascade, a few milliseconds a chunk.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>

#include "ultraflash/recipe.h"

namespace ultraflash::testing {

/// 64x48 at scale 1, 128x96 at scale 2, random weights. `patch` is a JSON merge patch.
inline Recipe tiny_recipe(const std::string& patch = "{}") {
  nlohmann::json recipe = nlohmann::json::parse(R"({
    "base": "pocket", "name": "tiny", "random_weights": true,
    "text": {"encoder": {"dim": 32, "dim_attn": 32, "dim_ffn": 48, "num_heads": 2, "num_layers": 1}},
    "generator": {
      "network": {"dim": 48, "ffn_dim": 64, "num_layers": 2, "num_heads": 2, "freq_dim": 16,
                  "text_dim": 32, "text_len": 16},
      "latent_height": 6, "latent_width": 8, "cache_frames": 9, "sink_frames": 3
    },
    "cascades": [
      {"scale": 1, "decoder": {"tiny": {"widths": [16, 12, 8, 8]}, "tiny_encoder": {"width": 8}}},
      {"scale": 2,
       "upsampler": {"network": {"mid_channels": 12, "num_blocks": 2}},
       "refiner": {"network": {"transformer": {"dim": 48, "ffn_dim": 64, "num_layers": 2,
                   "num_heads": 2, "freq_dim": 16, "text_dim": 32, "text_len": 16},
                   "ref_spatial_tokens": 12}},
       "decoder": {"tiny": {"widths": [16, 12, 8, 8]}}},
      {"scale": 3,
       "upsampler": {"network": {"mid_channels": 12, "num_blocks": 2}},
       "refiner": {"network": {"transformer": {"dim": 48, "ffn_dim": 64, "num_layers": 2,
                   "num_heads": 2, "freq_dim": 16, "text_dim": 32, "text_len": 16},
                   "ref_spatial_tokens": 12}},
       "decoder": {"tiny": {"widths": [16, 12, 8, 8]}}}
    ]
  })");
  recipe.merge_patch(nlohmann::json::parse(patch));
  Result<Recipe> made = Recipe::from_json(recipe.dump(), "tiny");
  if (!made.ok()) throw std::runtime_error(made.status().message());
  return *made;
}

}  // namespace ultraflash::testing
