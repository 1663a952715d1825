#include "weights/lora.h"

#include <gtest/gtest.h>

#include <cmath>

#include "weights/binder.h"
#include "weights/safetensors_writer.h"
#include "weights_test_util.h"

namespace ultraflash {
namespace {

// ||a - b|| / ||b||
double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

Checkpoint golden(const char* prefix) {
  CheckpointOptions options;
  options.prefix = prefix;
  return *Checkpoint::open(source_path("") / "tests/golden/lora_merge.safetensors", options);
}

LoraOptions golden_alpha() {
  LoraOptions options;
  options.alpha = 6.0;  // "alpha" of the golden file's config
  return options;
}

TEST(LoraTest, MergedWeightsMatchTheReference) {
  const Checkpoint expected = golden("out.merged.");
  CheckpointSource base(golden("in.base."));
  auto adapter = LoraAdapter::from_checkpoint(golden("in.adapter."), golden_alpha());
  ASSERT_OK(adapter.status());
  EXPECT_EQ(adapter->layers().size(), 10U);
  LoraSource merged(base, *std::move(adapter));
  Binder binder(merged, "golden");
  for (const TensorEntry& entry : expected.entries()) {
    const Tensor weight = binder.parameter(entry.name, entry.shape, {});
    ASSERT_TRUE(weight.defined()) << entry.name;
    // Both sum 4 products in f32, in another order at most.
    EXPECT_LT(relative_error(floats(weight), floats(*entry.load())), 2e-7) << entry.name;
  }
  ASSERT_OK(binder.finish());
}

TEST(LoraTest, MergedLayerActsAsTheUnmergedAdapter) {
  const Checkpoint x = golden("in.x.");
  const Checkpoint y = golden("out.y.");
  CheckpointSource base(golden("in.base."));
  auto adapter = LoraAdapter::from_checkpoint(golden("in.adapter."), golden_alpha());
  ASSERT_OK(adapter.status());
  LoraSource merged(base, *std::move(adapter));
  for (const TensorEntry& entry : x.entries()) {
    const Tensor in = *entry.load();
    const auto weight = merged.find({entry.name + ".weight", {}, {}, false});
    ASSERT_OK(weight.status());
    const int64_t inputs = in.dim(1);
    const int64_t outputs = weight->dim(0);
    std::vector<float> out;
    for (int64_t row = 0; row < in.dim(0); ++row) {
      for (int64_t o = 0; o < outputs; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < inputs; ++i) {
          sum += static_cast<double>(in.data<float>()[row * inputs + i]) *
                 static_cast<double>(weight->data<float>()[o * inputs + i]);
        }
        out.push_back(static_cast<float>(sum));
      }
    }
    EXPECT_LT(relative_error(out, floats(*y.tensor(entry.name))), 1e-6) << entry.name;
  }
}

TEST(LoraTest, ReadsPeftFilesUnderTheirKey) {
  const auto adapter = LoraAdapter::open(fixture("peft_lora.pt"));
  ASSERT_OK(adapter.status());
  ASSERT_EQ(adapter->layers().size(), 4U);
  const LoraLayer* layer = adapter->find("blocks.0.self_attn.q");
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer, adapter->find_for_weight("blocks.0.self_attn.q.weight"));
  EXPECT_EQ(adapter->find_for_weight("blocks.0.self_attn.q.bias"), nullptr);
  EXPECT_EQ(adapter->find("blocks.1.self_attn.q"), nullptr);
  EXPECT_EQ(layer->rank(), 4);
  EXPECT_EQ(layer->alpha, 4.0);  // none in the file: the rank
  // The same adapter as in the golden file, written by torch.save.
  const Checkpoint in = golden("in.adapter.");
  EXPECT_TRUE(
      same_bits(layer->a, *in.tensor("base_model.model.blocks.0.self_attn.q.lora_A.weight")));
}

class LoraNamesTest : public testing::Test {
 protected:
  Result<LoraAdapter> open(const std::vector<NamedTensor>& tensors,
                           const LoraOptions& options = {}) {
    EXPECT_TRUE(save_safetensors(folder_ / "adapter.safetensors", tensors).ok());
    return LoraAdapter::open(folder_ / "adapter.safetensors", options);
  }
  static NamedTensor matrix(std::string name, int64_t rows, int64_t columns) {
    return {std::move(name), Tensor::zeros(DType::kF32, {rows, columns})};
  }
  TempFolder folder_;
};

TEST_F(LoraNamesTest, OtherSpellings) {
  const std::pair<const char*, const char*> spellings[] = {
      {"base_model.model.blocks.0.q.lora_A.default.weight",
       "base_model.model.blocks.0.q.lora_B.default.weight"},
      {"base_model.model.model.blocks.0.q.lora_A.weight",
       "base_model.model.model.blocks.0.q.lora_B.weight"},
      {"diffusion_model.blocks.0.q.lora_down.weight", "diffusion_model.blocks.0.q.lora_up.weight"},
      {"blocks.0.q.lora_A.weight", "blocks.0.q.lora_B.weight"},
  };
  for (const auto& [a, b] : spellings) {
    const auto adapter = open({matrix(a, 2, 8), matrix(b, 4, 2)});
    ASSERT_OK(adapter.status());
    ASSERT_NE(adapter->find("blocks.0.q"), nullptr) << a;
    EXPECT_EQ(adapter->find("blocks.0.q")->rank(), 2);
  }
}

