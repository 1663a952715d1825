#include "stream/networks.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/host_info.h"
#include "stream/memory_plan.h"
#include "weights/lora.h"

namespace ultraflash {
namespace {

// Larger encoders stay in the mapped file: the published one is 5.7 B parameters.
constexpr int64_t kStreamedEncoderParameters = 1'000'000'000;

int64_t encoder_parameters(const Umt5Config& c) {
  return c.vocab_size * c.dim + c.num_layers * (4 * c.dim * c.dim_attn + 3 * c.dim * c.dim_ffn);
}

std::string joined(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

// What loading shares between networks.
struct Loading {
  const EngineOptions& options;
  std::filesystem::path folder;
  bool random = false;
  NetworkSet& set;
  int64_t done = 0;
  int64_t total = 0;

  Status step(const char* role) {
    if (options.progress && !options.progress({role, done, total})) {
      return {StatusCode::kCancelled, "loading was cancelled"};
    }
    ++done;
    return {};
  }

  // Calls bind(loader) on the weights of `spec` and checks that they fit.
  template <typename Bind>
  Status load(const char* role, const CheckpointSpec& spec, bool streamed,
              const std::vector<std::string>& unused_prefixes, const Bind& bind) {
    UF_TRY(step(role));
    LoadTarget target;
    target.executor = set.executor.get();
    target.compute = set.compute;
    target.streamed = streamed;
    target.weight_bytes = &set.weight_bytes;
    if (random) {
      RandomSource source(file_seed(options.random_weights_seed, spec),
                          streamed ? DType::kBF16 : DType::kF32);
      Binder binder(source, fmt::format("random {}", role));
      bind(Loader(binder, target));
      set.sources[role] = fmt::format("random, seed {}", options.random_weights_seed);
      return binder.finish();
    }
    const std::filesystem::path path = find_weights(folder, spec.files);
    if (path.empty()) {
      return make_status(StatusCode::kNotFound,
                         "{}: no weights for the {}; looked for {}. Give their folder with "
                         "--weights, or use --random-weights",
                         folder.string(), role, joined(spec.files));
    }
    CheckpointOptions checkpoint_options;
    checkpoint_options.wrapper = spec.wrapper;
    checkpoint_options.wrapper_order = default_wrapper_order(spec.prefer_ema);
    UF_ASSIGN(Checkpoint checkpoint, Checkpoint::open(path, checkpoint_options));
    CheckpointSource base(checkpoint);
    std::optional<LoraAdapter> adapter;
    std::optional<LoraSource> merged;
    ParameterSource* source = &base;
    set.sources[role] = path.string();
    if (!spec.lora_files.empty()) {
      const std::filesystem::path lora = find_weights(folder, spec.lora_files);
      if (lora.empty()) {
        return make_status(StatusCode::kNotFound, "{}: no adapter for the {}; looked for {}",
                           folder.string(), role, joined(spec.lora_files));
      }
      UF_ASSIGN(adapter, LoraAdapter::open(lora));
      merged.emplace(base, *adapter, spec.lora_scale);
      source = &*merged;
      set.sources[role] += " + " + lora.string();
    }
    Binder binder(*source, path.string());
    for (const std::string& prefix : unused_prefixes) binder.ignore_unused(prefix);
    if (const Result<WanDitConfig> found = WanDitConfig::detect(checkpoint); found.ok()) {
      binder.set_hint(fmt::format(
          "the file holds a transformer of width {}, {} layers and {} input channels; check that "
          "it belongs to recipe '{}'",
          found->dim, found->num_layers, found->in_dim, set.recipe.name));
    }
    bind(Loader(binder, target));
    return binder.finish();
  }
};

PictureDecoder bind_decoder(Loader loader, const DecoderSpec& spec) {
  PictureDecoder decoder;
  if (spec.kind == DecoderKind::kTiny) {
    decoder.tiny = TinyDecoder::bind(std::move(loader), spec.tiny);
  } else {
    decoder.vae = WanVae::bind(std::move(loader), spec.vae, {.encoder = false, .decoder = true});
  }
  return decoder;
}

Result<DType> choose_dtype(const EngineOptions& options) {
  if (options.dtype == "auto") return DType::kF32;
  if (options.dtype == "fp8") {
    if (options.device != "cuda" && !options.device.starts_with("cuda:")) {
      return Status(StatusCode::kUnsupported, "fp8 products need --device cuda");
    }
    return DType::kBF16;  // what is no product of a transformer
  }
  const std::optional<DType> dtype = dtype_from_name(options.dtype);
  if (!dtype || (*dtype != DType::kF32 && *dtype != DType::kBF16 && *dtype != DType::kF16 &&
                 *dtype != DType::kF8E4M3)) {
    return make_status(StatusCode::kInvalidArgument,
                       "'{}' is no type to compute in; choose auto, f32, bf16 or fp8",
                       options.dtype);
  }
  if (*dtype != DType::kF32 && *dtype != DType::kBF16) {
    return make_status(StatusCode::kUnsupported, "this build computes in f32 and bf16, not in {}",
                       options.dtype);
  }
  return *dtype;
}

Result<bool> choose_fp8_attention(const EngineOptions& options, DType compute) {
  if (options.attention == "auto") return false;
  if (options.attention != "fp8") {
    return make_status(StatusCode::kInvalidArgument,
                       "'{}' is no kind of attention; choose auto or fp8", options.attention);
  }
  if (compute != DType::kBF16 ||
      (options.device != "cuda" && !options.device.starts_with("cuda:"))) {
    return Status(StatusCode::kUnsupported,
                  "attention in fp8 needs --device cuda and --dtype bf16 or fp8");
  }
  return true;
}

Result<bool> choose_fp8_fast_sums(const EngineOptions& options) {
  if (options.fp8_sums == "exact") return false;
  if (options.fp8_sums != "fast") {
    return make_status(StatusCode::kInvalidArgument,
                       "'{}' is no way to add up products in fp8; choose exact or fast",
                       options.fp8_sums);
  }
  if (options.dtype != "fp8") {
    return Status(StatusCode::kUnsupported,
                  "fast sums of products in fp8 need --device cuda and --dtype fp8");
  }
  return true;
}

Status load_text(Loading& loading, const TextSpec& text, const std::filesystem::path& shipped) {
  NetworkSet& set = loading.set;
  std::filesystem::path tokenizer = find_weights(loading.folder, text.tokenizer_files);
  if (tokenizer.empty() && !shipped.empty())
    tokenizer = find_weights(shipped, text.tokenizer_files);
  const bool large = encoder_parameters(text.encoder) > kStreamedEncoderParameters;
  if (loading.random && (tokenizer.empty() || large)) {
    // Nothing depends on what random networks make of the words: embeddings are drawn from the
    // prompt's bytes instead.
    loading.options.log.info(
        "text encoder: not loaded with random weights; embeddings are drawn "
        "from the prompt");
    set.sources["text"] = "random embeddings";
    return loading.step("text");
  }
  if (tokenizer.empty()) {
    return make_status(StatusCode::kNotFound, "{}: no tokenizer; looked for {}",
                       loading.folder.string(), joined(text.tokenizer_files));
  }
  UF_ASSIGN(set.tokenizer, Tokenizer::load(tokenizer, {.extra_ids = text.extra_ids}));
  if (set.tokenizer->vocabulary_size() > text.encoder.vocab_size) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: {} pieces, but the text encoder has rows for {}; they do not belong "
                       "together",
                       tokenizer.string(), set.tokenizer->vocabulary_size(),
                       text.encoder.vocab_size);
  }
  return loading.load("text", text.checkpoint, large, {}, [&](Loader loader) {
    set.text_encoder = Umt5Encoder::bind(std::move(loader), text.encoder);
  });
}

// Settings that replace fields of the recipe.
Status apply_options(RecipeData& recipe, const EngineOptions& options) {
  if (options.window_frames < 0) {
    return make_status(StatusCode::kInvalidArgument, "a window of {} latent frames",
                       options.window_frames);
  }
  if (options.window_frames > 0) {
    recipe.generator.cache_kind = CacheKind::kWindow;
    recipe.generator.cache_frames = options.window_frames;
  }
  if (options.sink_frames >= 0) recipe.generator.sink_frames = options.sink_frames;
  return recipe.validate();
}

// What cannot fit is refused before anything is read, drawn or allocated: the system would
// otherwise hand out memory it does not have and end the program later.
Status check_memory(const RecipeData& recipe, const EngineOptions& options, const NetworkSet& set) {
  MemoryQuestion question;
  question.scale = set.scale;
  question.compute = set.compute;
  question.fp8_products = set.fp8_products;
  question.fp8_attention = set.fp8_attention;
  const Device device = set.executor->device();
  question.gpu = device.type == DeviceType::kCuda;
  question.own_cascade = options.overlap;
  question.low_resolution = options.low_resolution;
  // A large text encoder stays in its file.
  question.text_encoder = !options.no_text_encoder &&
                          encoder_parameters(recipe.text.encoder) <= kStreamedEncoderParameters;
  const MemoryPlan plan = plan_memory(recipe, question);
  const uint64_t limit = options.memory_limit_bytes;
  if (question.gpu) {
    if (limit != 0) UF_TRY(require_memory(recipe, plan, limit, "--memory-limit allows"));
    const DeviceMemoryInfo memory = set.executor->device_memory();
    return require_memory(
        recipe, plan, memory.free_bytes,
        fmt::format("of {:.2f} GiB on {} other programs leave",
                    static_cast<double>(memory.total_bytes) / (1 << 30), device_name(device)));
  }
  MemoryPlan weights;
  weights.weights = plan.weights;
  UF_TRY(require_memory(recipe, weights, host_memory_bytes(), "this machine has"));
  if (limit == 0) return {};
  // Weights do not count there, and activations are the arena's to refuse.
  MemoryPlan caches;
  caches.generator_cache = plan.generator_cache;
  caches.refiner_cache = plan.refiner_cache;
  return require_memory(recipe, caches, limit, "--memory-limit allows");
}

}  // namespace

