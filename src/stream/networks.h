// NetworkSet: the loaded weights of a recipe, shared by all sessions of an engine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "models/latent_upsampler.h"
#include "models/sparse_sr_dit.h"
#include "models/tiny_decoder.h"
#include "models/umt5.h"
#include "models/wan_dit.h"
#include "models/wan_vae.h"
#include "ops/devices.h"
#include "stream/recipe_data.h"
#include "text/tokenizer.h"
#include "ultraflash/engine.h"
#include "ultraflash/log.h"
#include "ultraflash/status.h"
#include "weights/parameter_source.h"

namespace ultraflash {

/// A decoder of either kind.
struct PictureDecoder {
  std::optional<TinyDecoder> tiny;
  std::optional<WanVae> vae;
};

struct NetworkSet {
  RecipeData recipe;  // with the cache policy of the options
  int64_t scale = 1;
  DType compute = DType::kF32;
  bool fp8_attention = false;          // self-attention of transformers in e4m3
  bool fp8_products = false;           // the products of transformers in e4m3 beside it
  bool fp8_fast_sums = false;          // whose sums stay in the tensor cores
  std::shared_ptr<Executor> executor;  // owns the memory of the small parameters
  std::optional<Tokenizer> tokenizer;
  std::optional<Umt5Encoder> text_encoder;
  WanDit generator;
  std::optional<LatentUpsampler> upsampler;
  std::optional<SparseSrDit> refiner;
  PictureDecoder decoder;  // of the chosen scale
  std::optional<PictureDecoder> low_resolution_decoder;
  std::map<std::string, std::string> sources;
  uint64_t weight_bytes = 0;
  bool random_weights = false;

  [[nodiscard]] const CascadeSpec& cascade() const { return *recipe.cascade(scale); }
  /// Of every executor that runs these networks.
  [[nodiscard]] ExecutorOptions executor_options(const EngineOptions& options) const;
};

/// One checkpoint that a recipe needs.
struct NetworkFile {
  std::string role;  // "generator", "refiner", ...
  CheckpointSpec spec;
  /// Binds the network's parameters, for listing or loading.
  std::function<void(Loader)> bind;
};

/// Every checkpoint of a recipe, for one scale or (0) for all, each file once.
std::vector<NetworkFile> network_files(const RecipeData& recipe, int64_t scale);

/// The first candidate that exists below `folder`: as named, or in the places where the published
/// downloads put it. Empty when there is none.
std::filesystem::path find_weights(const std::filesystem::path& folder,
                                   const std::vector<std::string>& candidates);

/// Seed of the random weights of a file, so that every way of making them agrees.
uint64_t file_seed(uint64_t seed, const CheckpointSpec& spec);

/// Loads what `options` ask for. `shipped` is the folder of shipped models (may be empty).
Result<std::shared_ptr<const NetworkSet>> load_networks(const RecipeData& recipe,
                                                        const EngineOptions& options,
                                                        const std::filesystem::path& shipped);

}  // namespace ultraflash
