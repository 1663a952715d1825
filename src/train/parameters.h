// ParameterSet: a network's parameters as leaves of the autograd graph, under their published
// names. A network binds to it as to any other source of parameters.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ultraflash/status.h"
#include "weights/parameter_source.h"
#include "weights/tensor_entry.h"

namespace ultraflash {

class ParameterSet final : public ParameterSource {
 public:
  /// Leaves in f32 on `device`; with gradients when `trainable`.
  ParameterSet(at::Device device, bool trainable) : device_(device), trainable_(trainable) {}
  ParameterSet(const ParameterSet&) = delete;
  ParameterSet& operator=(const ParameterSet&) = delete;

  /// Where parameters that are not there yet come from while a network binds. Not kept: call
  /// bind_from(nullptr) when the network is bound.
  void bind_from(ParameterSource* base) { base_ = base; }
  /// The leaf itself, made from the base source the first time.
  Result<Tensor> find(const ParameterSpec& spec) override;
  [[nodiscard]] std::vector<std::string> names() const override { return names_; }

  [[nodiscard]] size_t size() const { return leaves_.size(); }
  [[nodiscard]] int64_t parameter_count() const;
  [[nodiscard]] bool trainable() const { return trainable_; }
  [[nodiscard]] at::Device device() const { return device_; }
  /// In the order in which the network asked for them.
  [[nodiscard]] const std::vector<at::Tensor>& leaves() const { return leaves_; }
  [[nodiscard]] const at::Tensor& leaf(const std::string& name) const;

  /// Copies values (of the same names and shapes, in the same order) into the leaves.
  void assign(const std::vector<at::Tensor>& values);

 private:
  at::Device device_;
  bool trainable_;
  ParameterSource* base_ = nullptr;
  std::vector<std::string> names_;
  std::vector<at::Tensor> leaves_;
  std::map<std::string, size_t> index_;
};

/// Leaves were changed by a fused operation: tells whoever caches something made from them.
void mark_changed(const std::vector<at::Tensor>& leaves);

/// Writes `values` under `names` as one safetensors file in `dtype` (floating), `order` of names.
Status save_parameters(const std::filesystem::path& path, const std::vector<std::string>& names,
                       const std::vector<at::Tensor>& values, DType dtype,
                       const std::map<std::string, std::string>& metadata);

}  // namespace ultraflash