uint64_t file_seed(uint64_t seed, const CheckpointSpec& spec) {
  const std::string name = spec.files.empty() ? std::string() : spec.files[0];
  return seed * 0x9e3779b97f4a7c15ULL + hash_name({name.data(), name.size()});
}

std::filesystem::path find_weights(const std::filesystem::path& folder,
                                   const std::vector<std::string>& candidates) {
  static constexpr const char* kPlaces[] = {"", "checkpoints", "Wan2.1-T2V-1.3B",
                                            "wan_models/Wan2.1-T2V-1.3B"};
  if (folder.empty()) return {};
  for (const std::string& name : candidates) {
    for (const char* place : kPlaces) {
      const std::filesystem::path path = folder / place / name;
      std::error_code error;
      if (std::filesystem::exists(path, error)) return path;
    }
  }
  return {};
}

std::vector<NetworkFile> network_files(const RecipeData& recipe, int64_t scale) {
  std::vector<NetworkFile> files;
  std::set<std::string> seen;
  const auto add = [&](std::string role, const CheckpointSpec& spec,
                       std::function<void(Loader)> bind) {
    if (spec.files.empty() || !seen.insert(spec.files[0]).second) return;
    files.push_back({std::move(role), spec, std::move(bind)});
  };
  add("text", recipe.text.checkpoint, [config = recipe.text.encoder](Loader loader) {
    Umt5Encoder::bind(std::move(loader), config);
  });
  add("generator", recipe.generator.checkpoint, [config = recipe.generator.network](Loader loader) {
    WanDit::bind(std::move(loader), config, DType::kF32);
  });
  for (const CascadeSpec& cascade : recipe.cascades) {
    if (scale != 0 && cascade.scale != scale) continue;
    if (cascade.upsampler) {
      add("upsampler", cascade.upsampler->checkpoint,
          [config = cascade.upsampler->network](Loader loader) {
            LatentUpsampler::bind(std::move(loader), config);
          });
    }
    if (cascade.refiner) {
      add("refiner", cascade.refiner->checkpoint,
          [config = cascade.refiner->network](Loader loader) {
            SparseSrDit::bind(std::move(loader), config);
          });
    }
    add("decoder", cascade.decoder.checkpoint, [spec = cascade.decoder](Loader loader) {
      // A whole file: both halves of the autoencoder.
      if (spec.kind == DecoderKind::kTiny) {
        TinyDecoder::bind(loader, spec.tiny);
        if (spec.tiny_encoder) {
          TinyEncoder::bind(loader, *spec.tiny_encoder, spec.tiny.memory_init);
        }
      } else {
        WanVae::bind(std::move(loader), spec.vae, {});
      }
    });
  }
  return files;
}

