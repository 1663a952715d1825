#include "stream/memory_plan.h"

#include <algorithm>

#include "core/check.h"
#include "stream/decoder_stage.h"
#include "stream/networks.h"

namespace ultraflash {
namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

// Of one process on an H200: context, kernels, cuBLASLt and cuDNN take 0.6 GiB, workspaces the
// rest.
constexpr uint64_t kGpuLibraries = uint64_t{800} << 20;

// The feed-forward half takes rows in parts of at most so many on a GPU (ops/cuda).
constexpr int64_t kFeedForwardRows = 20480;

uint64_t positive(int64_t x) { return static_cast<uint64_t>(std::max<int64_t>(x, 0)); }

// One pass of a transformer over `tokens` tokens, of which `padded` stand in windows.
uint64_t pass_bytes(const WanDitConfig& c, int64_t tokens, int64_t padded,
                    const MemoryQuestion& q) {
  const auto element = static_cast<int64_t>(dtype_size(q.compute));
  const int64_t inner = q.gpu ? std::min(tokens, kFeedForwardRows) : tokens;
  // The stream, its norm, the result and the inner rows; or the stream, q, k and v, and the
  // queries.
  const int64_t feed_forward = 3 * tokens * c.dim + inner * c.ffn_dim;
  const int64_t attention = (1 + 3) * tokens * c.dim + padded * c.dim;
  int64_t bytes = element * std::max(feed_forward, attention);
  if (q.fp8_products) bytes += inner * c.ffn_dim;
  return positive(bytes);
}

// The tiny decoder over one latent frame of rows x columns, whose widest moment is its end: frames
// at half size before the last enlargement, and one frame at full size twice.
uint64_t decoder_bytes(const DecoderSpec& spec, int64_t rows, int64_t columns,
                       const MemoryQuestion& q) {
  const auto element = static_cast<int64_t>(dtype_size(q.compute));
  const int64_t pixels = 64 * rows * columns;
  if (spec.kind == DecoderKind::kWanVae) {
    return positive(pixels * element * spec.vae.dim * spec.vae.frames_per_latent() * 3);
  }
  const std::vector<int64_t>& widths = spec.tiny.widths;
  const int64_t width = *std::min_element(widths.begin(), widths.end());
  const int64_t pictures = spec.tiny.frames_per_latent();
  // Inputs of three memory blocks at each of three sizes, the last of half the pictures.
  int64_t kept = 0;
  if (decodes_in_one_go(rows, columns)) {
    for (size_t i = 0; i < 3 && i < widths.size(); ++i) {
      kept += 3 * (rows * columns << (2 * i)) * widths[i] * (i == 2 ? (pictures + 1) / 2 : 1);
    }
  }
  return positive(element *
                  (pixels * (width * (pictures / 4 + 1) + 2 * width + 8 + 3 * pictures) + kept));
}

uint64_t text_bytes(const WanDitConfig& c, DType compute) {
  return positive(2 * c.num_layers * 2 * c.text_len * c.dim) * dtype_size(compute) +
         positive(c.text_len * (c.text_dim + 4 * c.dim)) * dtype_size(compute);
}

uint64_t weight_bytes(const RecipeData& recipe, const MemoryQuestion& q) {
  uint64_t bytes = 0;
  for (const NetworkFile& file : network_files(recipe, q.scale)) {
    if (file.role == "text" && !q.text_encoder) continue;
    SpecSource no_data;
    Binder binder(no_data, file.role);
    file.bind(Loader(binder, {}));
    for (const ParameterSpec& spec : binder.specs()) {
      const auto count = static_cast<uint64_t>(spec.shape.numel());
      // Matrices of transformers in e4m3, but those of text and time (PrepareOptions::few_rows).
      const bool wide = spec.name.find("text_embedding") != std::string::npos ||
                        spec.name.find("time_") != std::string::npos ||
                        spec.name.find("cross_attn.k.") != std::string::npos ||
                        spec.name.find("cross_attn.v.") != std::string::npos;
      const bool quantised = q.fp8_products && !wide && file.role != "text" &&
                             spec.shape.rank() == 2 && spec.shape[0] >= 1024 &&
                             spec.shape[1] >= 1024;
      bytes += quantised ? count : count * dtype_size(q.compute);
    }
  }
  return bytes;
}

}  // namespace

