#include "weights/checkpoint.h"

#include <gtest/gtest.h>

#include "weights/inspect.h"
#include "weights/safetensors_writer.h"
#include "weights_test_util.h"

namespace ultraflash {
namespace {

std::vector<std::string> names(const Checkpoint& checkpoint) {
  std::vector<std::string> out;
  for (const TensorEntry& entry : checkpoint.entries()) out.push_back(entry.name);
  return out;
}

using Names = std::vector<std::string>;

NamedTensor one(std::string name) { return {std::move(name), Tensor::zeros(DType::kF32, {1})}; }

TEST(CheckpointTest, PrefersTheAveragedGenerator) {
  const auto checkpoint = Checkpoint::open(fixture("training.pt"));
  ASSERT_OK(checkpoint.status());
  EXPECT_EQ(checkpoint->format(), CheckpointFormat::kTorchArchive);
  EXPECT_EQ(checkpoint->wrapper(), "generator_ema");
  EXPECT_EQ(checkpoint->wrappers(), (Names{"generator", "generator_ema", "critic", "optimizer"}));
  EXPECT_EQ(names(*checkpoint), (Names{"blocks.0.q.weight", "blocks.0.q.bias"}));
  const auto weight = checkpoint->tensor("blocks.0.q.weight");
  ASSERT_OK(weight.status());
  EXPECT_EQ(weight->data<float>()[0], 100.0F);
  expect_failure(checkpoint->tensor("nothing").status(), StatusCode::kNotFound,
                 {"training.pt", "nothing"});
}

TEST(CheckpointTest, OtherKeysOnRequest) {
  CheckpointOptions options;
  options.wrapper_order = default_wrapper_order(/*prefer_ema=*/false);
  EXPECT_EQ(Checkpoint::open(fixture("training.pt"), options)->wrapper(), "generator");
  options.wrapper = "critic";
  EXPECT_EQ(Checkpoint::open(fixture("training.pt"), options)->wrapper(), "critic");
  options.wrapper = "teacher";
  expect_failure(Checkpoint::open(fixture("training.pt"), options).status(), StatusCode::kNotFound,
                 {"training.pt", "\"teacher\"", "generator, generator_ema, critic"});
}

TEST(CheckpointTest, FallsBackAlongTheOrder) {
  const TempFolder folder;
  for (const char* key : {"generator_ema", "generator", "generator_lora", "model", "state_dict"}) {
    ASSERT_OK(save_torch_archive(folder / "x.pt", {one("a")}, key));
    EXPECT_EQ(Checkpoint::open(folder / "x.pt")->wrapper(), key);
    EXPECT_EQ(names(*Checkpoint::open(folder / "x.pt")), Names{"a"});
  }
  ASSERT_OK(save_torch_archive(folder / "x.pt", {one("a")}));
  EXPECT_EQ(Checkpoint::open(folder / "x.pt")->wrapper(), "");
  ASSERT_OK(save_torch_archive(folder / "x.pt", {one("a")}, "params"));
  EXPECT_EQ(names(*Checkpoint::open(folder / "x.pt")), Names{"params.a"});
}

TEST(CheckpointTest, NeverTakesTheCriticUnasked) {
  const TempFolder folder;
  ASSERT_OK(save_torch_archive(folder / "x.pt", {one("a")}, "critic"));
  expect_failure(Checkpoint::open(folder / "x.pt").status(), StatusCode::kInvalidArgument,
                 {"x.pt", "critic"});
}

TEST(CheckpointTest, CleansNamesUnlessTold) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "x", {one("model._orig_mod.a"), one("model.b")}));
  EXPECT_EQ(names(*Checkpoint::open(folder / "x")), (Names{"a", "b"}));
  CheckpointOptions options;
  options.clean_names = false;
  EXPECT_EQ(names(*Checkpoint::open(folder / "x", options)),
            (Names{"model._orig_mod.a", "model.b"}));
  ASSERT_OK(save_safetensors(folder / "x", {one("model._orig_mod.a"), one("model.a")}));
  expect_failure(Checkpoint::open(folder / "x").status(), StatusCode::kMalformed,
                 {"/x", "two tensors are named a"});
}

TEST(CheckpointTest, PrefixSelectsAndIsRemoved) {
  CheckpointOptions options;
  options.prefix = "in.base.";
  const auto path = source_path("") / "tests/golden/lora_merge.safetensors";
  const auto golden = Checkpoint::open(path, options);
  ASSERT_OK(golden.status());
  EXPECT_EQ(golden->entries().size(), 10U);
  EXPECT_NE(golden->find("blocks.0.ffn.2.weight"), nullptr);
  EXPECT_EQ(golden->metadata().at("module"), "lora_merge");
  options.prefix = "w.";
  expect_failure(Checkpoint::open(path, options).status(), StatusCode::kNotFound,
                 {"lora_merge.safetensors", "\"w.\""});
}

TEST(CheckpointTest, ContentDecidesNotTheName) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "wrong.pt", {one("a")}));
  ASSERT_OK(save_torch_archive(folder / "wrong.safetensors", {one("b")}));
  EXPECT_EQ(Checkpoint::open(folder / "wrong.pt")->format(), CheckpointFormat::kSafetensors);
  EXPECT_EQ(Checkpoint::open(folder / "wrong.safetensors")->format(),
            CheckpointFormat::kTorchArchive);
}

