// Argument checks of the operations, and the composites that executors may override. Attention and
// its caches: executor_attention.cc.
#include "ops/executor.h"

#include <chrono>

#include "core/check.h"
#include "ops/executor_checks.h"
#include "ops/op_timer.h"

namespace ultraflash {
namespace {

// Of an executor that is done with an operation when the call returns.
class ClockMoment final : public Moment {
 public:
  void wait() override {}
  [[nodiscard]] bool reached() const override { return true; }
  [[nodiscard]] double seconds_since(const Moment& earlier) const override {
    const auto* other = dynamic_cast<const ClockMoment*>(&earlier);
    UF_CHECK(other != nullptr, "moments of two devices");
    return std::chrono::duration<double>(time_ - other->time_).count();
  }

 private:
  std::chrono::steady_clock::time_point time_ = std::chrono::steady_clock::now();
};

}  // namespace

std::shared_ptr<Moment> Executor::moment() {
  synchronize();
  return std::make_shared<ClockMoment>();
}

Tensor Executor::to_host_later(const Tensor& x, std::shared_ptr<Moment>& ready) {
  Tensor host = to_host(x);
  ready = std::make_shared<ClockMoment>();
  return host;
}

void Executor::repeat(std::unique_ptr<Recording>& /*recording*/, FunctionRef<void()> work) {
  work();
}

Tensor Executor::zeros(DType dtype, const Shape& shape) {
  Tensor x = do_empty(dtype, shape);
  do_fill_zero(x);
  return x;
}

void Executor::copy(const Tensor& destination, const Tensor& source) {
  UF_CHECK(destination.defined() && source.defined() && destination.shape() == source.shape() &&
               destination.dtype() == source.dtype(),
           "copy: {} to {}", source.to_string(), destination.to_string());
  const OpTimer timer(*this, op_log_, "copy", [&] { return element_cost(source, 2.0); });
  do_copy(destination, source);
}

void Executor::prepare(Linear& linear, const PrepareOptions& options) {
  UF_CHECK(!linear.weights.empty(), "prepare: a linear layer without weights");
  UF_CHECK(linear.biases.empty() || linear.biases.size() == linear.weights.size(),
           "prepare: {} biases for {} weights", linear.biases.size(), linear.weights.size());
  linear.in_features = linear.weights[0].dim(-1);
  linear.out_features = 0;
  for (size_t i = 0; i < linear.weights.size(); ++i) {
    const Tensor& weight = linear.weights[i];
    require_rank(weight, 2, "prepare", "weight");
    UF_CHECK(weight.dim(1) == linear.in_features, "prepare: parts {} and {} take different inputs",
             linear.weights[0].to_string(), weight.to_string());
    if (!linear.biases.empty()) {
      UF_CHECK(linear.biases[i].shape() == Shape{weight.dim(0)}, "prepare: bias {} of weight {}",
               linear.biases[i].to_string(), weight.to_string());
    }
    linear.out_features += weight.dim(0);
  }
  do_prepare(linear, options);
}

void Executor::prepare(Conv& conv, const PrepareOptions& options) {
  UF_CHECK(conv.weight.defined() && (conv.weight.rank() == 4 || conv.weight.rank() == 5),
           "prepare: convolution weight {}", conv.weight.to_string());
  UF_CHECK(!conv.bias.defined() || conv.bias.shape() == Shape{conv.weight.dim(0)},
           "prepare: bias {} of weight {}", conv.bias.to_string(), conv.weight.to_string());
  do_prepare(conv, options);
}

Tensor Executor::linear(const Tensor& x, const Linear& weight, Activation activation) {
  require_product_input(x, "linear");
  UF_CHECK(weight.prepared != nullptr, "linear: the weight was not prepared");
  UF_CHECK(x.rank() >= 1 && x.dim(-1) == weight.in_features,
           "linear: x {} meets a weight of {} inputs", x.to_string(), weight.in_features);
  const OpTimer timer(*this, op_log_, "linear", [&] { return product_cost(x, weight); });
  return do_linear(x, weight, activation);
}

Tensor Executor::feed_forward(const Tensor& x, const Linear& first, Activation activation,
                              const Linear& second) {
  require_product_input(x, "feed_forward");
  UF_CHECK(first.prepared != nullptr && second.prepared != nullptr,
           "feed_forward: a weight was not prepared");
  UF_CHECK(
      x.rank() >= 1 && x.dim(-1) == first.in_features && first.out_features == second.in_features,
      "feed_forward: x {} meets weights {} -> {} and {} -> {}", x.to_string(), first.in_features,
      first.out_features, second.in_features, second.out_features);
  const OpTimer timer(*this, op_log_, "feed_forward", [&] {
    // The inner rows are counted as written and read: no executor keeps them on the chip.
    OpCost cost = product_cost(x, first);
    cost.flops *= 2.0;
    cost.bytes *= 2.0;
    return cost;
  });
  return do_feed_forward(x, first, activation, second);
}

Tensor Executor::do_feed_forward(const Tensor& x, const Linear& first, Activation activation,
                                 const Linear& second) {
  return do_linear(do_linear(x, first, activation), second, Activation::kNone);
}

Tensor Executor::temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) {
  require_rank(x, 5, "temporal_pool", "x");
  require_dense(x, "temporal_pool", "x");
  UF_CHECK(frames > 0 && x.dim(1) % frames == 0 && x.dim(4) * frames == weight.in_features,
           "temporal_pool: x {} pooled by {} meets a weight of {} inputs", x.to_string(), frames,
           weight.in_features);
  const OpTimer timer(*this, op_log_, "temporal_pool", [&] { return product_cost(x, weight); });
  return do_temporal_pool(x, weight, frames);
}

