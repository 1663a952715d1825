#include "weights/convert.h"

#include <gtest/gtest.h>

#include "weights/lora.h"
#include "weights/safetensors_writer.h"
#include "weights_test_util.h"

namespace ultraflash {
namespace {

std::vector<NamedTensor> model() {
  return {{"blocks.0.q.weight", tensor_of<float>({0.1F, -2, 3, 448, 1e6F, 6}, {2, 3})},
          {"blocks.0.q.bias", tensor_of<float>({1, 2}, {2})},
          {"steps", tensor_of<int64_t>({1, 2, 3}, {3})}};
}

TEST(ConvertTest, BetweenFormatsNothingChanges) {
  const TempFolder folder;
  ASSERT_OK(save_torch_archive(folder / "a.pt", model(), "generator_ema"));
  ASSERT_OK(convert_checkpoint(folder / "a.pt", folder / "b.safetensors", {}));
  ConvertOptions wrapped;
  wrapped.output_wrapper = "generator";
  ASSERT_OK(convert_checkpoint(folder / "b.safetensors", folder / "c.pth", wrapped));
  EXPECT_EQ(Checkpoint::open(folder / "c.pth")->wrapper(), "generator");
  for (const char* name : {"b.safetensors", "c.pth"}) {
    const auto checkpoint = Checkpoint::open(folder / name);
    ASSERT_OK(checkpoint.status());
    EXPECT_EQ(checkpoint->entries().size(), 3U);
    for (const NamedTensor& named : model()) {
      EXPECT_TRUE(same_bits(*checkpoint->tensor(named.name), named.tensor)) << named.name;
    }
  }
}

TEST(ConvertTest, CastsFloatingTensors) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "a.safetensors", model(), {{"module", "x"}}));
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF8E4M3, DType::kF32}) {
    ConvertOptions options;
    options.dtype = dtype;
    ASSERT_OK(convert_checkpoint(folder / "a.safetensors", folder / "b.safetensors", options));
    const auto out = Checkpoint::open(folder / "b.safetensors");
    ASSERT_OK(out.status());
    EXPECT_EQ(out->metadata().at("module"), "x");
    EXPECT_EQ(out->tensor("steps")->dtype(), DType::kI64);
    EXPECT_TRUE(same_bits(*out->tensor("blocks.0.q.weight"), model()[0].tensor.to(dtype)));
  }
}

TEST(ConvertTest, LeavesOutWhatIsDropped) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "a.safetensors", model()));
  ConvertOptions options;
  options.dropped = {"blocks.0.q.w", "step"};
  ASSERT_OK(convert_checkpoint(folder / "a.safetensors", folder / "b.safetensors", options));
  const auto out = Checkpoint::open(folder / "b.safetensors");
  ASSERT_OK(out.status());
  ASSERT_EQ(out->entries().size(), 1U);
  EXPECT_TRUE(same_bits(*out->tensor("blocks.0.q.bias"), model()[1].tensor));
  options.dropped = {"blocks.", "head."};
  expect_failure(convert_checkpoint(folder / "a.safetensors", folder / "c.safetensors", options),
                 StatusCode::kNotFound, {"a.safetensors", "head."});
  options.dropped = {"blocks.", "steps"};
  expect_failure(convert_checkpoint(folder / "a.safetensors", folder / "c.safetensors", options),
                 StatusCode::kInvalidArgument, {"a.safetensors", "all of its tensors"});
}

TEST(ConvertTest, CutsIntoShards) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "a.safetensors", model()));
  ConvertOptions options;
  options.max_shard_bytes = 24;
  ASSERT_OK(convert_checkpoint(folder / "a.safetensors", folder / "out.safetensors", options));
  const auto out = Checkpoint::open(folder / "out.safetensors.index.json");
  ASSERT_OK(out.status());
  EXPECT_EQ(out->files().size(), 4U);
  for (const NamedTensor& named : model()) {
    EXPECT_TRUE(same_bits(*out->tensor(named.name), named.tensor));
  }
  // Shards read from a folder and written over themselves would be lost.
  expect_failure(convert_checkpoint(folder / "out.safetensors.index.json",
                                    folder / "out.safetensors", options),
                 StatusCode::kInvalidArgument, {"out-00001-of-00003.safetensors", "is an input"});
}

