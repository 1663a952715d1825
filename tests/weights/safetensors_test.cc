#include "weights/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "weights/safetensors_writer.h"
#include "weights_test_util.h"

namespace ultraflash {
namespace {

constexpr DType kAllTypes[] = {DType::kF64,    DType::kF32, DType::kF16, DType::kBF16,
                               DType::kF8E4M3, DType::kI64, DType::kI32, DType::kI16,
                               DType::kI8,     DType::kU8,  DType::kBool};

// A few tensors of random types and shapes, sizes of 0 and rank 0 among them.
std::vector<NamedTensor> random_tensors() {
  const auto count = *rc::gen::inRange(0, 6);
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < count; ++i) {
    std::vector<int64_t> sizes(*rc::gen::inRange<size_t>(0, 5));
    for (int64_t& size : sizes) size = *rc::gen::inRange<int64_t>(0, 5);
    const DType dtype =
        *rc::gen::elementOf(std::vector<DType>(std::begin(kAllTypes), std::end(kAllTypes)));
    const std::string suffix = *rc::gen::elementOf(
        std::vector<std::string>{"", ".weight", "\"quoted\\\"", " \xc3\xbc", "/slash"});
    const std::string name = fmt::format("t{}{}", i, suffix);
    tensors.push_back({name, random_tensor(dtype, Shape(sizes), static_cast<uint64_t>(i))});
  }
  return tensors;
}

void expect_same(const std::vector<TensorEntry>& entries, const std::vector<NamedTensor>& tensors) {
  RC_ASSERT(entries.size() == tensors.size());
  for (const NamedTensor& named : tensors) {
    RC_ASSERT(same_bits(load_named(entries, named.name), named.tensor));
  }
}

RC_GTEST_PROP(SafetensorsTest, RoundTrip, ()) {
  const TempFolder folder;
  const std::vector<NamedTensor> tensors = random_tensors();
  const CheckpointMetadata metadata = {
      {"format", "pt"}, {"config", "{\"a\": 1}\n"}, {"", "\xc3\xbc"}};
  RC_ASSERT(save_safetensors(folder / "x.safetensors", tensors, metadata).ok());
  const auto contents = read_safetensors(folder / "x.safetensors");
  RC_ASSERT(contents.ok());
  RC_ASSERT(contents->metadata == metadata);
  expect_same(contents->tensors, tensors);
  for (const TensorEntry& entry : contents->tensors) {
    // The writer aligns, so that nothing needs a copy.
    RC_ASSERT(entry.load()->raw() == entry.bytes.data() || entry.bytes.empty());
  }
}

RC_GTEST_PROP(SafetensorsTest, ShardedRoundTrip, ()) {
  const TempFolder folder;
  const std::vector<NamedTensor> tensors = random_tensors();
  const int64_t limit = *rc::gen::inRange<int64_t>(0, 400);
  RC_ASSERT(save_sharded_safetensors(folder / "m.safetensors", tensors, {{"k", "v"}}, limit).ok());
  const std::vector<std::filesystem::path> paths =
      sharded_safetensors_paths(folder / "m.safetensors", headers_of(tensors), limit);
  RC_ASSERT(paths.size() == folder.files().size());
  if (paths.size() == 1) {
    expect_same(read_safetensors(paths[0])->tensors, tensors);
    return;
  }
  const auto sharded = read_sharded_safetensors(paths.back());
  RC_ASSERT(sharded.ok());
  RC_ASSERT(sharded->contents.metadata == (CheckpointMetadata{{"k", "v"}}));
  expect_same(sharded->contents.tensors, tensors);
  for (size_t i = 0; i + 1 < paths.size(); ++i) {
    RC_ASSERT(std::filesystem::exists(paths[i]));
    const auto shard = read_safetensors(paths[i]);
    int64_t bytes = 0;
    for (const TensorEntry& entry : shard->tensors) bytes += entry.size_bytes();
    const auto filled = std::count_if(shard->tensors.begin(), shard->tensors.end(),
                                      [](const TensorEntry& e) { return e.size_bytes() > 0; });
    RC_ASSERT(bytes <= limit || filled == 1);
  }
}

TEST(SafetensorsTest, ShardsHaveTheUsualNames) {
  const TempFolder folder;
  const std::vector<NamedTensor> tensors = {{"a", Tensor::zeros(DType::kF32, {4})},
                                            {"b", Tensor::zeros(DType::kF32, {4})},
                                            {"c", Tensor::zeros(DType::kF32, {9})}};
  ASSERT_OK(save_sharded_safetensors(folder / "model.safetensors", tensors, {}, 32));
  EXPECT_EQ(folder.files(), (std::vector<std::string>{"model-00001-of-00002.safetensors",
                                                      "model-00002-of-00002.safetensors",
                                                      "model.safetensors.index.json"}));
  const auto index =
      parse_safetensors_index(read_text(folder / "model.safetensors.index.json"), "index");
  ASSERT_OK(index.status());
  EXPECT_EQ(index->weight_map.at("b"), "model-00001-of-00002.safetensors");
  EXPECT_EQ(index->weight_map.at("c"), "model-00002-of-00002.safetensors");
  EXPECT_THAT(read_text(folder / "model.safetensors.index.json"),
              testing::HasSubstr("\"total_size\": 68"));
}

TEST(SafetensorsTest, ReadsGoldenFile) {
  // Written by the format's own library, so that two writers agree with this reader.
  const auto contents = read_safetensors(source_path("") / "tests/golden/lora_merge.safetensors");
  ASSERT_OK(contents.status());
  EXPECT_EQ(contents->metadata.at("module"), "lora_merge");
  EXPECT_EQ(load_named(contents->tensors, "in.base.blocks.0.ffn.0.weight").shape(),
            (Shape{20, 12}));
}

TEST(SafetensorsTest, StridedTensorsAreWrittenDense) {
  const TempFolder folder;
  const Tensor t = tensor_of<float>({0, 1, 2, 3, 4, 5}, {2, 3});
  ASSERT_OK(save_safetensors(folder / "x", {{"t", t.permute({1, 0})}}));
  EXPECT_EQ(floats(load_named(read_safetensors(folder / "x")->tensors, "t")),
            (std::vector<float>{0, 3, 1, 4, 2, 5}));
}

TEST(SafetensorsTest, WriterRefusesBadNames) {
  const TempFolder folder;
  const Tensor t = Tensor::zeros(DType::kF32, {1});
  expect_failure(save_safetensors(folder / "x", {{"a", t}, {"a", t}}), StatusCode::kInvalidArgument,
                 {"x", "two tensors are named a"});
  expect_failure(save_safetensors(folder / "x", {{"", t}}), StatusCode::kInvalidArgument,
                 {"is empty"});
  expect_failure(save_safetensors(folder / "x", {{"\xff", t}}), StatusCode::kInvalidArgument,
                 {"\\xff", "UTF-8"});
  expect_failure(save_safetensors(folder / "x", {{"a", t}}, {{"k", "\xff"}}),
                 StatusCode::kInvalidArgument, {"metadata", "k"});
  expect_failure(save_safetensors(folder / "no" / "x", {{"a", t}}), StatusCode::kNotFound,
                 {"no/x"});
  EXPECT_TRUE(folder.files().empty());
}

TEST(SafetensorsTest, UnfinishedWriterLeavesNothing) {
  const TempFolder folder;
  const std::vector<TensorHeader> headers = {{"a", DType::kF32, {4}}, {"b", DType::kF32, {4}}};
  {
    auto writer = create_sharded_safetensors_writer(folder / "m.safetensors", headers, {}, 16);
    ASSERT_OK(writer.status());
    ASSERT_OK((*writer)->append(Tensor::zeros(DType::kF32, {4})));
    EXPECT_EQ((*writer)->append(Tensor::zeros(DType::kF32, {5})).code(), StatusCode::kInternal);
    EXPECT_EQ((*writer)->finish().code(), StatusCode::kInternal);
  }
  EXPECT_TRUE(folder.files().empty());
}

TEST(SafetensorsTest, MisalignedTensorsAreCopied) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  const float values[2] = {1.5F, -2.0F};
  file += header + std::string("\x07") + std::string(reinterpret_cast<const char*>(values), 8);
  // Both starts are tried, so that one of them is misaligned whatever the string's address.
  const std::string shifted = "x" + file;
  for (const ByteSpan bytes : {as_byte_span(file), as_byte_span(shifted).subspan(1)}) {
    const auto contents = parse_safetensors(bytes, "mem");
    ASSERT_OK(contents.status());
    EXPECT_EQ(floats(load_named(contents->tensors, "b")), (std::vector<float>{1.5F, -2.0F}));
  }
}

TEST(SafetensorsTest, UnusableTypesAreListed) {
  const std::string header =
      R"({"a":{"dtype":"U16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F4","shape":[3,2],"data_offsets":[4,7]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  file += header + std::string(7, 'x');
  const auto contents = parse_safetensors(as_byte_span(file), "mem");
  ASSERT_OK(contents.status());
  EXPECT_EQ(contents->tensors[0].to_string(), "u16 [2]");
  EXPECT_EQ(contents->tensors[1].to_string(), "f4 [3, 2]");
  expect_failure(contents->tensors[0].load().status(), StatusCode::kUnsupported, {"a", "u16"});
}

}  // namespace
}  // namespace ultraflash