Tensor Executor::temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) {
  require_rank(x, 5, "temporal_grow", "x");
  require_dense(x, "temporal_grow", "x");
  UF_CHECK(frames > 0 && weight.out_features % frames == 0 && x.dim(4) == weight.in_features,
           "temporal_grow: x {} grown by {} meets a weight [{}, {}]", x.to_string(), frames,
           weight.out_features, weight.in_features);
  const OpTimer timer(*this, op_log_, "temporal_grow", [&] { return product_cost(x, weight); });
  return do_temporal_grow(x, weight, frames);
}

Tensor Executor::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) {
  require_dense(x, "layer_norm", "x");
  require_optional_vector(weight, x.dim(-1), "layer_norm", "weight");
  require_optional_vector(bias, x.dim(-1), "layer_norm", "bias");
  const OpTimer timer(*this, op_log_, "layer_norm", [&] { return element_cost(x, 2.0); });
  return do_layer_norm(x, weight, bias, eps);
}

Tensor Executor::layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                     float eps, const Linear* reader) {
  require_rank(x, 3, "layer_norm_modulate", "x");
  require_dense(x, "layer_norm_modulate", "x");
  require_rows(shift, x, "layer_norm_modulate", "shift");
  require_rows(scale, x, "layer_norm_modulate", "scale");
  UF_CHECK(shift.dim(1) == scale.dim(1), "layer_norm_modulate: shift {} and scale {}",
           shift.to_string(), scale.to_string());
  const OpTimer timer(*this, op_log_, "layer_norm_modulate", [&] { return element_cost(x, 2.0); });
  const ReaderScope scope(reader_, reader);
  return do_layer_norm_modulate(x, shift, scale, eps);
}

Tensor Executor::rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  require_dense(x, "rms_norm", "x");
  require_vector(weight, x.dim(-1), "rms_norm", "weight");
  const OpTimer timer(*this, op_log_, "rms_norm", [&] { return element_cost(x, 2.0); });
  return do_rms_norm(x, weight, eps);
}

Tensor Executor::gated_residual(Tensor x, const Tensor& y, const Tensor& gate) {
  require_dense(x, "gated_residual", "x");
  require_dense(y, "gated_residual", "y");
  require_same(x, y, "gated_residual");
  if (gate.defined()) {
    require_rank(x, 3, "gated_residual", "x");
    require_rows(gate, x, "gated_residual", "gate");
  }
  const OpTimer timer(*this, op_log_, "gated_residual", [&] { return element_cost(x, 3.0); });
  return do_gated_residual(std::move(x), y, gate);
}