std::string MemoryPlan::to_string() const {
  const auto gib = [](uint64_t bytes) { return static_cast<double>(bytes) / kGib; };
  return fmt::format(
      "{:.2f} GiB (weights {:.2f}, caches of the generator {:.2f} and of the SR network {:.2f}, "
      "text {:.2f}, activations {:.2f}, libraries {:.2f})",
      gib(total()), gib(weights), gib(generator_cache), gib(refiner_cache), gib(text),
      gib(activations), gib(libraries));
}

MemoryPlan plan_memory(const RecipeData& recipe, const MemoryQuestion& q) {
  const GeneratorSpec& g = recipe.generator;
  const CascadeSpec* cascade = recipe.cascade(q.scale);
  UF_CHECK(cascade != nullptr, "no scale {}", q.scale);
  const auto element = static_cast<uint64_t>(dtype_size(q.compute));
  const uint64_t cached = q.fp8_attention ? 1 : element;
  MemoryPlan plan;
  plan.weights = weight_bytes(recipe, q);
  const int64_t frame_tokens = g.latent_height / 2 * (g.latent_width / 2);
  plan.generator_cache =
      2 * cached * positive(g.network.num_layers * g.cache_frames * frame_tokens * g.network.dim);
  plan.text = text_bytes(g.network, q.compute);
  const int64_t chunk_tokens = g.frames_per_chunk * frame_tokens;
  const uint64_t generator = pass_bytes(g.network, chunk_tokens, chunk_tokens, q);

  uint64_t rest = 0;
  const int64_t rows = g.latent_height * q.scale;
  const int64_t columns = g.latent_width * q.scale;
  int64_t group_frames = g.frames_per_chunk;
  if (cascade->refiner) {
    const RefinerSpec& r = *cascade->refiner;
    const WanDitConfig& t = r.network.transformer;
    group_frames *= r.group_chunks;
    const WindowGrid grid{{group_frames, rows / 2, columns / 2}, r.network.window};
    const int64_t slots = t.num_layers * std::max<int64_t>(r.kv_len, 1) + grid.temporal_blocks();
    const int64_t blocks = slots * grid.spatial_blocks();
    plan.refiner_cache =
        positive(blocks * t.dim) * (2 * cached * positive(r.network.window.tokens()) + element);
    plan.text += text_bytes(t, q.compute);
    rest = pass_bytes(t, grid.grid.tokens(), grid.blocks() * r.network.window.tokens(), q);
  }
  if (cascade->upsampler) {
    const LatentUpsamplerConfig& u = cascade->upsampler->network;
    const int64_t width = u.version == 1 ? u.mid_channels : u.stage_channels[0];
    // A memory block: x, x beside the frame before it, and the result.
    rest = std::max(rest, element * positive(group_frames * rows * columns * width * 5));
  }
  rest = std::max(rest, decoder_bytes(cascade->decoder, rows, columns, q));
  const CascadeSpec* small = recipe.cascade(1);
  if (q.low_resolution && small != nullptr) {
    rest = std::max(rest, decoder_bytes(small->decoder, g.latent_height, g.latent_width, q));
  }
  plan.activations = q.own_cascade ? generator + rest : std::max(generator, rest);
  // Pictures in 8 bits: of the group that is made, and on a GPU of the one that leaves.
  const int64_t pictures = 4 * group_frames * 64 * rows * columns * 3;
  plan.activations += positive(pictures) * (q.gpu ? 2 : 1);
  if (q.gpu) plan.libraries = kGpuLibraries;
  return plan;
}

Status require_memory(const RecipeData& recipe, const MemoryPlan& plan, uint64_t available,
                      const std::string& what) {
  if (plan.total() <= available) return {};
  return make_status(StatusCode::kOutOfMemory,
                     "recipe '{}' needs {}; {} {:.2f} GiB. A smaller scale, window or recipe needs "
                     "less",
                     recipe.name, plan.to_string(), what, static_cast<double>(available) / kGib);
}

}  // namespace ultraflash