TEST(CheckpointTest, FolderStandsForItsOneModel) {
  const TempFolder folder;
  expect_failure(Checkpoint::open(folder.path()).status(), StatusCode::kNotFound,
                 {folder.path().string(), "holds no"});
  ASSERT_OK(save_torch_archive(folder / "a.pth", {one("archive")}));
  write_text(folder / "config.json", "{}");
  EXPECT_EQ(names(*Checkpoint::open(folder.path())), Names{"archive"});
  ASSERT_OK(save_torch_archive(folder / "b.pt", {one("archive")}));
  expect_failure(Checkpoint::open(folder.path()).status(), StatusCode::kInvalidArgument,
                 {"2 checkpoints", "a.pth", "b.pt"});
  ASSERT_OK(save_safetensors(folder / "m.safetensors", {one("single")}));
  EXPECT_EQ(names(*Checkpoint::open(folder.path())), Names{"single"});
  ASSERT_OK(save_sharded_safetensors(folder / "s.safetensors", {one("x"), one("y")}, {}, 4));
  const auto sharded = Checkpoint::open(folder.path());
  ASSERT_OK(sharded.status());
  EXPECT_EQ(sharded->format(), CheckpointFormat::kShardedSafetensors);
  EXPECT_EQ(names(*sharded), (Names{"x", "y"}));
  EXPECT_EQ(sharded->files().size(), 3U);
}

TEST(CheckpointTest, OtherFilesAreNamedForWhatTheyAre) {
  const TempFolder folder;
  const auto refused = [&](const std::string& bytes, StatusCode code, const char* cause) {
    write_text(folder / "x.bin", bytes);
    expect_failure(Checkpoint::open(folder / "x.bin").status(), code, {"x.bin", cause});
  };
  refused("GGUF\x03", StatusCode::kUnsupported, "GGUF");
  refused("version https://git-lfs.github.com/spec/v1\noid", StatusCode::kMalformed,
          "git lfs pull");
  refused("<!DOCTYPE html>", StatusCode::kMalformed, "web page");
  refused("\x80\x02}q.", StatusCode::kMalformed, "bare pickle");
  refused("hello", StatusCode::kMalformed, "neither a safetensors file nor");
  refused("{\"a\": 1}", StatusCode::kMalformed, "no \"weight_map\"");
  refused("PK\x03\x04", StatusCode::kMalformed, "truncated");
  expect_failure(Checkpoint::open(fixture("legacy.pt")).status(), StatusCode::kUnsupported,
                 {"legacy.pt", "before version 1.6"});
  expect_failure(Checkpoint::open(folder / "none").status(), StatusCode::kNotFound, {"none"});
}

TEST(CheckpointTest, TensorsOutliveTheCheckpoint) {
  Tensor tensor;
  {
    const auto checkpoint = Checkpoint::open(fixture("views.pt"));
    ASSERT_OK(checkpoint.status());
    tensor = *checkpoint->tensor("whole");
  }
  EXPECT_EQ(tensor.data<float>()[23], 23.0F);
  EXPECT_FALSE(tensor.exclusive());
}

TEST(InspectTest, DescribesAllOfAnArchive) {
  const auto description = describe_checkpoint(fixture("training.pt"));
  ASSERT_OK(description.status());
  EXPECT_EQ(description->format, CheckpointFormat::kTorchArchive);
  EXPECT_EQ(description->totals.tensors, 7);
  EXPECT_EQ(description->totals.parameters, 26);
  EXPECT_EQ(description->totals.size_bytes, 104);
  EXPECT_EQ(description->by_wrapper.at("critic").parameters, 8);
  EXPECT_EQ(description->by_wrapper.at("optimizer").tensors, 1);
  EXPECT_EQ(description->by_type.at("f32").tensors, 7);
  EXPECT_EQ(description->file_bytes,
            static_cast<int64_t>(std::filesystem::file_size(fixture("training.pt"))));
  EXPECT_EQ(description->entries[2].wrapper, "generator_ema");
  EXPECT_EQ(description->entries[2].name, "model._fsdp_wrapped_module.blocks.0.q.weight");
  EXPECT_FALSE(description->extras.empty());
}

TEST(InspectTest, ListsWhatCannotBeUsed) {
  const auto description = describe_checkpoint(fixture("dtypes.pt"));
  ASSERT_OK(description.status());
  EXPECT_EQ(description->by_type.at("c64").size_bytes, 24);
  int64_t usable = 0;
  for (const TensorDescription& entry : description->entries) usable += entry.usable ? 1 : 0;
  EXPECT_EQ(usable, 11);
}

TEST(InspectTest, DescribesShards) {
  const TempFolder folder;
  ASSERT_OK(
      save_sharded_safetensors(folder / "s.safetensors", {one("x"), one("y")}, {{"k", "v"}}, 4));
  const auto description = describe_checkpoint(folder.path());
  ASSERT_OK(description.status());
  EXPECT_EQ(description->files.size(), 3U);
  EXPECT_EQ(description->metadata.at("k"), "v");
  EXPECT_EQ(description->totals.size_bytes, 8);
}

}  // namespace
}  // namespace ultraflash
