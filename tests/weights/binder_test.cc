#include "weights/binder.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "weights/safetensors_writer.h"
#include "weights_test_util.h"

namespace ultraflash {
namespace {

// A checkpoint in memory: what is saved, opened again.
class BinderTest : public testing::Test {
 protected:
  void save(const std::vector<NamedTensor>& tensors) {
    ASSERT_TRUE(save_safetensors(folder_ / "wan.safetensors", tensors).ok());
    Result<Checkpoint> checkpoint = Checkpoint::open(folder_ / "wan.safetensors");
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    source_ = std::make_unique<CheckpointSource>(*checkpoint);
  }
  Binder binder() { return {*source_, "wan.safetensors"}; }

  TempFolder folder_;
  std::unique_ptr<CheckpointSource> source_;
};

constexpr auto kInit = ParameterInit{};

TEST_F(BinderTest, BindsByNameAndShape) {
  save({{"blocks.0.ffn.weight", tensor_of<float>({1, 2, 3, 4, 5, 6}, {2, 3})},
        {"head.bias", tensor_of<float>({7}, {1})}});
  Binder all = binder();
  Binder block = all.scoped("blocks.").scoped("0.");
  EXPECT_EQ(block.parameter("ffn.weight", {2, 3}, kInit).data<float>()[5], 6.0F);
  EXPECT_EQ(all.parameter("head.bias", {1}, kInit).data<float>()[0], 7.0F);
  EXPECT_FALSE(all.optional_parameter("head.extra", {1}, kInit).defined());
  ASSERT_OK(all.finish());
  ASSERT_OK(block.finish());
  ASSERT_EQ(all.specs().size(), 3U);
  EXPECT_EQ(all.specs()[0].name, "blocks.0.ffn.weight");
  EXPECT_TRUE(all.specs()[2].optional);
}

TEST_F(BinderTest, OneMessageNamesEverythingWrong) {
  save({{"blocks.0.ffn.0.weight", Tensor::zeros(DType::kBF16, {13824, 5})},
        {"left.over", Tensor::zeros(DType::kF32, {1})}});
  Binder binder = this->binder();
  EXPECT_FALSE(binder.parameter("blocks.0.ffn.0.weight", {8960, 1}, kInit).defined());
  for (int i = 0; i < 6; ++i) {
    EXPECT_FALSE(binder.parameter("missing." + std::to_string(i), {2}, kInit).defined());
  }
  binder.set_hint("this looks like the 14B model");
  const Status status = binder.finish();
  EXPECT_EQ(status.code(), StatusCode::kMalformed);
  EXPECT_EQ(status.message(),
            "wan.safetensors: 6 of 7 tensors are missing (missing.0, missing.1, missing.2, "
            "missing.3 and 2 more); 1 of another shape: blocks.0.ffn.0.weight is [13824, 5], "
            "expected [8960, 1]; 1 unexpected (left.over); this looks like the 14B model");
}

TEST_F(BinderTest, AxesOfSizeOneAreExplainedNotAccepted) {
  save({{"conv", Tensor::zeros(DType::kF32, {4, 3, 1, 1})},
        {"linear", Tensor::zeros(DType::kF32, {4, 3})},
        {"other", Tensor::zeros(DType::kF32, {4, 1})}});
  Binder binder = this->binder();
  EXPECT_FALSE(binder.parameter("conv", {4, 3}, kInit).defined());
  EXPECT_FALSE(binder.parameter("linear", {4, 3, 1, 1}, kInit).defined());
  EXPECT_FALSE(binder.parameter("other", {1, 4}, kInit).defined());
  expect_failure(
      binder.finish(), StatusCode::kMalformed,
      {"conv is [4, 3, 1, 1], expected [4, 3] (the same elements, stored as a convolution",
       "linear is [4, 3], expected [4, 3, 1, 1] (the same elements, stored as a linear layer",
       "other is [4, 1], expected [1, 4] (the same elements with other axes of size 1)"});
}

TEST_F(BinderTest, UnexpectedTensorsCanBeAllowedByPrefix) {
  save({{"decoder.a", Tensor::zeros(DType::kF32, {1})},
        {"encoder.a", Tensor::zeros(DType::kF32, {1})},
        {"_cls_pred_branch.0", Tensor::zeros(DType::kF32, {1})}});
  Binder binder = this->binder();
  static_cast<void>(binder.scoped("decoder.").parameter("a", {1}, kInit));
  binder.ignore_unused("encoder.");
  expect_failure(binder.finish(), StatusCode::kMalformed, {"1 unexpected (_cls_pred_branch.0)"});
  binder.ignore_unused("_cls_pred_branch.");
  ASSERT_OK(binder.finish());
}

TEST_F(BinderTest, OptionalOfAnotherShapeIsAnError) {
  save({{"a", Tensor::zeros(DType::kF32, {2})}});
  Binder binder = this->binder();
  EXPECT_FALSE(binder.optional_parameter("a", {3}, kInit).defined());
  expect_failure(binder.finish(), StatusCode::kMalformed, {"a is [2], expected [3]"});
}

TEST_F(BinderTest, BindingTwiceIsOurMistake) {
  save({{"a", Tensor::zeros(DType::kF32, {2})}});
  Binder binder = this->binder();
  static_cast<void>(binder.parameter("a", {2}, kInit));
  EXPECT_THROW(static_cast<void>(binder.parameter("a", {2}, kInit)), Error);
}

TEST(BinderOverFixtureTest, UnusableTypesAreUnsupported) {
  const auto checkpoint = Checkpoint::open(fixture("dtypes.pt"));
  ASSERT_OK(checkpoint.status());
  CheckpointSource source(*checkpoint);
  Binder binder(source, "dtypes.pt");
  static_cast<void>(binder.parameter("f8_e5m2", {3}, kInit));
  expect_failure(binder.finish(), StatusCode::kUnsupported, {"dtypes.pt", "f8_e5m2"});
}

TEST(SpecSourceTest, ListsParametersWithoutData) {
  SpecSource source;
  Binder binder(source, "specs");
  EXPECT_FALSE(binder.parameter("a", {2, 3}, ParameterInit::ones()).defined());
  EXPECT_FALSE(binder.scoped("b.").optional_parameter("c", {4}, kInit).defined());
  ASSERT_OK(binder.finish());
  ASSERT_EQ(binder.specs().size(), 2U);
  EXPECT_EQ(binder.specs()[0].init.value, 1.0F);
  EXPECT_EQ(binder.specs()[1].name, "b.c");
}

TEST(RandomSourceTest, ElementsAreThoseOfTheStream) {
  // More than one grain of one thread, and not a multiple of 4.
  const Shape shape{3, 50'001};
  const ParameterSpec spec{"blocks.0.weight", shape, ParameterInit::normal(0.5F), false};
  RandomSource source(42);
  const auto tensor = source.find(spec);
  ASSERT_OK(tensor.status());
  std::vector<float> expected(static_cast<size_t>(shape.numel()));
  fill_normal(make_random_stream(42, RandomPurpose::kWeights, hash_name(spec.name)), 0, expected);
  for (float& x : expected) x *= 0.5F;
  EXPECT_EQ(floats(*tensor), expected);
  RandomSource rounded(42, DType::kBF16);
  EXPECT_TRUE(same_bits(*rounded.find(spec), tensor->to(DType::kBF16)));
  const ParameterSpec other{"blocks.1.weight", shape, ParameterInit::normal(0.5F), false};
  EXPECT_FALSE(same_bits(*source.find(other), *tensor));
}

TEST(RandomSourceTest, OtherDistributions) {
  RandomSource source(7, DType::kF16);
  const auto constant = source.find({"a", {5}, ParameterInit::ones(), false});
  EXPECT_EQ(floats(*constant), std::vector<float>(5, 1.0F));
  const auto uniform = source.find({"b", {10'000}, ParameterInit::uniform(0.25F), false});
  float low = 1;
  float high = -1;
  for (const float x : floats(*uniform)) {
    low = std::min(low, x);
    high = std::max(high, x);
  }
  EXPECT_GE(low, -0.25F);
  EXPECT_LE(high, 0.25F);
  EXPECT_LT(low, -0.24F);
  EXPECT_GT(high, 0.24F);
  EXPECT_FLOAT_EQ(ParameterInit::fan_in({8, 4, 2, 2}).value, 0.25F);
  EXPECT_EQ(source.find({"c", {0, 3}, kInit, false})->numel(), 0);
}

TEST(CastSourceTest, CastsFloatingTypesOnly) {
  const auto checkpoint = Checkpoint::open(fixture("dtypes.pt"));
  ASSERT_OK(checkpoint.status());
  CheckpointSource base(*checkpoint);
  CastSource cast(base, DType::kBF16);
  EXPECT_EQ(cast.find({"f32", {3}, kInit, false})->dtype(), DType::kBF16);
  EXPECT_EQ(cast.find({"i64", {3}, kInit, false})->dtype(), DType::kI64);
  EXPECT_EQ(cast.find({"none", {3}, kInit, false}).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(cast.names().size(), 14U);
}

}  // namespace
}  // namespace ultraflash