ResidualNorm Executor::residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                         const Tensor& shift, const Tensor& scale, float eps,
                                         const Linear* reader) {
  require_rank(x, 3, "residual_modulate", "x");
  require_dense(x, "residual_modulate", "x");
  require_dense(y, "residual_modulate", "y");
  require_same(x, y, "residual_modulate");
  if (gate.defined()) require_rows(gate, x, "residual_modulate", "gate");
  require_rows(shift, x, "residual_modulate", "shift");
  require_rows(scale, x, "residual_modulate", "scale");
  UF_CHECK(shift.dim(1) == scale.dim(1) && (!gate.defined() || gate.dim(1) == shift.dim(1)),
           "residual_modulate: rows of gate {}, shift {} and scale {} differ", gate.to_string(),
           shift.to_string(), scale.to_string());
  const OpTimer timer(*this, op_log_, "residual_modulate", [&] { return element_cost(y, 4.0); });
  const ReaderScope scope(reader_, reader);
  return do_residual_modulate(std::move(x), y, gate, shift, scale, eps);
}

ResidualNorm Executor::residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                           const Tensor& weight, const Tensor& bias, float eps,
                                           const Linear* reader) {
  require_rank(x, 3, "residual_layer_norm", "x");
  require_dense(x, "residual_layer_norm", "x");
  require_dense(y, "residual_layer_norm", "y");
  require_same(x, y, "residual_layer_norm");
  if (gate.defined()) require_rows(gate, x, "residual_layer_norm", "gate");
  require_optional_vector(weight, x.dim(-1), "residual_layer_norm", "weight");
  require_optional_vector(bias, x.dim(-1), "residual_layer_norm", "bias");
  const OpTimer timer(*this, op_log_, "residual_layer_norm", [&] { return element_cost(y, 4.0); });
  const ReaderScope scope(reader_, reader);
  return do_residual_layer_norm(std::move(x), y, gate, weight, bias, eps);
}

ResidualNorm Executor::do_residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                            const Tensor& shift, const Tensor& scale, float eps) {
  ResidualNorm result;
  result.x = do_gated_residual(std::move(x), y, gate);
  result.normalized = do_layer_norm_modulate(result.x, shift, scale, eps);
  return result;
}

ResidualNorm Executor::do_residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                              const Tensor& weight, const Tensor& bias, float eps) {
  ResidualNorm result;
  result.x = do_gated_residual(std::move(x), y, gate);
  result.normalized = do_layer_norm(result.x, weight, bias, eps);
  return result;
}

Tensor Executor::channel_norm(const Tensor& x, const Tensor& gamma, bool silu) {
  require_dense(x, "channel_norm", "x");
  require_vector(gamma, x.dim(-1), "channel_norm", "gamma");
  return do_channel_norm(x, gamma, silu);
}

// By value, so that options that were moved in may hold the only handle of their residual.
Tensor Executor::conv2d(const Tensor& x, const Conv& weight, Conv2dOptions options) {
  require_rank(x, 5, "conv2d", "x");
  require_dense(x, "conv2d", "x");
  UF_CHECK(weight.prepared != nullptr, "conv2d: the weight was not prepared");
  require_rank(weight.weight, 4, "conv2d", "weight");
  const int64_t channels = x.dim(4) * (options.with_memory ? 2 : 1);
  UF_CHECK(weight.weight.dim(1) == channels, "conv2d: x {}{} meets weight {}", x.to_string(),
           options.with_memory ? " with memory" : "", weight.weight.to_string());
  UF_CHECK(options.stride > 0 && options.upsample > 0, "conv2d: stride {}, upsample {}",
           options.stride, options.upsample);
  if (options.memory.defined()) {
    UF_CHECK(options.with_memory && options.memory.shape() == x.shape().with(1, 1) &&
                 options.memory.dtype() == x.dtype() && options.memory.contiguous(),
             "conv2d: memory {} for x {}", options.memory.to_string(), x.to_string());
  }
  const OpTimer timer(*this, op_log_, "conv2d", [&] {
    const double pixels = count(x) / static_cast<double>(x.dim(4)) *
                          static_cast<double>(options.upsample * options.upsample) /
                          static_cast<double>(options.stride * options.stride);
    return convolution_cost(x, weight, pixels);
  });
  return do_conv2d(x, weight, options);
}