TEST_F(LoraNamesTest, AlphaOfTheFileAndOfTheCaller) {
  const std::vector<NamedTensor> tensors = {matrix("q.lora_down.weight", 2, 8),
                                            matrix("q.lora_up.weight", 4, 2),
                                            {"q.alpha", tensor_of<float>({1.0F}, {})}};
  EXPECT_EQ(open(tensors)->find("q")->alpha, 1.0);
  LoraOptions options;
  options.alpha = 16.0;
  EXPECT_EQ(open(tensors, options)->find("q")->alpha, 16.0);
}

TEST_F(LoraNamesTest, BadAdaptersAreRefusedWithTheirCause) {
  const NamedTensor a = matrix("q.lora_A.weight", 2, 8);
  const NamedTensor b = matrix("q.lora_B.weight", 4, 2);
  const auto refused = [&](const std::vector<NamedTensor>& tensors, StatusCode code,
                           const char* cause) {
    expect_failure(open(tensors).status(), code, {"adapter.safetensors", cause});
  };
  refused({}, StatusCode::kMalformed, "no LoRA adapter");
  refused({a}, StatusCode::kMalformed, "q has lora_A but no lora_B");
  refused({b}, StatusCode::kMalformed, "q has lora_B but no lora_A");
  refused({a, matrix("q.lora_B.weight", 4, 3)}, StatusCode::kMalformed, "ranks (2 and 3)");
  refused({matrix("q.lora_A.weight", 0, 8), matrix("q.lora_B.weight", 4, 0)},
          StatusCode::kMalformed, "ranks (0 and 0)");
  refused({a, b, matrix("q.lora_magnitude_vector", 4, 1)}, StatusCode::kUnsupported,
          "q.lora_magnitude_vector is not part of");
  refused({a, b, matrix("head.weight", 4, 1)}, StatusCode::kUnsupported, "head.weight");
  refused({a, b, matrix("q.lora_A.other.weight", 2, 8)}, StatusCode::kMalformed,
          "more than one adapter");
  refused({a, b, {"q.alpha", Tensor::zeros(DType::kF32, {2})}}, StatusCode::kMalformed,
          "expected one number");
  refused({a, b, {"k.alpha", Tensor::zeros(DType::kF32, {})}}, StatusCode::kMalformed,
          "k has an alpha but no matrices");
  refused({{"q.lora_A.weight", Tensor::zeros(DType::kF32, {2, 8, 1, 1})}, b},
          StatusCode::kUnsupported, "linear layers");
  refused({{"q.lora_A.weight", Tensor::zeros(DType::kI32, {2, 8})}, b}, StatusCode::kUnsupported,
          "linear layers");
}

TEST(LoraSourceTest, SizesThatDoNotFitAreNamed) {
  const LoraLayer layer{"q", Tensor::zeros(DType::kF32, {2, 8}), Tensor::zeros(DType::kF32, {4, 2}),
                        2.0};
  expect_failure(merge_lora(Tensor::zeros(DType::kF32, {4, 9}), layer, 1.0).status(),
                 StatusCode::kMalformed, {"q.weight is [4, 9]", "adapter is for [4, 8]"});
  expect_failure(merge_lora(Tensor::zeros(DType::kI32, {4, 8}), layer, 1.0).status(),
                 StatusCode::kUnsupported, {"q.weight is i32"});
}

TEST(LoraSourceTest, LayersThatMatchNothingAreReported) {
  CheckpointSource base(golden("in.base."));
  auto adapter = LoraAdapter::from_checkpoint(golden("in.adapter."));
  ASSERT_OK(adapter.status());
  LoraSource source(base, *std::move(adapter));
  Binder binder(source, "base");
  const Checkpoint weights = golden("in.base.");
  for (const TensorEntry& entry : weights.entries()) {
    if (entry.name.find("ffn") == std::string::npos) {
      static_cast<void>(binder.parameter(entry.name, entry.shape, {}));
    }
  }
  binder.ignore_unused("blocks.0.ffn.");
  expect_failure(binder.finish(), StatusCode::kMalformed,
                 {"2 of the 10 layers of the adapter", "blocks.0.ffn.0, blocks.0.ffn.2"});
}

// Odd sizes around the tile, two element types, a scale: against the formula in double.
TEST(LoraSourceTest, MergeFollowsTheFormula) {
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 511}, Shape{5, 513}, Shape{9, 1027}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const int64_t rank = 3;
      RandomSource random(11);
      const auto normal = [&](const char* name, const Shape& s) {
        return *random.find({name, s, ParameterInit::normal(1.0F), false});
      };
      const Tensor weight = normal("w", shape).to(dtype);
      const LoraLayer layer{"q", normal("a", {rank, shape[1]}), normal("b", {shape[0], rank}), 6.0};
      const auto merged = merge_lora(weight, layer, 0.5);
      ASSERT_OK(merged.status());
      EXPECT_EQ(merged->dtype(), dtype);
      const std::vector<float> base = floats(weight);
      std::vector<float> expected;
      for (int64_t o = 0; o < shape[0]; ++o) {
        for (int64_t i = 0; i < shape[1]; ++i) {
          double sum = 0;
          for (int64_t k = 0; k < rank; ++k) {
            sum += static_cast<double>(layer.b.data<float>()[o * rank + k]) *
                   static_cast<double>(layer.a.data<float>()[k * shape[1] + i]);
          }
          expected.push_back(static_cast<float>(
              static_cast<double>(base[static_cast<size_t>(o * shape[1] + i)]) + sum));
        }
      }
      // Roundings of f32 sums; a bf16 result is off by at most 2^-8 of each element.
      EXPECT_LT(relative_error(floats(*merged), expected), dtype == DType::kF32 ? 2e-7 : 0x1p-8);
    }
  }
}

}  // namespace
}  // namespace ultraflash
