#include "weights/torch_archive.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>

#include "torch_test_util.h"
#include "weights/crc32.h"

namespace ultraflash {
namespace {

const TensorGroup& group(const TorchContents& contents, std::string_view key) {
  for (const TensorGroup& group : contents.groups) {
    if (group.key == key) return group;
  }
  ADD_FAILURE() << "no group " << key;
  static const TensorGroup none;
  return none;
}

TEST(TorchArchiveTest, ReadsATrainingCheckpoint) {
  const auto contents = read_torch_archive(fixture("training.pt"));
  ASSERT_OK(contents.status());
  std::vector<std::string> keys;
  for (const TensorGroup& g : contents->groups) keys.push_back(g.key);
  EXPECT_EQ(keys, (std::vector<std::string>{"generator", "generator_ema", "critic", "optimizer"}));
  const auto& generator = group(*contents, "generator").tensors;
  ASSERT_EQ(generator.size(), 2U);
  EXPECT_EQ(generator[0].name, "blocks.0.q.weight");
  EXPECT_EQ(generator[0].shape, (Shape{2, 3}));
  EXPECT_EQ(floats(*generator[0].load()), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(group(*contents, "generator_ema").tensors[1].name,
            "model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.q.bias");
  EXPECT_EQ(group(*contents, "optimizer").tensors[0].name, "state.0.exp_avg");
  // Zero-copy: the elements lie in the mapping.
  EXPECT_EQ(generator[0].load()->raw(), generator[0].bytes.data());
}

TEST(TorchArchiveTest, KeepsWhatIsNoTensor) {
  const auto contents = read_torch_archive(fixture("training.pt"));
  ASSERT_OK(contents.status());
  std::map<std::string, std::string> extras;
  for (const CheckpointExtra& extra : contents->extras) {
    extras[extra.name] = extra.kind + " " + extra.text;
  }
  const std::map<std::string, std::string> expected = {{"step", "int 1200"},
                                                       {"lr", "float 0.001"},
                                                       {"betas", "list [0.9, 0.999]"},
                                                       {"name", "str 'self forcing'"},
                                                       {"note", "None None"},
                                                       {"resumed", "bool True"},
                                                       {"size", "other ..."},
                                                       {"device", "other ..."},
                                                       {"dtype", "other torch.bfloat16"},
                                                       {"big", "int an integer of 11 bytes"},
                                                       {"neg", "int -5"},
                                                       {"far", "int 3000000000"},
                                                       {"config.layers.0", "int 1"},
                                                       {"config.layers.1", "int 2"},
                                                       {"config.layers.2.width", "int 4"},
                                                       {"config.empty", "dict {}"}};
  EXPECT_EQ(extras, expected);
}

TEST(TorchArchiveTest, ReadsEveryElementType) {
  const auto contents = read_torch_archive(fixture("dtypes.pt"));
  ASSERT_OK(contents.status());
  ASSERT_EQ(contents->groups.size(), 1U);
  std::vector<std::string> unusable;
  for (const TensorEntry& entry : contents->groups[0].tensors) {
    EXPECT_EQ(entry.name, entry.type_name());
    EXPECT_EQ(entry.shape, (Shape{3}));
    if (!entry.dtype()) {
      unusable.push_back(entry.name);
      EXPECT_EQ(entry.load().status().code(), StatusCode::kUnsupported);
      continue;
    }
    const std::vector<float> expected =
        entry.name == "bool" ? std::vector<float>{0, 1, 1} : std::vector<float>{0, 1, 2};
    EXPECT_EQ(floats(*entry.load()), expected) << entry.name;
  }
  EXPECT_EQ(unusable, (std::vector<std::string>{"f8_e5m2", "u16", "c64"}));
}

TEST(TorchArchiveTest, ReadsViewsParametersAndBuffers) {
  const auto contents = read_torch_archive(fixture("views.pt"));
  ASSERT_OK(contents.status());
  const auto& tensors = group(*contents, "").tensors;
  const Tensor whole = load_named(tensors, "whole");
  EXPECT_EQ(whole.shape(), (Shape{4, 6}));
  const auto expect_view = [&](std::string_view name, const Tensor& view) {
    EXPECT_TRUE(same_bits(load_named(tensors, name), view.copy())) << name;
  };
  expect_view("row", whole.select(0, 1));
  expect_view("columns", whole.slice(1, 1, 3));
  expect_view("transposed", whole.permute({1, 0}));
  EXPECT_EQ(floats(load_named(tensors, "every_second")), (std::vector<float>{0, 3, 12, 15}));
  EXPECT_EQ(load_named(tensors, "row").raw() - whole.raw(), 6 * 4);  // one storage, no copy
  EXPECT_EQ(floats(load_named(tensors, "param")), (std::vector<float>{0, 1}));
  EXPECT_EQ(load_named(tensors, "param").dtype(), DType::kBF16);
  EXPECT_EQ(load_named(tensors, "buffer").dtype(), DType::kF16);
  EXPECT_EQ(load_named(tensors, "empty").shape(), (Shape{0, 5}));
  EXPECT_EQ(load_named(tensors, "scalar").shape(), Shape{});
  EXPECT_EQ(floats(load_named(tensors, "scalar")), std::vector<float>{7.5F});
  EXPECT_EQ(floats(load_named(group(*contents, "list").tensors, "1")), (std::vector<float>{0, 1}));
}

TEST(TorchArchiveTest, ReadsStateDictsWithAttributes) {
  const auto contents = read_torch_archive(fixture("module.pth"));
  ASSERT_OK(contents.status());
  const auto& tensors = group(*contents, "").tensors;
  EXPECT_EQ(tensors.size(), 7U);
  EXPECT_EQ(load_named(tensors, "0.weight").shape(), (Shape{2, 1, 1, 1}));
  EXPECT_EQ(load_named(tensors, "1.num_batches_tracked").dtype(), DType::kI64);
}

TEST(TorchArchiveTest, ReadsABareTensor) {
  const auto contents = read_torch_archive(fixture("bare_tensor.pt"));
  ASSERT_OK(contents.status());
  EXPECT_EQ(floats(load_named(group(*contents, "").tensors, "tensor")),
            (std::vector<float>{0, 1, 2, 3}));
}

TEST(TorchArchiveTest, MisalignedStoragesAreCopied) {
  const std::string file = read_text(fixture("views.pt"));
  for (size_t shift = 0; shift < 4; ++shift) {
    const std::string shifted = std::string(shift, 'x') + file;
    const auto contents = parse_torch_archive(as_byte_span(shifted).subspan(shift), "mem");
    ASSERT_OK(contents.status());
    const auto& tensors = group(*contents, "").tensors;
    EXPECT_EQ(floats(load_named(tensors, "row")), (std::vector<float>{6, 7, 8, 9, 10, 11}));
    EXPECT_EQ(floats(load_named(tensors, "every_second")), (std::vector<float>{0, 3, 12, 15}));
  }
}

RC_GTEST_PROP(TorchArchiveTest, RoundTrip, ()) {
  const TempFolder folder;
  const std::vector<DType> types = {DType::kF64,    DType::kF32, DType::kF16, DType::kBF16,
                                    DType::kF8E4M3, DType::kI64, DType::kI32, DType::kI16,
                                    DType::kI8,     DType::kU8,  DType::kBool};
  std::vector<NamedTensor> tensors;
  const auto count = *rc::gen::inRange(0, 6);
  for (int i = 0; i < count; ++i) {
    std::vector<int64_t> sizes(*rc::gen::inRange<size_t>(0, 5));
    for (int64_t& size : sizes) size = *rc::gen::inRange<int64_t>(0, 400) % 7;
    tensors.push_back(
        {"layer." + std::to_string(i) + ".weight",
         random_tensor(*rc::gen::elementOf(types), Shape(sizes), static_cast<uint64_t>(i))});
  }
  const auto wrapper = *rc::gen::elementOf(std::vector<std::string>{"", "generator_ema"});
  RC_ASSERT(save_torch_archive(folder / "x.pt", tensors, wrapper).ok());
  const auto contents = read_torch_archive(folder / "x.pt");
  RC_ASSERT(contents.ok());
  RC_ASSERT(contents->groups.size() == (tensors.empty() ? 0U : 1U));
  RC_ASSERT(folder.files().size() == 1U);
  if (tensors.empty()) return;
  RC_ASSERT(contents->groups[0].key == wrapper);
  RC_ASSERT(contents->groups[0].tensors.size() == tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorEntry& entry = contents->groups[0].tensors[i];
    RC_ASSERT(entry.name == tensors[i].name);
    RC_ASSERT(same_bits(*entry.load(), tensors[i].tensor));
    RC_ASSERT(entry.bytes.empty() || reinterpret_cast<uintptr_t>(entry.bytes.data()) % 64 == 0U);
  }
}

TEST(TorchArchiveTest, WriterRefusesBadNames) {
  const TempFolder folder;
  const Tensor t = Tensor::zeros(DType::kF32, {1});
  expect_failure(save_torch_archive(folder / "x.pt", {{"a", t}, {"a", t}}),
                 StatusCode::kInvalidArgument, {"x.pt", "two tensors are named a"});
  expect_failure(save_torch_archive(folder / "x.pt", {{"a", t}}, "\n"),
                 StatusCode::kInvalidArgument, {"x.pt", "control character"});
  EXPECT_TRUE(folder.files().empty());
}

TEST(ZipTest, SixtyFourBitFormHoldsTheSame) {
  const TempFolder folder;
  const ArchiveFiles files = {{"a/x", "hello"}, {"a/empty", ""}, {"a/y", std::string(300, 'y')}};
  for (const uint64_t from : {uint64_t{0}, uint64_t{100}, uint64_t{0xffffffff}}) {
    write_archive(folder / "x.zip", files, from);
    const std::string bytes = read_text(folder / "x.zip");
    const auto archive = ZipArchive::parse(as_byte_span(bytes), "x.zip");
    ASSERT_OK(archive.status());
    ASSERT_EQ(archive->entries().size(), files.size());
    for (const auto& [name, data] : files) {
      ASSERT_NE(archive->find(name), nullptr);
      EXPECT_EQ(as_text(archive->find(name)->data), data);
    }
    EXPECT_EQ(archive->find("a/z"), nullptr);
  }
}

TEST(ZipTest, ManyEntries) {
  // More than 65535 need the 64-bit end record whatever their size.
  const TempFolder folder;
  ArchiveFiles files;
  for (int i = 0; i < 65'600; ++i) files.emplace_back("e" + std::to_string(i), "");
  write_archive(folder / "x.zip", files);
  const std::string bytes = read_text(folder / "x.zip");
  const auto archive = ZipArchive::parse(as_byte_span(bytes), "x.zip");
  ASSERT_OK(archive.status());
  EXPECT_EQ(archive->entries().size(), files.size());
}

TEST(Crc32Test, KnownValues) {
  EXPECT_EQ(crc32(as_byte_span("")), 0U);
  EXPECT_EQ(crc32(as_byte_span("123456789")), 0xCBF43926U);  // the catalogue's check value
  EXPECT_EQ(crc32(as_byte_span("456789"), crc32(as_byte_span("123"))), 0xCBF43926U);
  EXPECT_EQ(crc32(as_byte_span("The quick brown fox jumps over the lazy dog")), 0x414FA339U);
}

}  // namespace
}  // namespace ultraflash