Tensor Executor::causal_conv3d(const Tensor& x, const Conv& weight, const Conv3dOptions& options) {
  require_rank(x, 5, "causal_conv3d", "x");
  require_dense(x, "causal_conv3d", "x");
  UF_CHECK(weight.prepared != nullptr, "causal_conv3d: the weight was not prepared");
  require_rank(weight.weight, 5, "causal_conv3d", "weight");
  UF_CHECK(weight.weight.dim(1) == x.dim(4), "causal_conv3d: x {} meets weight {}", x.to_string(),
           weight.weight.to_string());
  int64_t frames = x.dim(1) + options.zeros;
  if (options.past.defined()) {
    UF_CHECK(options.past.rank() == 5 && options.past.contiguous() &&
                 options.past.dtype() == x.dtype() &&
                 options.past.shape() == x.shape().with(1, options.past.dim(1)),
             "causal_conv3d: past {} for x {}", options.past.to_string(), x.to_string());
    frames += options.past.dim(1);
  }
  UF_CHECK(frames >= weight.weight.dim(2) && options.stride_time > 0 && options.zeros >= 0,
           "causal_conv3d: {} frames for a kernel of {}", frames, weight.weight.dim(2));
  return do_causal_conv3d(x, weight, options);
}

Tensor Executor::pixel_shuffle(const Tensor& x, int64_t factor, Activation activation) {
  require_rank(x, 5, "pixel_shuffle", "x");
  require_dense(x, "pixel_shuffle", "x");
  UF_CHECK(factor > 0 && x.dim(4) % (factor * factor) == 0, "pixel_shuffle: x {} by {}",
           x.to_string(), factor);
  const OpTimer timer(*this, op_log_, "pixel_shuffle", [&] { return element_cost(x, 2.0); });
  return do_pixel_shuffle(x, factor, activation);
}

Tensor Executor::patchify(const Tensor& a, const Tensor& b, DType dtype) {
  require_rank(a, 5, "patchify", "a");
  require_dense(a, "patchify", "a");
  UF_CHECK(a.dim(2) % 2 == 0 && a.dim(3) % 2 == 0, "patchify: latent {} has an odd side",
           a.to_string());
  if (b.defined()) {
    require_dense(b, "patchify", "b");
    UF_CHECK(b.rank() == 5 && b.shape().with(4, a.dim(4)) == a.shape() && b.dtype() == a.dtype(),
             "patchify: {} beside {}", b.to_string(), a.to_string());
  }
  const OpTimer timer(*this, op_log_, "patchify", [&] { return element_cost(a, 2.0); });
  return do_patchify(a, b, dtype);
}

Tensor Executor::unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) {
  require_rank(tokens, 3, "unpatchify", "tokens");
  require_dense(tokens, "unpatchify", "tokens");
  UF_CHECK(tokens.dim(1) == grid.tokens() && tokens.dim(2) % 4 == 0,
           "unpatchify: tokens {} for a grid of {}", tokens.to_string(), grid.tokens());
  const OpTimer timer(*this, op_log_, "unpatchify", [&] { return element_cost(tokens, 2.0); });
  return do_unpatchify(tokens, grid, dtype);
}

Tensor Executor::sinusoid(std::span<const double> timesteps, int64_t dim) {
  UF_CHECK(dim > 0 && dim % 2 == 0, "sinusoid: width {}", dim);
  return do_sinusoid(timesteps, dim);
}

Tensor Executor::axpby(float a, const Tensor& x, float b, const Tensor& y) {
  require_dense(x, "axpby", "x");
  require_dense(y, "axpby", "y");
  require_same(x, y, "axpby");
  const OpTimer timer(*this, op_log_, "axpby", [&] { return element_cost(x, 3.0); });
  return do_axpby(a, x, b, y);
}

