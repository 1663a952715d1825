#include "models/umt5.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace ultraflash {

Status Umt5Config::validate() const {
  const auto positive = [](const char* name, int64_t value, int64_t limit) -> Status {
    if (value < 1 || value > limit) {
      return make_status(StatusCode::kInvalidArgument, "text encoder: {} is {}, expected 1 to {}",
                         name, value, limit);
    }
    return {};
  };
  UF_TRY(positive("vocab_size", vocab_size, 1 << 24));
  UF_TRY(positive("dim", dim, 1 << 16));
  UF_TRY(positive("dim_attn", dim_attn, 1 << 16));
  UF_TRY(positive("dim_ffn", dim_ffn, 1 << 18));
  UF_TRY(positive("num_heads", num_heads, 1024));
  UF_TRY(positive("num_layers", num_layers, 1024));
  UF_TRY(positive("num_buckets", num_buckets, 1 << 16));
  UF_TRY(positive("max_distance", max_distance, 1 << 20));
  if (dim_attn % num_heads != 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "text encoder: attention width {} is not a multiple of {} heads", dim_attn,
                       num_heads);
  }
  if (num_buckets % 4 != 0 || max_distance <= num_buckets / 4) {
    return make_status(StatusCode::kInvalidArgument,
                       "text encoder: {} position buckets up to distance {}; the buckets must be a "
                       "multiple of 4 and the distance larger than a quarter of them",
                       num_buckets, max_distance);
  }
  return {};
}

Result<Umt5Config> Umt5Config::detect(const Checkpoint& checkpoint) {
  const auto shape_of = [&](std::string_view name) -> Result<Shape> {
    const TensorEntry* entry = checkpoint.find(name);
    if (entry == nullptr || entry->shape.rank() != 2) {
      return make_status(StatusCode::kMalformed, "{}: no matrix {}; this is not a UMT5 encoder",
                         checkpoint.label(), name);
    }
    return entry->shape;
  };
  Umt5Config config;
  UF_ASSIGN(const Shape embedding, shape_of("token_embedding.weight"));
  UF_ASSIGN(const Shape q, shape_of("blocks.0.attn.q.weight"));
  UF_ASSIGN(const Shape fc1, shape_of("blocks.0.ffn.fc1.weight"));
  UF_ASSIGN(const Shape positions, shape_of("blocks.0.pos_embedding.embedding.weight"));
  config.vocab_size = embedding[0];
  config.dim = embedding[1];
  config.dim_attn = q[0];
  config.dim_ffn = fc1[0];
  config.num_buckets = positions[0];
  config.num_heads = positions[1];
  config.num_layers = 0;
  while (checkpoint.find(fmt::format("blocks.{}.attn.q.weight", config.num_layers)) != nullptr) {
    ++config.num_layers;
  }
  UF_TRY(config.validate());
  return config;
}

Umt5Encoder Umt5Encoder::bind(Loader all, const Umt5Config& config) {
  Umt5Encoder network;
  Loader loader = all.for_few_rows();
  network.config_ = config;
  network.compute_ = loader.target().compute;
  const int64_t dim = config.dim;
  const float branch = 1.0F / std::sqrt(2.0F * static_cast<float>(config.num_layers));
  network.token_embedding_ = loader.as_bound("token_embedding.weight", {config.vocab_size, dim},
                                             ParameterInit::normal(1.0F));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Loader in_block = loader.scoped(fmt::format("blocks.{}.", i));
    Block block;
    block.norm1 = in_block.vector("norm1.weight", {dim}, ParameterInit::ones());
    // T5 does not scale its scores; random weights take the scale into q.
    const float q_gain = 1.0F / std::sqrt(static_cast<float>(config.dim_attn / config.num_heads));
    // In f32: without a scale the scores are large, and rounding q and k to bf16 alone would move
    // the probabilities by 3 %.
    block.qkv = in_block.with_compute(DType::kF32)
                    .fused_linear({"attn.q", "attn.k", "attn.v"}, dim, config.dim_attn, false,
                                  {q_gain, 1.0F, 1.0F});
    block.o = in_block.linear("attn.o", config.dim_attn, dim, false, branch);
    block.norm2 = in_block.vector("norm2.weight", {dim}, ParameterInit::ones());
    block.gate = in_block.linear("ffn.gate.0", dim, config.dim_ffn, false);
    block.fc1 = in_block.linear("ffn.fc1", dim, config.dim_ffn, false);
    block.fc2 = in_block.linear("ffn.fc2", config.dim_ffn, dim, false, branch);
    block.positions =
        in_block.as_bound("pos_embedding.embedding.weight", {config.num_buckets, config.num_heads},
                          ParameterInit::normal(0.5F));
    network.blocks_.push_back(std::move(block));
  }
  network.norm_ = loader.vector("norm.weight", {dim}, ParameterInit::ones());
  return network;
}

