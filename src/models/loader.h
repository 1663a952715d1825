// Loader: binds a network's parameters by their checkpoint names and prepares them for an executor
// as it goes, so that no more than one layer is held twice.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ops/executor.h"
#include "weights/binder.h"

namespace ultraflash {

/// Where a network's weights go.
struct LoadTarget {
  /// Null: only names and shapes are asked for (with a SpecSource or RandomSource).
  Executor* executor = nullptr;
  DType compute = DType::kF32;  // type of the activations
  bool streamed = false;        // see PrepareOptions
  bool few_rows = false;        // see PrepareOptions
  /// Adds up what the weights take in the executor's memory, when not null.
  uint64_t* weight_bytes = nullptr;
};

/// Seen by a network while it binds. Copies share the binder.
class Loader {
 public:
  Loader(Binder binder, const LoadTarget& target) : binder_(std::move(binder)), target_(target) {}

  /// Names below `prefix` ("blocks.3.").
  [[nodiscard]] Loader scoped(std::string_view prefix) const;
  /// As this one with another compute type (f32 islands of a bf16 network).
  [[nodiscard]] Loader with_compute(DType compute) const;
  /// As this one for weights that meet few rows (PrepareOptions::few_rows).
  [[nodiscard]] Loader for_few_rows() const;
  [[nodiscard]] Binder& binder() { return binder_; }
  [[nodiscard]] const LoadTarget& target() const { return target_; }

  /// `name`.weight [out, in] and, with a bias, `name`.bias [out]. `gain` scales random weights.
  Linear linear(std::string_view name, int64_t in, int64_t out, bool bias, float gain = 1.0F);
  /// Several products of one input as one Linear, in order.
  /// `gains` scale random weights part by part; empty: 1.
  Linear fused_linear(const std::vector<std::string_view>& names, int64_t in, int64_t out_each,
                      bool bias, const std::vector<float>& gains = {});
  /// A convolution: `name`.weight [out, in, ...kernel] and `name`.bias [out].
  Conv conv(std::string_view name, const Shape& weight, bool bias, float gain = 1.0F);
  /// A 1x1 convolution [out, in, 1, 1] as a product.
  Linear pointwise(std::string_view name, int64_t in, int64_t out, bool bias, float gain = 1.0F);
  /// The last `out` rows of a 1x1 convolution [stored_out, in, 1, 1] without bias, as a product.
  Linear pointwise_last_rows(std::string_view name, int64_t in, int64_t out, int64_t stored_out);
  /// The patch embedding's convolution [out, in, 1, 2, 2] as a product over [channel][row][column].
  Linear patch_embedding(std::string_view name, int64_t channels, int64_t out);
  /// A parameter as f32 on the executor, flattened to `shape` if that has as many elements.
  Tensor vector(std::string_view name, const Shape& stored, const Shape& shape,
                const ParameterInit& init);
  Tensor vector(std::string_view name, const Shape& shape, const ParameterInit& init) {
    return vector(name, shape, shape, init);
  }
  /// A parameter as it lies in the source (embedding tables).
  Tensor as_bound(std::string_view name, const Shape& shape, const ParameterInit& init);

 private:
  void prepare(Linear& linear);
  void count(int64_t elements, DType dtype) const;

  Binder binder_;
  LoadTarget target_;
};

/// Random initial values of a weight: normal with variance gain^2 / inputs.
ParameterInit scaled_fan_in(const Shape& shape, float gain);

}  // namespace ultraflash