Tensor Executor::flow_to_x0(const Tensor& x, const Tensor& v, double sigma) {
  require_dense(x, "flow_to_x0", "x");
  require_dense(v, "flow_to_x0", "v");
  require_same(x, v, "flow_to_x0");
  const OpTimer timer(*this, op_log_, "flow_to_x0", [&] { return element_cost(x, 3.0); });
  return do_flow_to_x0(x, v, sigma);
}

Tensor Executor::normal(RandomStream stream, const Shape& shape, DType dtype) {
  const OpTimer timer(*this, op_log_, "normal", [&] {
    return OpCost{shape.to_string(), 0.0,
                  static_cast<double>(shape.numel()) * static_cast<double>(dtype_size(dtype))};
  });
  return do_normal(stream, shape, dtype);
}

Tensor Executor::cast(const Tensor& x, DType dtype) {
  require_dense(x, "cast", "x");
  return x.dtype() == dtype ? x : do_cast(x, dtype);
}

Tensor Executor::activate(const Tensor& x, Activation activation) {
  require_dense(x, "activate", "x");
  return activation == Activation::kNone ? x : do_activate(x, activation);
}

Tensor Executor::add(const Tensor& a, const Tensor& b) {
  require_dense(a, "add", "a");
  require_dense(b, "add", "b");
  UF_CHECK(a.dtype() == b.dtype() && b.rank() <= a.rank(), "add: {} and {}", a.to_string(),
           b.to_string());
  for (int i = 1; i <= b.rank(); ++i) {
    UF_CHECK(b.dim(-i) == a.dim(-i) || b.dim(-i) == 1, "add: {} does not broadcast to {}",
             b.to_string(), a.to_string());
  }
  return do_add(a, b);
}

Tensor Executor::multiply(const Tensor& a, const Tensor& b) {
  require_dense(a, "multiply", "a");
  require_dense(b, "multiply", "b");
  require_same(a, b, "multiply");
  return do_multiply(a, b);
}

Tensor Executor::soft_clamp(const Tensor& x, float limit) {
  require_dense(x, "soft_clamp", "x");
  UF_CHECK(limit > 0.0F, "soft_clamp: limit {}", limit);
  const OpTimer timer(*this, op_log_, "soft_clamp", [&] { return element_cost(x, 2.0); });
  return do_soft_clamp(x, limit);
}

Tensor Executor::channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  require_dense(x, "channel_affine", "x");
  require_vector(scale, x.dim(-1), "channel_affine", "scale");
  require_vector(shift, x.dim(-1), "channel_affine", "shift");
  return do_channel_affine(x, scale, shift);
}

Tensor Executor::embedding(const Tensor& ids, const Tensor& table, DType dtype) {
  require_rank(ids, 2, "embedding", "ids");
  UF_CHECK(ids.dtype() == DType::kI64 && ids.contiguous(), "embedding: ids {}", ids.to_string());
  require_rank(table, 2, "embedding", "table");
  require_contiguous(table, "embedding", "table");
  for (const int64_t id : ids.span<int64_t>()) {
    if (id < 0 || id >= table.dim(0)) {
      throw_error(StatusCode::kInvalidArgument,
                  "token {} does not exist in a vocabulary of {}; the tokenizer does not belong to "
                  "this text encoder",
                  id, table.dim(0));
    }
  }
  return do_embedding(ids, table, dtype);
}

Tensor Executor::mask_rows(Tensor x, const Tensor& lengths) {
  require_rank(x, 3, "mask_rows", "x");
  require_dense(x, "mask_rows", "x");
  UF_CHECK(lengths.dtype() == DType::kI64 && lengths.shape() == Shape{x.dim(0)},
           "mask_rows: lengths {} for x {}", lengths.to_string(), x.to_string());
  return do_mask_rows(std::move(x), lengths);
}

Tensor Executor::to_rgb8(const Tensor& x, float low, float high) {
  require_dense(x, "to_rgb8", "x");
  UF_CHECK(low < high, "to_rgb8: range [{}, {}]", low, high);
  const OpTimer timer(*this, op_log_, "to_rgb8", [&] { return element_cost(x, 1.5); });
  return do_to_rgb8(x, low, high);
}

}  // namespace ultraflash
