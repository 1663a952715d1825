// Every operation of the executor of training: its results against the scalar reference, and its
// gradients against finite differences of the scalar reference.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/autograd_impl.h"
#include "ops/autograd/torch_tensor.h"
#include "ops/op_cases.h"
#include "reference_ops/reference_executor.h"

namespace ultraflash::testing {
namespace {

constexpr uint64_t kSeed = 11;
constexpr uint64_t kDirection = 1000;  // salts of the random directions
constexpr uint64_t kLoss = 2000;       // and of the weights of the loss

std::vector<float> drawn(int64_t count, uint64_t salt) {
  std::vector<float> values(static_cast<size_t>(count));
  fill_normal(make_random_stream(kSeed, RandomPurpose::kTest, salt), 0, values);
  return values;
}

// Inputs and weights in the order in which a case makes them, as leaves.
class LeafExecutor final : public autograd::AutogradExecutor {
 public:
  explicit LeafExecutor(const AutogradOptions& options) : AutogradExecutor(options) {}
  std::vector<at::Tensor> leaves;

 protected:
  Tensor do_to_device(const Tensor& host, DType dtype) override {
    const Tensor x = AutogradExecutor::do_to_device(host, dtype);
    return dtype == DType::kI64 ? x : leaf(x);  // a count is no input to differentiate
  }
  void do_prepare(Linear& linear, const PrepareOptions& options) override {
    for (auto* parts : {&linear.weights, &linear.biases}) {
      for (Tensor& part : *parts) {
        if (!holds_torch(part)) part = leaf(AutogradExecutor::do_to_device(part, DType::kF32));
      }
    }
    AutogradExecutor::do_prepare(linear, options);
  }
  void do_prepare(Conv& conv, const PrepareOptions& options) override {
    for (Tensor* part : {&conv.weight, &conv.bias}) {
      if (part->defined()) *part = leaf(AutogradExecutor::do_to_device(*part, DType::kF32));
    }
    AutogradExecutor::do_prepare(conv, options);
  }

 private:
  Tensor leaf(const Tensor& x) {
    leaves.push_back(to_torch(x).requires_grad_(true));
    return from_torch(leaves.back());
  }
};

// The same order; input `moved` gets `step` times its direction added.
class MovedExecutor final : public ReferenceExecutor {
 public:
  MovedExecutor(size_t moved, double step) : moved_(moved), step_(step) {}

 protected:
  Tensor do_to_device(const Tensor& host, DType dtype) override {
    const Tensor x = ReferenceExecutor::do_to_device(host, dtype);
    if (dtype != DType::kI64) move(x);
    return x;
  }
  void do_prepare(Linear& linear, const PrepareOptions& options) override {
    for (auto* parts : {&linear.weights, &linear.biases}) {
      for (Tensor& part : *parts) {
        if (!seen_.insert(part.raw()).second) continue;  // prepared twice
        kept_.push_back(part);
        part = part.copy();
        seen_.insert(part.raw());
        move(part);
      }
    }
    ReferenceExecutor::do_prepare(linear, options);
  }
  void do_prepare(Conv& conv, const PrepareOptions& options) override {
    for (Tensor* part : {&conv.weight, &conv.bias}) {
      if (!part->defined()) continue;
      *part = part->copy();
      move(*part);
    }
    ReferenceExecutor::do_prepare(conv, options);
  }

 private:
  void move(const Tensor& x) {
    const size_t index = next_++;
    if (index != moved_) return;
    const std::vector<float> direction = drawn(x.numel(), kDirection + index);
    for (int64_t i = 0; i < x.numel(); ++i) {
      float& value = x.mutable_data<float>()[i];
      value = static_cast<float>(static_cast<double>(value) +
                                 step_ * static_cast<double>(direction[static_cast<size_t>(i)]));
    }
  }

