#include "models/loader.h"

#include <cmath>

namespace ultraflash {

ParameterInit scaled_fan_in(const Shape& shape, float gain) {
  const int64_t inputs = shape.numel() / std::max<int64_t>(shape[0], 1);
  return ParameterInit::normal(gain / std::sqrt(static_cast<float>(std::max<int64_t>(inputs, 1))));
}

Loader Loader::scoped(std::string_view prefix) const {
  return Loader(binder_.scoped(prefix), target_);
}

Loader Loader::with_compute(DType compute) const {
  LoadTarget target = target_;
  target.compute = compute;
  return Loader(binder_, target);
}

Loader Loader::for_few_rows() const {
  LoadTarget target = target_;
  target.few_rows = true;
  return Loader(binder_, target);
}

void Loader::prepare(Linear& linear) {
  if (target_.executor == nullptr) return;
  for (const Tensor& weight : linear.weights) {
    if (!weight.defined()) return;  // the binder has recorded what is wrong
  }
  for (const Tensor& bias : linear.biases) {
    if (!bias.defined()) return;
  }
  target_.executor->prepare(
      linear,
      {.compute = target_.compute, .streamed = target_.streamed, .few_rows = target_.few_rows});
  if (target_.executor->device().type == DeviceType::kCuda) {
    if (target_.weight_bytes != nullptr) *target_.weight_bytes += linear.prepared->size_bytes();
  } else if (!target_.streamed) {  // which stays in its file
    count(linear.in_features * linear.out_features, target_.compute);
  }
}

void Loader::count(int64_t elements, DType dtype) const {
  if (target_.weight_bytes == nullptr) return;
  *target_.weight_bytes += static_cast<uint64_t>(elements) * dtype_size(dtype);
}

Linear Loader::linear(std::string_view name, int64_t in, int64_t out, bool bias, float gain) {
  Linear layer;
  const std::string base(name);
  const Shape shape{out, in};
  layer.weights.push_back(binder_.parameter(base + ".weight", shape, scaled_fan_in(shape, gain)));
  if (bias) {
    layer.biases.push_back(binder_.parameter(base + ".bias", {out}, ParameterInit::normal(0.02F)));
  }
  prepare(layer);
  return layer;
}

Linear Loader::fused_linear(const std::vector<std::string_view>& names, int64_t in,
                            int64_t out_each, bool bias, const std::vector<float>& gains) {
  Linear layer;
  const Shape shape{out_each, in};
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string base(names[i]);
    const float gain = i < gains.size() ? gains[i] : 1.0F;
    layer.weights.push_back(binder_.parameter(base + ".weight", shape, scaled_fan_in(shape, gain)));
    if (bias) {
      layer.biases.push_back(
          binder_.parameter(base + ".bias", {out_each}, ParameterInit::normal(0.02F)));
    }
  }
  prepare(layer);
  return layer;
}

Conv Loader::conv(std::string_view name, const Shape& weight, bool bias, float gain) {
  Conv conv;
  const std::string base(name);
  conv.weight = binder_.parameter(base + ".weight", weight, scaled_fan_in(weight, gain));
  if (bias) {
    conv.bias = binder_.parameter(base + ".bias", {weight[0]}, ParameterInit::normal(0.02F));
  }
  if (target_.executor != nullptr && conv.weight.defined() && (!bias || conv.bias.defined())) {
    target_.executor->prepare(conv, {.compute = target_.compute});
    count(conv.weight.numel(), target_.compute);
  }
  return conv;
}

Linear Loader::pointwise(std::string_view name, int64_t in, int64_t out, bool bias, float gain) {
  Linear layer;
  const std::string base(name);
  const Shape shape{out, in, 1, 1};
  const Tensor weight = binder_.parameter(base + ".weight", shape, scaled_fan_in(shape, gain));
  layer.weights.push_back(weight.defined() ? weight.reshape({out, in}) : weight);
  if (bias) {
    layer.biases.push_back(binder_.parameter(base + ".bias", {out}, ParameterInit::normal(0.02F)));
  }
  prepare(layer);
  return layer;
}

Linear Loader::pointwise_last_rows(std::string_view name, int64_t in, int64_t out,
                                   int64_t stored_out) {
  Linear layer;
  const std::string base(name);
  const Shape shape{stored_out, in, 1, 1};
  const Tensor weight = binder_.parameter(base + ".weight", shape, scaled_fan_in(shape, 1.0F));
  layer.weights.push_back(
      weight.defined() ? weight.reshape({stored_out, in}).slice(0, stored_out - out, stored_out)
                       : weight);
  prepare(layer);
  return layer;
}

Linear Loader::patch_embedding(std::string_view name, int64_t channels, int64_t out) {
  Linear layer;
  const std::string base(name);
  const Shape shape{out, channels, 1, 2, 2};
  const Tensor weight = binder_.parameter(base + ".weight", shape, scaled_fan_in(shape, 1.0F));
  layer.weights.push_back(weight.defined() ? weight.reshape({out, channels * 4}) : weight);
  layer.biases.push_back(binder_.parameter(base + ".bias", {out}, ParameterInit::normal(0.02F)));
  prepare(layer);
  return layer;
}

Tensor Loader::vector(std::string_view name, const Shape& stored, const Shape& shape,
                      const ParameterInit& init) {
  const Tensor bound = binder_.parameter(name, stored, init);
  if (target_.executor == nullptr || !bound.defined()) return {};
  count(bound.numel(), DType::kF32);
  return target_.executor->to_device(bound.reshape(shape), DType::kF32);
}

Tensor Loader::as_bound(std::string_view name, const Shape& shape, const ParameterInit& init) {
  return binder_.parameter(name, shape, init);
}

}  // namespace ultraflash