ExecutorOptions NetworkSet::executor_options(const EngineOptions& options) const {
  ExecutorOptions result;
  result.device = options.device;
  result.threads = options.threads;
  result.cuda_graphs = options.cuda_graphs;
  result.fp8_products = fp8_products;
  result.fp8_fast_sums = fp8_fast_sums;
  result.fp8_attention = fp8_attention;
  return result;
}

Result<std::shared_ptr<const NetworkSet>> load_networks(const RecipeData& recipe,
                                                        const EngineOptions& options,
                                                        const std::filesystem::path& shipped) {
  auto set = std::make_shared<NetworkSet>();
  set->recipe = recipe;
  UF_TRY(apply_options(set->recipe, options));
  set->scale = options.scale == 0 ? recipe.default_scale : options.scale;
  const CascadeSpec* cascade = recipe.cascade(set->scale);
  if (cascade == nullptr) {
    std::vector<std::string> scales;
    for (const CascadeSpec& c : recipe.cascades) scales.push_back(std::to_string(c.scale));
    return make_status(StatusCode::kInvalidArgument, "recipe '{}' has no scale {}; it has {}",
                       recipe.name, set->scale, joined(scales));
  }
  UF_ASSIGN(set->compute, choose_dtype(options));
  UF_ASSIGN(set->fp8_attention, choose_fp8_attention(options, set->compute));
  set->fp8_products = options.dtype == "fp8";
  UF_ASSIGN(set->fp8_fast_sums, choose_fp8_fast_sums(options));
  UF_ASSIGN(std::unique_ptr<Executor> executor, make_executor(set->executor_options(options)));
  set->executor = std::move(executor);
  UF_TRY(check_memory(set->recipe, options, *set));

  Loading loading{options, options.weights_dir, false, *set, 0, 6};
  loading.random = options.random_weights || (options.weights_dir.empty() && recipe.random_weights);
  if (options.weights_dir.empty() && !loading.random) {
    loading.folder = shipped;
    if (shipped.empty() || recipe.shipped_models.empty()) {
      return make_status(StatusCode::kNotFound,
                         "recipe '{}' needs its published checkpoints; give their folder with "
                         "--weights, or try it with --random-weights",
                         recipe.name);
    }
  }
  if (!options.weights_dir.empty() && !std::filesystem::is_directory(options.weights_dir)) {
    return make_status(StatusCode::kNotFound, "{}: no such folder of weights", options.weights_dir);
  }
  set->random_weights = loading.random;
  try {
    if (!options.no_text_encoder) UF_TRY(load_text(loading, set->recipe.text, shipped));
    const GeneratorSpec& generator = set->recipe.generator;
    UF_TRY(loading.load(
        "generator", generator.checkpoint, false,
        {"_cls_pred_branch.", "_register_tokens.", "_gan_ca_blocks."}, [&](Loader loader) {
          set->generator = WanDit::bind(std::move(loader), generator.network, set->compute);
        }));
    if (cascade->upsampler) {
      UF_TRY(
          loading.load("upsampler", cascade->upsampler->checkpoint, false, {}, [&](Loader loader) {
            set->upsampler = LatentUpsampler::bind(std::move(loader), cascade->upsampler->network);
          }));
    }
    if (cascade->refiner) {
      UF_TRY(loading.load("refiner", cascade->refiner->checkpoint, false, {}, [&](Loader loader) {
        set->refiner = SparseSrDit::bind(std::move(loader), cascade->refiner->network);
      }));
    }
    UF_TRY(loading.load(
        "decoder", cascade->decoder.checkpoint, false, {"encoder."},
        [&](Loader loader) { set->decoder = bind_decoder(std::move(loader), cascade->decoder); }));
    if (options.low_resolution && set->scale != 1) {
      const CascadeSpec* small = recipe.cascade(1);
      if (small == nullptr) {
        return make_status(StatusCode::kInvalidArgument,
                           "recipe '{}' has no decoder for scale 1, so it cannot show the "
                           "generator's own pictures",
                           recipe.name);
      }
      UF_TRY(loading.load(
          "decoder 1x", small->decoder.checkpoint, false, {"encoder."}, [&](Loader loader) {
            set->low_resolution_decoder = bind_decoder(std::move(loader), small->decoder);
          }));
    }
  } catch (const Error& error) {
    return error.status();
  }
  return std::shared_ptr<const NetworkSet>(std::move(set));
}

}  // namespace ultraflash