  size_t moved_;
  double step_;
  size_t next_ = 0;
  std::set<const void*> seen_;
  std::vector<Tensor> kept_;  // so that no address in `seen_` comes again
};

// Results that have a derivative: real numbers that were not rounded to 16 bits.
bool smooth(const Tensor& x) { return x.dtype() == DType::kF32; }

// The loss is a weighted sum of the results. A rectified result, which many zeros betray, has its
// weight where the steps below do not reach the kink.
std::vector<std::vector<float>> loss_weights(const std::vector<Tensor>& results) {
  std::vector<std::vector<float>> all;
  for (size_t r = 0; r < results.size(); ++r) {
    all.emplace_back();
    if (!smooth(results[r])) continue;
    std::vector<float>& weights = all.back() = drawn(results[r].numel(), kLoss + r);
    const Tensor dense = results[r].copy();
    const std::span<const float> y = dense.span<float>();
    const bool rectified = 10 * std::count(y.begin(), y.end(), 0.0F) > dense.numel();
    for (size_t i = 0; rectified && i < y.size(); ++i) {
      if (y[i] >= 0.0F && y[i] < 0.2F) weights[i] = 0.0F;
    }
  }
  return all;
}

double loss_of(const std::vector<Tensor>& results, const std::vector<std::vector<float>>& weights) {
  double loss = 0.0;
  for (size_t r = 0; r < results.size(); ++r) {
    if (!smooth(results[r])) continue;
    const Tensor dense = results[r].copy();
    for (size_t i = 0; i < weights[r].size(); ++i) {
      loss += static_cast<double>(weights[r][i]) * static_cast<double>(dense.data<float>()[i]);
    }
  }
  return loss;
}

class AutogradOps : public ::testing::TestWithParam<std::tuple<DType, size_t>> {};

double relative_error(const Tensor& got, const Tensor& expected) {
  const at::Tensor g = to_torch(got).to(at::kDouble);
  const at::Tensor e = to_torch(expected).to(at::kDouble);
  const double norm = e.norm().item<double>();
  return (g - e).norm().item<double>() / (norm > 0.0 ? norm : 1.0);
}

TEST_P(AutogradOps, AgreesWithTheReference) {
  const auto& [dtype, index] = GetParam();
  const OpCase& op = op_cases()[index];
  ReferenceExecutor reference;
  const std::vector<Tensor> expected = op.run({reference, dtype, DType::kF32, kSeed});
  const auto executor = make_autograd_executor({});
  const std::vector<Tensor> got = op.run({*executor, dtype, dtype, kSeed});
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].shape(), expected[i].shape()) << op.name << " result " << i;
    // As in tests/ops; libtorch's CPU kernels round some products twice.
    const Tensor rounded = expected[i].to(got[i].dtype()).to(DType::kF32);
    const double limit =
        op.tolerance + 2.0 * (op.roundings + 1) * relative_error(rounded, expected[i]);
    EXPECT_LE(relative_error(executor->to_host(got[i]), expected[i]), limit)
        << op.name << " result " << i;
  }
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<DType, size_t>>& info) {
  const auto& [dtype, index] = info.param;
  return fmt::format("{}_{}", dtype_name(dtype), op_cases()[index].name);
}

std::vector<std::tuple<DType, size_t>> parameters() {
  std::vector<std::tuple<DType, size_t>> list;
  for (size_t i = 0; i < op_cases().size(); ++i) {
    list.emplace_back(DType::kF32, i);
    if (op_cases()[i].has_bf16) list.emplace_back(DType::kBF16, i);
  }
  return list;
}
INSTANTIATE_TEST_SUITE_P(Ops, AutogradOps, ::testing::ValuesIn(parameters()), name_of);

class Gradients : public ::testing::TestWithParam<size_t> {};

void check_gradients(const OpCase& op, const AutogradOptions& options) {
  LeafExecutor executor(options);
  const std::vector<Tensor> results = op.run({executor, DType::kF32, DType::kF32, kSeed});
  ReferenceExecutor reference;
  const std::vector<std::vector<float>> weights =
      loss_weights(op.run({reference, DType::kF32, DType::kF32, kSeed}));
  at::Tensor loss = at::zeros({}, at::kDouble);
  for (size_t r = 0; r < results.size(); ++r) {
    if (!smooth(results[r])) continue;
    const at::Tensor y = to_torch(results[r]).reshape({-1}).to(at::kDouble);
    loss = loss + (y * at::tensor(weights[r]).to(at::kDouble)).sum();
  }
  if (!loss.requires_grad()) GTEST_SKIP() << op.name << " has no input that it could differentiate";
  torch::autograd::backward({loss}, {});

  for (size_t input = 0; input < executor.leaves.size(); ++input) {
    const at::Tensor& leaf = executor.leaves[input];
    const at::Tensor gradient =
        leaf.grad().defined() ? leaf.grad().to(at::kDouble) : at::zeros_like(leaf, at::kDouble);
    const at::Tensor direction =
        at::tensor(drawn(leaf.numel(), kDirection + input)).to(at::kDouble).view(leaf.sizes());
    const double analytic = (gradient * direction).sum().item<double>();
    const auto at_step = [&](double step) {
      MovedExecutor moved(input, step);
      return loss_of(op.run({moved, DType::kF32, DType::kF32, kSeed}), weights);
    };
    // Four points: the error of the stencil is of fourth order, so the step can be large enough for
    // the f32 results of the reference.
    const double h = 5e-4;
    const double numeric =
        (8.0 * (at_step(h) - at_step(-h)) - (at_step(2 * h) - at_step(-2 * h))) / (12.0 * h);
    // A random direction meets a gradient with about the gradient's own length.
    const double scale = gradient.norm().item<double>();
    EXPECT_NEAR(analytic, numeric, 1e-3 * scale + 1e-4) << op.name << " input " << input;
  }
}

