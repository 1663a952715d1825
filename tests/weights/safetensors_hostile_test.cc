// Files that a careless reader would trust.
#include <gtest/gtest.h>

#include "weights/safetensors.h"
#include "weights/safetensors_writer.h"
#include "weights_test_util.h"

namespace ultraflash {
namespace {

std::string file_of(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  file += data;
  return file;
}

std::string file_with_length(uint64_t length, std::string_view rest) {
  std::string file = file_of("", rest);
  std::memcpy(file.data(), &length, 8);
  return file;
}

struct Hostile {
  const char* name;
  std::string bytes;
  const char* cause;
};

std::vector<Hostile> hostile_files() {
  const std::string four(4, 'x');
  const std::string eight(8, 'x');
  std::string many = "{";
  for (int i = 0; i < 9; ++i) many += i == 0 ? "\"a\":{\"dtype\":\"F32\",\"shape\":[" : "1,";
  many += "1],\"data_offsets\":[0,4]}}";
  return {
      {"too_short", "abc", "truncated"},
      {"length_past_end", file_with_length(100, "{}"), "only 2 follow"},
      {"length_past_limit", file_with_length(100'000'001, "{}"), "more than the 100000000"},
      {"length_huge", file_with_length(UINT64_MAX, "{}"), "more than the 100000000"},
      {"empty_header", file_of("", ""), "does not start with '{'"},
      {"array_header", file_of("[]", ""), "does not start with '{'"},
      {"space_first", file_of(" {}", ""), "does not start with '{'"},
      {"broken_json", file_of("{\"a\":}", ""), "not valid JSON"},
      {"trailing_json", file_of("{}{}", ""), "not valid JSON"},
      {"invalid_utf8", file_of("{\"\xff\":1}", ""), "not valid JSON"},
      {"deep_json", file_of("{\"a\":" + std::string(5000, '['), ""), "deeper than 16"},
      {"duplicate_tensor",
       file_of(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
           four),
       "\"a\" appears twice"},
      {"duplicate_field",
       file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", four),
       "\"dtype\" appears twice"},
      {"not_an_object", file_of(R"({"a":7})", ""), "exactly dtype, shape and data_offsets"},
      {"missing_field", file_of(R"({"a":{"dtype":"U8","shape":[4]}})", four),
       "exactly dtype, shape and data_offsets"},
      {"extra_field",
       file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}})", four),
       "exactly dtype, shape and data_offsets"},
      {"unknown_dtype", file_of(R"({"a":{"dtype":"F99","shape":[4],"data_offsets":[0,4]}})", four),
       "unknown dtype \"F99\""},
      {"dtype_number", file_of(R"({"a":{"dtype":1,"shape":[4],"data_offsets":[0,4]}})", four),
       "unknown dtype 1"},
      {"dtype_empty", file_of(R"({"a":{"dtype":"","shape":[4],"data_offsets":[0,4]}})", four),
       "unknown dtype"},
      {"negative_size", file_of(R"({"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}})", four),
       "impossible shape"},
      {"fractional_size",
       file_of(R"({"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}})", four),
       "impossible shape"},
      {"shape_is_text", file_of(R"({"a":{"dtype":"U8","shape":"4","data_offsets":[0,4]}})", four),
       "impossible shape"},
      {"rank_nine", file_of(many, four), "impossible shape"},
      {"size_overflow",
       file_of(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}})",
               four),
       "impossible shape"},
      {"zero_hides_overflow",
       file_of(
           R"({"a":{"dtype":"U8","shape":[0,9223372036854775807,9223372036854775807],"data_offsets":[0,0]}})",
           ""),
       "impossible shape"},
      {"size_past_int64",
       file_of(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,4]}})", four),
       "impossible shape"},
      {"byte_overflow",
       file_of(R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,4]}})", four),
       "impossible shape"},
      {"offsets_reversed",
       file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", four),
       "impossible data_offsets"},
      {"offsets_negative",
       file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}})", four),
       "impossible data_offsets"},
      {"three_offsets", file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,2,4]}})", four),
       "impossible data_offsets"},
      {"offset_past_end", file_of(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", four),
       "was truncated"},
      {"wrong_length", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", four),
       "takes 4 bytes, but f32 [2] needs 8"},
      {"half_a_byte", file_of(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "xx"),
       "fraction of a byte"},
      {"overlap",
       file_of(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
           std::string(6, 'x')),
       "overlaps"},
      {"same_place",
       file_of(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
           four),
       "overlaps"},
      {"gap",
       file_of(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           eight),
       "2 bytes before b belong to no tensor"},
      {"gap_first", file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", eight),
       "4 bytes before a"},
      {"trailing_bytes", file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", eight),
       "4 bytes at the end"},
      {"empty_name", file_of(R"({"":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", four),
       "is empty"},
      {"control_in_name",
       file_of(R"({"a\u0000b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", four),
       "control character"},
      {"long_name",
       file_of(
           "{\"" + std::string(2000, 'n') + R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
           four),
       "longer than 1024"},
      {"metadata_number", file_of(R"({"__metadata__":{"a":1}})", ""), "is not a string"},
      {"metadata_array", file_of(R"({"__metadata__":[]})", ""), "not an object"},
  };
}

