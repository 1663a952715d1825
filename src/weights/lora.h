// Low-rank adapters (LoRA, Hu et al. 2021): W' = W + scale * alpha / rank * B A.
//
// Files: what PEFT saves (`base_model.model.blocks.0.self_attn.q.lora_A.weight`, also with the
// adapter's name, `.lora_A.default.weight`), and the `.lora_down` / `.lora_up` / `.alpha` spelling.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/tensor.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"
#include "weights/parameter_source.h"

namespace ultraflash {

struct LoraLayer {
  std::string name;  // of the linear layer, "blocks.0.self_attn.q"; its weight is name + ".weight"
  Tensor a;          // [rank, inputs]
  Tensor b;          // [outputs, rank]
  double alpha = 0;
  [[nodiscard]] int64_t rank() const { return a.dim(0); }
};

struct LoraOptions {
  /// Key of the file's outermost dictionary. Empty: "generator_lora", "lora", "state_dict", "model"
  /// or the whole file.
  std::string wrapper;
  /// Used for all layers. Absent: what the file says, else the rank, so that alpha / rank is 1.
  std::optional<double> alpha;
};

/// Cheap to move; the matrices stay in the mapped file.
class LoraAdapter {
 public:
  /// Fails as Checkpoint::open, and with kMalformed for a matrix without its partner, ranks that
  /// disagree, and tensors that belong to no adapter; kUnsupported for adapters of convolutions and
  /// for relatives of LoRA (DoRA and others with tensors of their own).
  static Result<LoraAdapter> open(const std::filesystem::path& path,
                                  const LoraOptions& options = {});
  static Result<LoraAdapter> from_checkpoint(const Checkpoint& checkpoint,
                                             const LoraOptions& options = {});

  [[nodiscard]] const std::vector<LoraLayer>& layers() const { return layers_; }
  /// The adapter of the layer with this name, or null.
  [[nodiscard]] const LoraLayer* find(std::string_view layer) const;
  /// The adapter of the layer whose weight has this name ("blocks.0.ffn.0.weight"), or null.
  [[nodiscard]] const LoraLayer* find_for_weight(std::string_view weight) const;
  [[nodiscard]] const std::string& label() const { return label_; }
  /// The files it was read from.
  [[nodiscard]] const std::vector<std::filesystem::path>& files() const { return files_; }

 private:
  std::string label_;
  std::vector<std::filesystem::path> files_;
  std::vector<LoraLayer> layers_;  // in the order of the file
  std::unordered_map<std::string, size_t> by_name_;
};

/// weight + scale * alpha / rank * B A, computed in f32 and rounded once to the type of `weight`,
/// which is [outputs, inputs]. kMalformed when the adapter is of another size, kUnsupported when
/// the weight is not a floating-point matrix.
Result<Tensor> merge_lora(const Tensor& weight, const LoraLayer& layer, double scale);

/// The parameters of `base` with an adapter merged into them. Several adapters: one source on top
/// of the other.
class LoraSource final : public ParameterSource {
 public:
  /// `base` must outlive the source.
  LoraSource(ParameterSource& base, LoraAdapter adapter, double scale = 1.0)
      : base_(base), adapter_(std::move(adapter)), scale_(scale) {}

  Result<Tensor> find(const ParameterSpec& spec) override;
  [[nodiscard]] std::vector<std::string> names() const override { return base_.names(); }
  /// Those of `base`, and the adapter's layers that no parameter asked for.
  [[nodiscard]] std::vector<std::string> complaints() const override;

 private:
  ParameterSource& base_;
  LoraAdapter adapter_;
  double scale_;
  mutable std::mutex mutex_;
  std::unordered_set<std::string> used_;
};

}  // namespace ultraflash
