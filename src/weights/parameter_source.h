// ParameterSource: where a network's parameters come from. A network binds itself once, through a
// Binder (binder.h), and does not know whether a checkpoint, a random generator or a checkpoint
// with adapters stands behind it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

/// How a parameter begins when nothing is trained yet.
struct ParameterInit {
  enum class Kind : uint8_t { kNormal, kUniform, kConstant };

  Kind kind = Kind::kNormal;
  float value = 0.02F;  // standard deviation; bound of [-value, value); the constant

  static ParameterInit normal(float standard_deviation) {
    return {Kind::kNormal, standard_deviation};
  }
  static ParameterInit uniform(float bound) { return {Kind::kUniform, bound}; }
  static ParameterInit constant(float value) { return {Kind::kConstant, value}; }
  static ParameterInit zeros() { return constant(0.0F); }
  static ParameterInit ones() { return constant(1.0F); }
  /// Normal with variance 1 / inputs, for weights [outputs, inputs...]: keeps the size of
  /// activations.
  static ParameterInit fan_in(const Shape& shape);
};

/// One parameter that a network asks for.
struct ParameterSpec {
  std::string name;  // as in the published checkpoint
  Shape shape;
  ParameterInit init;
  bool optional = false;
};

/// Not thread-safe, but for find(), which may run on several threads at once.
class ParameterSource {
 public:
  virtual ~ParameterSource() = default;

  /// The tensor named `spec.name`, contiguous in host memory. Its shape is the source's, which the
  /// caller compares; sources without tensors of their own use `spec.shape`. An undefined tensor
  /// when the source has no data at all (SpecSource). kNotFound when it has no such tensor.
  virtual Result<Tensor> find(const ParameterSpec& spec) = 0;
  /// Everything that find() could return, when that is a list.
  [[nodiscard]] virtual std::vector<std::string> names() const { return {}; }
  /// What is wrong once all parameters were found, one phrase each ("the adapter ... has 3 layers
  /// that match nothing: ...").
  [[nodiscard]] virtual std::vector<std::string> complaints() const { return {}; }
};

/// The tensors of a checkpoint, as they are.
class CheckpointSource final : public ParameterSource {
 public:
  explicit CheckpointSource(Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}
  Result<Tensor> find(const ParameterSpec& spec) override;
  [[nodiscard]] std::vector<std::string> names() const override;

 private:
  Checkpoint checkpoint_;
};

/// Floating-point tensors of `base` in another element type; all others as they are.
class CastSource final : public ParameterSource {
 public:
  /// `base` must outlive the source.
  CastSource(ParameterSource& base, DType dtype) : base_(base), dtype_(dtype) {}
  Result<Tensor> find(const ParameterSpec& spec) override;
  [[nodiscard]] std::vector<std::string> names() const override { return base_.names(); }
  [[nodiscard]] std::vector<std::string> complaints() const override { return base_.complaints(); }

 private:
  ParameterSource& base_;
  DType dtype_;
};

/// Any parameter, drawn as its ParameterInit says. Element i depends on the seed, the name and i
/// alone: it is element i of make_random_stream(seed, RandomPurpose::kWeights, hash_name(name)),
/// scaled in f32 and rounded once. Large tensors are made on all processors.
class RandomSource final : public ParameterSource {
 public:
  explicit RandomSource(uint64_t seed, DType dtype = DType::kF32) : seed_(seed), dtype_(dtype) {}
  Result<Tensor> find(const ParameterSpec& spec) override;

 private:
  uint64_t seed_;
  DType dtype_;
};

/// No data: binding a network to it lists the network's parameters.
class SpecSource final : public ParameterSource {
 public:
  Result<Tensor> find(const ParameterSpec& /*spec*/) override { return Tensor(); }
};

}  // namespace ultraflash