TEST(ConvertTest, MergesAdapters) {
  const TempFolder folder;
  ConvertOptions options;
  options.input.prefix = "in.base.";
  options.adapters = {{fixture("peft_lora.pt"), 0.5, 6.0}};
  const auto golden = source_path("") / "tests/golden/lora_merge.safetensors";
  ASSERT_OK(convert_checkpoint(golden, folder / "merged.safetensors", options));
  const auto out = Checkpoint::open(folder / "merged.safetensors");
  ASSERT_OK(out.status());
  CheckpointOptions base_options;
  base_options.prefix = "in.base.";
  const auto base = Checkpoint::open(golden, base_options);
  LoraOptions lora;
  lora.alpha = 6.0;
  const auto adapter = LoraAdapter::open(fixture("peft_lora.pt"), lora);
  for (const TensorEntry& entry : base->entries()) {
    const LoraLayer* layer = adapter->find_for_weight(entry.name);
    const Tensor expected =
        layer == nullptr ? *entry.load() : *merge_lora(*entry.load(), *layer, 0.5);
    EXPECT_TRUE(same_bits(*out->tensor(entry.name), expected)) << entry.name;
  }
}

TEST(ConvertTest, AveragesTwoCheckpoints) {
  const TempFolder folder;
  const auto filled = [](float value, int64_t count) {
    Tensor x = Tensor::zeros(DType::kF32, {count});
    for (int64_t i = 0; i < count; ++i) x.mutable_data<float>()[i] = value + static_cast<float>(i);
    return x;
  };
  Tensor steps = Tensor::zeros(DType::kI64, {1});
  steps.mutable_data<int64_t>()[0] = 7;
  ASSERT_OK(save_safetensors(folder / "a.safetensors", {{"x", filled(1.0F, 5)}, {"steps", steps}}));
  ASSERT_OK(save_safetensors(folder / "b.safetensors",
                             {{"x", filled(9.0F, 5).to(DType::kBF16)}, {"steps", steps}}));
  ASSERT_OK(save_safetensors(folder / "c.safetensors", {{"x", filled(9.0F, 4)}, {"steps", steps}}));
  ASSERT_OK(save_safetensors(folder / "d.safetensors", {{"x", filled(9.0F, 5)}}));
  ConvertOptions options;
  options.average = ConvertAverage{folder / "b.safetensors", 0.25};
  ASSERT_OK(convert_checkpoint(folder / "a.safetensors", folder / "out.safetensors", options));
  const auto out = Checkpoint::open(folder / "out.safetensors");
  ASSERT_OK(out.status());
  EXPECT_TRUE(same_bits(*out->tensor("x"), filled(3.0F, 5)));
  EXPECT_TRUE(same_bits(*out->tensor("steps"), steps));
  const auto refused = [&](const char* other, const char* output, double share, StatusCode code,
                           const std::vector<std::string>& words) {
    options.average = ConvertAverage{folder / other, share};
    expect_failure(convert_checkpoint(folder / "a.safetensors", folder / output, options), code,
                   words);
  };
  refused("c.safetensors", "e.safetensors", 0.5, StatusCode::kMalformed,
          {"c.safetensors", "x", "[4]"});
  refused("d.safetensors", "e.safetensors", 0.5, StatusCode::kMalformed, {"steps", "missing"});
  refused("b.safetensors", "b.safetensors", 0.5, StatusCode::kInvalidArgument, {"is an input"});
  refused("b.safetensors", "e.safetensors", 1.5, StatusCode::kInvalidArgument, {"1.5"});
  EXPECT_FALSE(std::filesystem::exists(folder / "e.safetensors"));
}