TEST(SafetensorsHostileTest, EachIsRefusedWithItsCause) {
  const TempFolder folder;
  for (const Hostile& hostile : hostile_files()) {
    SCOPED_TRACE(hostile.name);
    const std::string name = std::string(hostile.name) + ".safetensors";
    write_text(folder / name, hostile.bytes);
    expect_failure(read_safetensors(folder / name).status(), StatusCode::kMalformed,
                   {name, hostile.cause});
  }
}

TEST(SafetensorsHostileTest, EveryTruncationIsRefused) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "x", {{"a", random_tensor(DType::kF32, {3}, 1)},
                                            {"b", random_tensor(DType::kU8, {5}, 2)}}));
  const std::string whole = read_text(folder / "x");
  for (size_t length = 0; length < whole.size(); ++length) {
    const auto contents = parse_safetensors(as_byte_span(whole).first(length), "cut");
    ASSERT_FALSE(contents.ok()) << length;
    EXPECT_EQ(contents.status().code(), StatusCode::kMalformed);
  }
}

struct HostileIndex {
  const char* json;
  const char* cause;
};

TEST(SafetensorsHostileTest, EachIndexIsRefusedWithItsCause) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(
      folder / "s.safetensors",
      {{"a", random_tensor(DType::kF32, {3}, 1)}, {"b", random_tensor(DType::kF32, {3}, 2)}}));
  const HostileIndex table[] = {
      {R"({)", "not valid JSON"},
      {R"([])", "no \"weight_map\""},
      {R"({"metadata":{}})", "no \"weight_map\""},
      {R"({"weight_map":[]})", "no \"weight_map\""},
      {R"({"weight_map":{},"x":1})", "\"x\" does not belong"},
      {R"({"weight_map":{},"metadata":1})", "\"metadata\" does not belong"},
      {R"({"weight_map":{"a":7}})", "a has no file name"},
      {R"({"weight_map":{"a":"s.safetensors","a":"t.safetensors"}})", "appears twice"},
      {R"({"weight_map":{"":"s.safetensors"}})", "is empty"},
      {R"({"weight_map":{"a":"../s.safetensors"}})", "plain file name"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "plain file name"},
      {R"({"weight_map":{"a":"sub/s.safetensors"}})", "plain file name"},
      {R"({"weight_map":{"a":"..\\s.safetensors"}})", "plain file name"},
      {R"({"weight_map":{"a":".."}})", "plain file name"},
      {R"({"weight_map":{"a":"."}})", "plain file name"},
      {R"({"weight_map":{"a":""}})", "plain file name"},
      {R"({"weight_map":{"a":"s\u0000.safetensors"}})", "plain file name"},
      {R"({"weight_map":{"a":"s.safetensors"}})", "b is in s.safetensors, but the index does not"},
      {R"({"weight_map":{"a":"s.safetensors","b":"s.safetensors","c":"s.safetensors"}})",
       "c is not in s.safetensors"},
  };
  for (const HostileIndex& hostile : table) {
    SCOPED_TRACE(hostile.json);
    write_text(folder / "m.safetensors.index.json", hostile.json);
    expect_failure(read_sharded_safetensors(folder / "m.safetensors.index.json").status(),
                   StatusCode::kMalformed, {"m.safetensors.index.json", hostile.cause});
  }
  write_text(folder / "m.safetensors.index.json",
             R"({"weight_map":{"a":"s.safetensors","b":"gone.safetensors"}})");
  expect_failure(read_sharded_safetensors(folder / "m.safetensors.index.json").status(),
                 StatusCode::kNotFound, {"gone.safetensors"});
}

}  // namespace
}  // namespace ultraflash