int64_t relative_position_bucket(int64_t relative, int64_t num_buckets, int64_t max_distance) {
  const int64_t half = num_buckets / 2;
  const int64_t sign = relative > 0 ? half : 0;
  const int64_t distance = std::abs(relative);
  const int64_t exact = half / 2;
  if (distance < exact) return sign + distance;
  const float position = std::log(static_cast<float>(distance) / static_cast<float>(exact)) /
                         std::log(static_cast<float>(max_distance) / static_cast<float>(exact)) *
                         static_cast<float>(half - exact);
  return sign + std::min(half - 1, exact + static_cast<int64_t>(position));
}

Tensor Umt5Encoder::bias_elements(int64_t length) const {
  const int64_t heads = config_.num_heads;
  const int64_t count = 2 * length - 1;
  Tensor elements = Tensor::allocate(DType::kI64, {heads, count});
  auto* out = elements.mutable_data<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t relative = length - 1 - i;  // key minus query
    const int64_t bucket =
        relative_position_bucket(relative, config_.num_buckets, config_.max_distance);
    for (int64_t h = 0; h < heads; ++h) out[h * count + i] = bucket * heads + h;
  }
  return elements;
}

namespace {

// The first `columns` ids of each row.
Tensor first_columns(const Tensor& ids, int64_t columns) {
  Tensor result = Tensor::allocate(DType::kI64, {ids.dim(0), columns});
  for (int64_t b = 0; b < ids.dim(0); ++b) {
    std::copy_n(ids.data<int64_t>() + b * ids.dim(1), columns,
                result.mutable_data<int64_t>() + b * columns);
  }
  return result;
}

}  // namespace

Tensor Umt5Encoder::run(Executor& ops, const Tensor& all_ids, const Tensor& lengths,
                        bool zero_padding) const {
  // Padding is seen by no row of the text, so where its own rows come out as zeros they need no
  // work. A few lengths only, as each is a shape to prepare products for.
  int64_t length = all_ids.dim(1);
  if (zero_padding) {
    const auto* used = lengths.data<int64_t>();
    const int64_t longest = *std::max_element(used, used + lengths.numel());
    length = std::min(length, std::max<int64_t>((longest + 15) / 16, 1) * 16);
  }
  const bool shortened = length < all_ids.dim(1);
  const Tensor ids = shortened ? first_columns(all_ids, length) : all_ids;
  const int64_t width = config_.dim_attn;
  AttentionOptions attention;
  attention.scale = 1.0F;
  attention.key_lengths = lengths;
  const Tensor elements = bias_elements(length);
  const Shape one_by_one{config_.num_buckets * config_.num_heads, 1};
  // The residual stream stays in f32: T5's grows to hundreds, where a sum in bf16 would lose what
  // the later layers add.
  Tensor x = ops.embedding(ids, token_embedding_, DType::kF32);  // [batch, length, dim]
  for (const Block& block : blocks_) {
    Tensor y = ops.linear(ops.rms_norm(x, block.norm1, config_.eps), block.qkv);
    attention.relative_bias =
        ops.embedding(elements, block.positions.reshape(one_by_one), DType::kF32)
            .reshape({config_.num_heads, 2 * length - 1});
    y = ops.attention(y.slice(2, 0, width), y.slice(2, width, 2 * width),
                      y.slice(2, 2 * width, 3 * width), config_.num_heads, attention);
    y = ops.linear(ops.cast(y, compute_), block.o);
    x = ops.gated_residual(std::move(x), ops.cast(y, DType::kF32), {});
    const Tensor n = ops.cast(ops.rms_norm(x, block.norm2, config_.eps), compute_);
    y = ops.multiply(ops.linear(n, block.fc1),
                     ops.linear(n, block.gate, Activation::kGeluTanh));  // [batch, length, dim_ffn]
    x = ops.gated_residual(std::move(x), ops.cast(ops.linear(y, block.fc2), DType::kF32), {});
  }
  x = ops.cast(ops.rms_norm(x, norm_, config_.eps), compute_);
  if (!zero_padding) return x;
  x = ops.mask_rows(std::move(x), lengths);
  if (!shortened) return x;
  Tensor padded = ops.zeros(x.dtype(), x.shape().with(1, all_ids.dim(1)));
  ops.copy(padded.slice(1, 0, length), x);
  return padded;
}

}  // namespace ultraflash