TEST(ConvertTest, AdapterOfAnotherModelStopsBeforeWriting) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "a.safetensors", model()));
  ConvertOptions options;
  options.adapters = {{fixture("peft_lora.pt"), 1.0, std::nullopt}};
  expect_failure(convert_checkpoint(folder / "a.safetensors", folder / "b.safetensors", options),
                 StatusCode::kMalformed, {"peft_lora.pt", "blocks.0.self_attn", "a.safetensors"});
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.safetensors"});
}

TEST(ConvertTest, RefusesToOverwriteAnAdapterFoundInAFolder) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "adapter");
  ASSERT_OK(save_safetensors(folder / "a.safetensors", model()));
  const auto inside = folder / "adapter" / "adapter_model.safetensors";
  ASSERT_OK(
      save_safetensors(inside, {{"blocks.0.q.lora_A.weight", Tensor::zeros(DType::kF32, {1, 3})},
                                {"blocks.0.q.lora_B.weight", Tensor::zeros(DType::kF32, {2, 1})}}));
  ConvertOptions options;
  options.adapters = {{folder / "adapter", 1.0, std::nullopt}};
  expect_failure(convert_checkpoint(folder / "a.safetensors", inside, options),
                 StatusCode::kInvalidArgument, {"adapter_model.safetensors", "is an input"});
  ASSERT_OK(convert_checkpoint(folder / "a.safetensors", folder / "b.safetensors", options));
}

TEST(ConvertTest, RefusesWhatCannotWork) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "a.safetensors", model()));
  const auto refused = [&](const char* output, const ConvertOptions& options, StatusCode code,
                           const char* cause) {
    expect_failure(convert_checkpoint(folder / "a.safetensors", folder / output, options), code,
                   {cause});
  };
  refused("a.safetensors", {}, StatusCode::kInvalidArgument, "is an input of this conversion");
  refused("b.gguf", {}, StatusCode::kInvalidArgument, "\".gguf\" names no output format");
  refused("b", {}, StatusCode::kInvalidArgument, "names no output format");
  ConvertOptions options;
  options.dtype = DType::kI32;
  refused("b.safetensors", options, StatusCode::kInvalidArgument, "cannot become i32");
  options = {};
  options.output_wrapper = "model";
  refused("b.safetensors", options, StatusCode::kInvalidArgument, "no key around");
  options = {};
  options.max_shard_bytes = 10;
  refused("b.pt", options, StatusCode::kInvalidArgument, "shards");
  expect_failure(convert_checkpoint(folder / "none", folder / "b.pt", {}), StatusCode::kNotFound,
                 {"none"});
  expect_failure(convert_checkpoint(fixture("dtypes.pt"), folder / "b.pt", {}),
                 StatusCode::kUnsupported, {"dtypes.pt", "f8_e5m2"});
  std::filesystem::create_symlink(folder / "a.safetensors", folder / "link.safetensors");
  refused("link.safetensors", {}, StatusCode::kInvalidArgument, "is an input of this conversion");
  EXPECT_EQ(folder.files(), (std::vector<std::string>{"a.safetensors", "link.safetensors"}));
}

TEST(ConvertTest, ReportsProgressAndStops) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "a.safetensors", model()));
  std::vector<int64_t> seen;
  ASSERT_OK(convert_checkpoint(folder / "a.safetensors", folder / "b.pt", {},
                               [&](const Progress& progress) {
                                 seen.push_back(progress.done);
                                 EXPECT_EQ(progress.total, 56);
                                 return true;
                               }));
  EXPECT_EQ(seen.front(), 0);
  EXPECT_EQ(seen.back(), 56);
  int calls = 0;
  const Status status = convert_checkpoint(folder / "a.safetensors", folder / "c.pt", {},
                                           [&](const Progress&) { return ++calls < 3; });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(folder.files(), (std::vector<std::string>{"a.safetensors", "b.pt"}));
}

}  // namespace
}  // namespace ultraflash
