// Mapped files, names and strict JSON.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "core/output_file.h"
#include "core/utf8.h"
#include "weights/mapped_file.h"
#include "weights/names.h"
#include "weights/parallel_chunks.h"
#include "weights/strict_json.h"
#include "weights_test_util.h"

namespace ultraflash {
namespace {

TEST(MappedFileTest, ShowsTheBytesOfAFile) {
  const TempFolder folder;
  write_text(folder / "a.bin", "hello");
  const auto file = MappedFile::open(folder / "a.bin");
  ASSERT_OK(file.status());
  EXPECT_EQ(as_text((*file)->bytes()), "hello");
  for (const auto advice : {MappedFile::Advice::kSequential, MappedFile::Advice::kWillNeed,
                            MappedFile::Advice::kDontNeed}) {
    (*file)->advise(advice, (*file)->bytes());
    (*file)->advise(advice, (*file)->bytes().subspan(2, 1));
    (*file)->advise(advice, {});
  }
  EXPECT_EQ(as_text((*file)->bytes()), "hello");
}

TEST(MappedFileTest, ReplacedFileStaysReadable) {
  const TempFolder folder;
  write_text(folder / "a.bin", "old");
  const auto file = MappedFile::open(folder / "a.bin");
  ASSERT_OK(file.status());
  Result<OutputFile> output = OutputFile::create(folder / "a.bin");
  ASSERT_OK(output.status());
  ASSERT_OK(output->write(std::string_view("n")));
  ASSERT_OK(output->commit());
  EXPECT_EQ(as_text((*file)->bytes()), "old");
  EXPECT_EQ(read_text(folder / "a.bin"), "n");
}

TEST(MappedFileTest, RefusesWhatIsNoFile) {
  const TempFolder folder;
  write_text(folder / "empty", "");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_failure(MappedFile::open(folder / "missing").status(), StatusCode::kNotFound,
                 {"missing", "No such file"});
  expect_failure(MappedFile::open(folder.path()).status(), StatusCode::kInvalidArgument,
                 {folder.path().string(), "is a folder"});
  expect_failure(MappedFile::open(folder / "empty").status(), StatusCode::kMalformed,
                 {"empty", "0 bytes"});
  expect_failure(MappedFile::open(folder / "pipe").status(), StatusCode::kInvalidArgument,
                 {"pipe", "not a regular file"});
}

TEST(NamesTest, AcceptsTextAndNothingElse) {
  EXPECT_EQ(tensor_name_problem("blocks.0.ffn.0.weight"), nullptr);
  EXPECT_EQ(tensor_name_problem("gr\xc3\xbc\xc3\x9f"), nullptr);
  EXPECT_EQ(tensor_name_problem("\xf0\x9f\x8e\xac"), nullptr);
  EXPECT_EQ(tensor_name_problem(std::string(1024, 'a')), nullptr);
  for (const std::string& bad :
       {std::string(), std::string(1025, 'a'), std::string("a\nb"), std::string("a\0b", 3),
        std::string("\x7f"), std::string("\xc3"), std::string("\xc0\xaf"),
        std::string("\xed\xa0\x80"), std::string("\xe0\x80\x80"), std::string("\xf4\x90\x80\x80"),
        std::string("\xf0\x80\x80\x80"), std::string("\xff")}) {
    EXPECT_NE(tensor_name_problem(bad), nullptr) << printable(bad);
  }
}

std::vector<std::string> cleaned(std::vector<std::string> names) {
  std::vector<std::string*> pointers;
  for (std::string& name : names) pointers.push_back(&name);
  clean_tensor_names(pointers);
  return names;
}

TEST(NamesTest, CleaningRemovesTrainingWrappers) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(cleaned({"model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.q.weight",
                     "model._orig_mod.head.bias"}),
            (Names{"blocks.0.q.weight", "head.bias"}));
  EXPECT_EQ(cleaned({"module.model.a", "module.model.b"}), (Names{"a", "b"}));
  EXPECT_EQ(cleaned({"module.a", "b"}), (Names{"module.a", "b"}));
  EXPECT_EQ(cleaned({"model.a", "b"}), (Names{"model.a", "b"}));
  EXPECT_EQ(cleaned({"model.a", "_cls_pred_branch.0.weight"}),
            (Names{"a", "_cls_pred_branch.0.weight"}));
  const Names decoder = {"decoder.3.conv.0.weight", "net.0.weight", "model_orig_mod.x", "model."};
  EXPECT_EQ(cleaned(decoder), decoder);
  EXPECT_EQ(cleaned({"_orig_mod."}), (Names{"_orig_mod."}));
  EXPECT_EQ(cleaned({}), Names{});
}

TEST(StrictJsonTest, ReadsJson) {
  const auto json =
      parse_json_document(R"({"a": [1, -2, 2.5, "x", true, null], "b": {"c": {}}})", "x");
  ASSERT_OK(json.status());
  EXPECT_EQ(json->root().to_string(), R"({"a":[1,-2,2.5,"x",true,null],"b":{"c":{}}})");
  EXPECT_EQ(json->root().size(), 2U);
  EXPECT_EQ(json->root().find("b")->size(), 1U);
  EXPECT_FALSE(json->root().find("c"));
  const auto numbers = parse_json_document("[7, -7, 18446744073709551615, \"7\", []]", "x");
  ASSERT_OK(numbers.status());
  std::vector<std::optional<uint64_t>> found;
  for (const auto& [key, value] : numbers->root()) found.push_back(value.unsigned_number());
  EXPECT_EQ(found, (std::vector<std::optional<uint64_t>>{7, {}, UINT64_MAX, {}, {}}));
  EXPECT_EQ(parse_json_document("[]", "x")->root().to_string(), "[]");
  EXPECT_EQ(parse_json_document("\"\\u00e9\\n\"", "x")->root().to_string(), "\"\xc3\xa9\\n\"");
  EXPECT_EQ(parse_json_document("7", "x")->root().to_string(), "7");
}

TEST(StrictJsonTest, RefusesWhatIsDoubtful) {
  const auto refused = [](const std::string& text, const std::string& why) {
    expect_failure(parse_json_document(text, "file.json").status(), StatusCode::kMalformed,
                   {"file.json", why});
  };
  refused("", "not valid JSON");
  refused("{\"a\":1", "byte 7");
  refused("{} x", "not valid JSON");
  refused("{\"a\":1,\"a\":2}", "\"a\" appears twice");
  refused("{\"x\":{\"b\":1,\"b\":2}}", "\"b\" appears twice");
  refused("[\"\xff\"]", "not valid JSON");
  refused("[1e999]", "not valid JSON");
  refused(std::string(1000, '['), "deeper than 16");
  JsonLimits few;
  few.max_values = 3;
  expect_failure(parse_json_document("[1,2,3]", "f", few).status(), StatusCode::kMalformed,
                 {"more than 3 values"});
  JsonLimits small;
  small.max_bytes = 6;
  expect_failure(parse_json_document("[1,2,3]", "f", small).status(), StatusCode::kMalformed,
                 {"7 bytes"});
}

TEST(StrictJsonTest, TreesPassTheSameChecks) {
  const auto tree = parse_strict_json(R"({"a": [1, {"b": "x"}]})", "x");
  ASSERT_OK(tree.status());
  EXPECT_EQ(tree->dump(), R"({"a":[1,{"b":"x"}]})");
  expect_failure(parse_strict_json("{\"a\":1,\"a\":2}", "f").status(), StatusCode::kMalformed,
                 {"f", "\"a\" appears twice"});
  expect_failure(parse_strict_json(std::string(1000, '['), "f").status(), StatusCode::kMalformed,
                 {"deeper than 16"});
}

TEST(ParallelChunksTest, CoversEveryElementOnce) {
  for (const int64_t count : {0, 1, 7, 100, 1000}) {
    std::vector<int> seen(static_cast<size_t>(count));
    parallel_chunks(count, 7, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
    });
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), count);
  }
}

TEST(ParallelChunksTest, PassesExceptionsOn) {
  EXPECT_THROW(parallel_chunks(100, 1,
                               [](int64_t begin, int64_t) {
                                 if (begin == 50) throw Error(StatusCode::kDevice, "x");
                               }),
               Error);
}

}  // namespace
}  // namespace ultraflash
