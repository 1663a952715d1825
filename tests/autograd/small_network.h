// A transformer small enough to differentiate in a test.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "models/wan_dit.h"
#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"
#include "weights/parameter_source.h"

namespace ultraflash::testing {

// Random parameters as leaves.
class LeafSource final : public ParameterSource {
 public:
  explicit LeafSource(uint64_t seed) : random_(seed) {}
  Result<Tensor> find(const ParameterSpec& spec) override {
    UF_ASSIGN(const Tensor x, random_.find(spec));
    const at::Tensor leaf = to_torch(x).clone().requires_grad_(true);
    leaves.emplace(spec.name, leaf);
    return from_torch(leaf);
  }
  std::map<std::string, at::Tensor> leaves;
  /// Gradients since the last call; the leaves have none afterwards.
  std::map<std::string, at::Tensor> take_gradients() {
    std::map<std::string, at::Tensor> result;
    for (auto& [name, leaf] : leaves) {
      result.emplace(name, leaf.grad().defined() ? leaf.grad().clone() : at::zeros_like(leaf));
      leaf.mutable_grad() = at::Tensor();
    }
    return result;
  }

 private:
  RandomSource random_;
};

// A transformer of two layers, all of whose parameters take gradients.
struct Network {
  std::unique_ptr<Executor> ops;
  LeafSource source{5};
  WanDitConfig config;
  WanDit dit;
  TextKv text;

  explicit Network(const AutogradOptions& options = {}) : ops(make_autograd_executor(options)) {
    config.dim = 48;
    config.ffn_dim = 64;
    config.num_layers = 2;
    config.num_heads = 2;
    config.in_dim = config.out_dim = 4;
    config.freq_dim = 16;
    config.text_dim = 12;
    config.text_len = 5;
    Binder binder(source, "leaves");
    LoadTarget target;
    target.executor = ops.get();
    dit = WanDit::bind(Loader(binder, target), config, DType::kF32);
    EXPECT_TRUE(binder.finish().ok());
  }
  Tensor normal(const Shape& shape, uint64_t salt) {
    return ops->normal(make_random_stream(3, RandomPurpose::kTest, salt), shape, DType::kF32);
  }
};

}  // namespace ultraflash::testing