TEST_P(Gradients, EqualFiniteDifferences) { check_gradients(op_cases()[GetParam()], {}); }

std::string gradient_name(const ::testing::TestParamInfo<size_t>& info) {
  return op_cases()[info.param].name;
}

// The scalar reference runs four times per input, so large sizes are left out. A layer norm of one
// element has no gradient but a thousandfold of rounding noise.
std::vector<size_t> quick_cases() {
  const std::set<std::string> left_out = {"elements_100003", "layer_norm_1", "windows_odd_select",
                                          "windows_192_tokens_select"};
  std::vector<size_t> list;
  for (size_t i = 0; i < op_cases().size(); ++i) {
    const OpCase& op = op_cases()[i];
    if (op.flops < 3e6 && !left_out.contains(op.name)) list.push_back(i);
  }
  return list;
}
INSTANTIATE_TEST_SUITE_P(Ops, Gradients, ::testing::ValuesIn(quick_cases()), gradient_name);

// Block-sparse attention by gathered lists instead of a mask over tokens.
TEST(GatheredBlocks, AgreeAndDifferentiate) {
  AutogradOptions gathered;
  gathered.largest_mask_elements = 0;
  for (const OpCase& op : op_cases()) {
    if (!op.name.ends_with("_given_mask")) continue;
    const auto masked = make_autograd_executor({});
    const auto lists = make_autograd_executor(gathered);
    const std::vector<Tensor> a = op.run({*masked, DType::kF32, DType::kF32, kSeed});
    const std::vector<Tensor> b = op.run({*lists, DType::kF32, DType::kF32, kSeed});
    EXPECT_LE(relative_error(b.back(), a.back()), 1e-5) << op.name;
    if (op.name == "windows_later_group_given_mask") check_gradients(op, gathered);
  }
}

TEST(Embedding, GivesItsTableAGradient) {
  const auto executor = make_autograd_executor({});
  const at::Tensor table = at::randn({7, 5}).requires_grad_(true);
  const Tensor ids = Tensor::of<int64_t>(std::vector<int64_t>{3, 0, 6, 3}, {2, 2});
  const Tensor rows = executor->embedding(ids, from_torch(table), DType::kF32);
  torch::autograd::backward({to_torch(rows).sum()}, {});
  const at::Tensor counts = at::tensor(std::vector<float>{1, 0, 0, 2, 0, 0, 1});
  EXPECT_TRUE(at::equal(table.grad(), counts.unsqueeze(1).expand({7, 5})));
}

// A weight follows its leaf: changed in place, it is converted anew; unchanged, once.
TEST(Weights, FollowTheirLeaves) {
  const auto executor = make_autograd_executor({});
  const at::Tensor leaf = at::randn({4, 3}).requires_grad_(true);
  Linear layer;
  layer.weights.push_back(from_torch(leaf));
  executor->prepare(layer, {.compute = DType::kBF16});
  const Tensor x = from_torch(at::ones({1, 3}, at::kBFloat16));
  const at::Tensor before = to_torch(executor->linear(x, layer)).clone();
  {
    at::NoGradGuard no_graph;
    at::_foreach_mul_({leaf}, 2.0);
    EXPECT_TRUE(at::equal(to_torch(executor->linear(x, layer)), before * 2.0));
  }
  const at::Tensor y = to_torch(executor->linear(x, layer));
  EXPECT_TRUE(at::equal(y, before * 2.0));
  torch::autograd::backward({y.sum()}, {});
  EXPECT_TRUE(at::equal(leaf.grad(), at::ones({4, 3})));
  // The same conversion serves a second backward pass.
  torch::autograd::backward({to_torch(executor->linear(x, layer)).sum()}, {});
  EXPECT_TRUE(at::equal(leaf.grad(), at::full({4, 3}, 2.0)));
}

TEST(Handles, StayInTheGraphWhenCut) {
  const at::Tensor leaf = at::randn({2, 6, 4}).requires_grad_(true);
  const Tensor x = from_torch(leaf);
  const at::Tensor part = to_torch(x.slice(1, 2, 5).select(2, 1));  // [2, 3]
  torch::autograd::backward({part.sum()}, {});
  at::Tensor expected = at::zeros({2, 6, 4});
  expected.narrow(1, 2, 3).select(2, 1).fill_(1.0);
  EXPECT_TRUE(at::equal(leaf.grad(), expected));
  EXPECT_TRUE(at::equal(to_torch(x.permute({2, 0, 1})), leaf.permute({2, 0, 1})));
  EXPECT_TRUE(at::equal(to_torch(x.reshape({12, 4})), leaf.view({12, 4})));
}

}  // namespace
}  // namespace ultraflash::testing
