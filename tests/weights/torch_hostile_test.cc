// PyTorch files that a careless reader would trust, or run.
#include <gtest/gtest.h>

#include <functional>

#include "torch_test_util.h"
#include "weights/torch_archive.h"

namespace ultraflash {
namespace {

using namespace pickled;  // NOLINT(google-build-using-namespace): a vocabulary for this file

std::string floats4() { return storage("FloatStorage", "0", 4); }

struct HostilePickle {
  const char* name;
  std::string pickle;
  StatusCode code;
  const char* cause;
};

// Lists of 16 references to the list before: 16^depth leaves when unfolded.
std::string exponential_lists(int depth) {
  std::vector<std::string> items = {text("0"), "](K\x01}eq" + number(0, 1)};
  for (int level = 1; level <= depth; ++level) {
    std::string list = "](";
    for (int i = 0; i < 16; ++i) list += "h" + number(static_cast<uint64_t>(level - 1), 1);
    items.push_back(text(std::to_string(level)));
    items.push_back(list + "eq" + number(static_cast<uint64_t>(level), 1));
  }
  return whole(dict(items));
}

std::string wrapped(const std::string& value) {
  return global("torch._utils", "_rebuild_parameter") + tuple({value, "\x88", "}"}) + "R";
}

std::vector<HostilePickle> hostile_pickles() {
  const auto bad = StatusCode::kMalformed;
  const std::string good = tensor(floats4(), 0, {4}, {1});
  std::string deep = "}" + text("a");
  for (int i = 0; i < 100; ++i) deep += "}" + text("a");
  deep += "K\x01";
  for (int i = 0; i <= 100; ++i) deep += "s";
  return {
      {"os_system", whole(global("posix", "system") + tuple({text("true")}) + "R"), bad,
       "posix.system"},
      {"eval", whole(global("__builtin__", "eval") + tuple({text("1")}) + "R"), bad,
       "__builtin__.eval"},
      {"getattr", whole(dict({text("a"), global("builtins", "getattr")})), bad, "builtins.getattr"},
      {"load_from_bytes", whole(global("torch.storage", "_load_from_bytes") + ")R"), bad,
       "torch.storage._load_from_bytes"},
      {"protocol_0", "cposix\nsystem\n(S'true'\ntR.", bad, "protocol number"},
      {"protocol_4", "\x80\x04\x95" + number(2, 8) + "}.", bad, "protocol 4"},
      {"stack_global", whole(text("posix") + text("system") + "\x93"), bad, "STACK_GLOBAL"},
      {"inst", whole("(iposix\nsystem\n"), bad, "INST"},
      {"obj", whole("(" + global("collections", "OrderedDict") + "o"), bad, "OBJ"},
      {"newobj", whole(global("collections", "OrderedDict") + ")\x81"), bad, "NEWOBJ"},
      {"extension", whole("\x82\x01"), bad, "EXT1"},
      {"pop", whole("}0"), bad, "POP"},
      {"unknown_opcode", whole("\xff"), bad, "0xff (unknown)"},
      {"build_on_tensor", whole(good + "}b"), bad, "BUILD"},
      {"reduce_text", whole(text("a") + ")R"), bad, "call of something that is not a class"},
      {"reduce_no_tuple", whole(global("torch", "Size") + "}R"), bad, "call of something"},
      {"ordered_dict_arguments", whole(global("collections", "OrderedDict") + tuple({"}"}) + "R"),
       bad, "with arguments"},
      {"storage_called", whole(dict({text("a"), global("torch", "FloatStorage") + ")R"})), bad,
       "a calls torch.FloatStorage, which rebuilds no tensor"},
      {"class_alone", whole(global("torch", "Size")), bad, "a class instead of data"},
      {"endless_class",
       "\x80\x02"
       "c" +
           std::string(600, 'x'),
       bad, "class name without end"},
      {"empty", "", bad, "middle of an instruction"},
      {"no_stop", "\x80\x02}", bad, "middle of an instruction"},
      {"stop_only", whole(""), bad, "0 values instead of one"},
      {"two_values", whole("}}"), bad, "2 values instead of one"},
      {"open_mark", whole("}("), bad, "instead of one"},
      {"trailing", whole("}") + "x", bad, "1 bytes follow the end"},
      {"underflow", whole("R"), bad, "too few values"},
      {"underflow_tuple", whole("K\x01\x86"), bad, "too few values"},
      {"no_mark", whole("}u"), bad, "finds no mark"},
      {"below_mark", whole("}(s"), bad, "too few values"},
      {"odd_items", whole("}(K\x01u"), bad, "not a dictionary"},
      {"append_to_dict",
       whole("}K\x01"
             "a"),
       bad, "not a list"},
      {"memo_unset", whole("h\x05"), bad, "never set"},
      {"memo_huge", whole("}r\xff\xff\xff\xff"), bad, "too large"},
      {"memo_empty", whole("q" + number(0, 1)), bad, "nothing to remember"},
      {"text_past_end", whole("X\xff\xff\x0f" + number(0, 1)), bad, "middle of an instruction"},
      {"text_huge", whole("X\xff\xff\xff\xff"), bad, "at most 1048576"},
      {"long_cut", "\x80\x02\x8a\xff", bad, "middle of an instruction"},
      {"contains_itself", whole("}q" + number(0, 1) + text("a") + "h" + number(0, 1) + "s"), bad,
       "deeper than 32"},
      {"deep", whole(deep), bad, "deeper than 32"},
      {"exponential", exponential_lists(12), bad, "unfold into more than"},
      {"duplicate_key", whole(dict({text("a"), good, text("a"), good})), bad,
       "\"a\" appears twice"},
      {"ambiguous_path",
       whole(dict({text("g"), dict({text("a.b"), good, text("a"), dict({text("b"), good})})})), bad,
       "two tensors are named a.b"},
      {"ambiguous_group",
       whole(dict({integer(1), dict({text("a"), good}), text("1"), dict({text("a"), good})})), bad,
       "two dictionaries have the key 1"},
      {"tuple_key", whole(dict({")", good})), bad, "no short text or integer"},
      {"empty_name", whole(dict({text(""), good})), bad, "is empty"},
      {"control_in_name", whole(dict({text("a\nb"), good})), bad, "control character"},
      {"long_name", whole(dict({text(std::string(1025, 'n')), good})), bad, "no short text"},
      {"tensor_few_arguments",
       whole(dict({text("a"), global("torch._utils", "_rebuild_tensor_v2") + ")R"})), bad,
       "a is a tensor in an unknown form"},
      {"parameter_of_nothing",
       whole(dict({text("a"), global("torch._utils", "_rebuild_parameter") +
                                  tuple({"N", "\x88", "N"}) + "R"})),
       bad, "a parameter without a tensor"},
      {"wrapped_too_often", whole(dict({text("a"), wrapped(wrapped(wrapped(wrapped(good))))})), bad,
       "wrapped more than 3 times"},
      {"storage_not_persistent", whole(dict({text("a"), tensor("}", 0, {4}, {1})})), bad,
       "storage in an unknown form"},
      {"storage_id_text", whole(dict({text("a"), tensor(text("0") + "Q", 0, {4}, {1})})), bad,
       "storage in an unknown form"},
      {"storage_missing",
       whole(dict({text("a"), tensor(storage("FloatStorage", "7", 4), 0, {4}, {1})})), bad,
       "storage 7, which is not in the archive"},
      {"storage_escape",
       whole(dict({text("a"), tensor(storage("FloatStorage", "../data.pkl", 4), 0, {4}, {1})})),
       bad, "not in the archive"},
      {"storage_larger",
       whole(dict({text("a"), tensor(storage("FloatStorage", "0", 5), 0, {4}, {1})})), bad,
       "which has 16 bytes"},
      {"storage_negative",
       whole(dict({text("a"), tensor(storage("FloatStorage", "0", -4), 0, {4}, {1})})), bad,
       "storage in an unknown form"},
      {"storage_overflow",
       whole(dict({text("a"), tensor(storage("FloatStorage", "0", INT64_MAX), 0, {4}, {1})})), bad,
       "which has 16 bytes"},
      {"storage_class", whole(dict({text("a"), tensor(storage("float32", "0", 4), 0, {4}, {1})})),
       bad, "torch.float32 for a storage"},
      {"past_end", whole(dict({text("a"), tensor(floats4(), 1, {4}, {1})})), bad,
       "past the end of storage 0 with 4"},
      {"stride_past_end", whole(dict({text("a"), tensor(floats4(), 0, {2, 2}, {3, 1})})), bad,
       "past the end"},
      {"negative_offset", whole(dict({text("a"), tensor(floats4(), -1, {2}, {1})})), bad,
       "impossible shape, stride or offset"},
      {"negative_stride", whole(dict({text("a"), tensor(floats4(), 3, {2}, {-1})})), bad,
       "impossible shape, stride or offset"},
      {"negative_size", whole(dict({text("a"), tensor(floats4(), 0, {-1}, {1})})), bad,
       "impossible shape, stride or offset"},
      {"rank_mismatch", whole(dict({text("a"), tensor(floats4(), 0, {2, 2}, {1})})), bad,
       "impossible shape, stride or offset"},
      {"rank_nine",
       whole(dict({text("a"),
                   tensor(floats4(), 0, std::vector<int64_t>(9, 1), std::vector<int64_t>(9, 1))})),
       bad, "impossible shape, stride or offset"},
      {"size_overflow",
       whole(dict({text("a"), tensor(floats4(), 0, {INT64_MAX, INT64_MAX}, {1, 1})})), bad,
       "impossible shape, stride or offset"},
      {"reach_overflow",
       whole(dict({text("a"), tensor(floats4(), 0, {3, 3}, {INT64_MAX / 2, INT64_MAX / 2})})), bad,
       "past the end"},
      {"offset_overflow", whole(dict({text("a"), tensor(floats4(), INT64_MAX, {2}, {INT64_MAX})})),
       bad, "past the end"},
      {"expanded", whole(dict({text("a"), tensor(floats4(), 0, {1'000'000, 1'000'000}, {0, 0})})),
       StatusCode::kUnsupported, "repeats the elements"},
  };
}

TEST(TorchHostileTest, EachPickleIsRefusedWithItsCause) {
  const TempFolder folder;
  for (const HostilePickle& hostile : hostile_pickles()) {
    SCOPED_TRACE(hostile.name);
    const std::string name = std::string(hostile.name) + ".pt";
    write_archive(folder / name, archive_files(hostile.pickle));
    expect_failure(read_torch_archive(folder / name).status(), hostile.code, {name, hostile.cause});
  }
}

TEST(TorchHostileTest, PythonWrittenAttackIsRefused) {
  expect_failure(read_torch_archive(fixture("os_system.pt")).status(), StatusCode::kMalformed,
                 {"os_system.pt", "posix.system", "refused"});
}

TEST(TorchHostileTest, OtherFormsOfTorchFilesAreNamed) {
  expect_failure(read_torch_archive(fixture("script.pt")).status(), StatusCode::kUnsupported,
                 {"script.pt", "TorchScript", "state_dict"});
  expect_failure(read_torch_archive(fixture("protocol4.pt")).status(), StatusCode::kMalformed,
                 {"protocol4.pt", "protocol 4", "default protocol 2"});
  expect_failure(read_torch_archive(fixture("expanded.pt")).status(), StatusCode::kUnsupported,
                 {"expanded.pt", "x repeats", ".contiguous()"});
}

TEST(TorchHostileTest, LimitsOfThePickle) {
  const TempFolder folder;
  const auto expect_refused = [&](const std::string& pickle, const char* cause) {
    write_archive(folder / "big.pt", archive_files(pickle));
    expect_failure(read_torch_archive(folder / "big.pt").status(), StatusCode::kMalformed,
                   {"big.pt", cause});
  };
  expect_refused(whole(std::string(2 << 20, 'N')), "too many values");
  expect_refused(whole(std::string(2 << 20, '(')), "too many marks");
  std::string tuples = "]";
  for (int i = 0; i < (2 << 20); ++i) tuples += ")a";
  expect_refused(whole(tuples), "more than 1048576 objects");
  std::string values = "]";
  for (int i = 0; i < (9 << 20); ++i) values += "Na";
  expect_refused(whole(values), "too many values");
  expect_refused(std::string((64 << 20) + 1, 'N'), "at most 67108864");
}

// Archives whose directory lies.

std::string archive_bytes(const ArchiveFiles& files) {
  const TempFolder folder;
  write_archive(folder / "x", files);
  return read_text(folder / "x");
}

void patch(std::string& bytes, size_t offset, uint64_t value, int count) {
  bytes.replace(offset, static_cast<size_t>(count), number(value, count));
}

size_t nth(const std::string& bytes, std::string_view signature, int n) {
  size_t at = bytes.find(signature);
  while (n-- > 0) at = bytes.find(signature, at + 1);
  return at;
}

constexpr std::string_view kLocal("PK\x03\x04", 4);
constexpr std::string_view kCentral("PK\x01\x02", 4);
constexpr std::string_view kEnd("PK\x05\x06", 4);

struct HostileZip {
  const char* name;
  std::function<void(std::string&)> damage;
  StatusCode code;
  const char* cause;
};

TEST(TorchHostileTest, EachArchiveIsRefusedWithItsCause) {
  const std::string good =
      archive_bytes(archive_files(whole(dict({text("a"), tensor(floats4(), 0, {4}, {1})}))));
  ASSERT_OK(parse_torch_archive(as_byte_span(good), "good").status());
  const auto bad = StatusCode::kMalformed;
  const HostileZip table[] = {
      {"no_end", [](std::string& b) { b.resize(b.size() - 1); }, bad, "truncated"},
      {"trailing_byte", [](std::string& b) { b += 'x'; }, bad, "no end record"},
      {"comment_too_long", [](std::string& b) { patch(b, b.size() - 2, 5, 2); }, bad,
       "no end record"},
      {"two_parts", [](std::string& b) { patch(b, b.rfind(kEnd) + 4, 1, 2); },
       StatusCode::kUnsupported, "several parts"},
      {"directory_elsewhere", [](std::string& b) { patch(b, b.rfind(kEnd) + 16, 0xfffffff0U, 4); },
       bad, "central directory does not end"},
      {"directory_short", [](std::string& b) { patch(b, b.rfind(kEnd) + 12, 10, 4); }, bad,
       "central directory does not end"},
      {"fewer_entries",
       [](std::string& b) {
         patch(b, b.rfind(kEnd) + 8, 3, 2);
         patch(b, b.rfind(kEnd) + 10, 3, 2);
       },
       bad, "more than its 3 entries"},
      {"more_entries",
       [](std::string& b) {
         patch(b, b.rfind(kEnd) + 8, 5, 2);
         patch(b, b.rfind(kEnd) + 10, 5, 2);
       },
       bad, "central directory is damaged"},
      {"absurd_entries",
       [](std::string& b) {
         patch(b, b.rfind(kEnd) + 8, 60000, 2);
         patch(b, b.rfind(kEnd) + 10, 60000, 2);
       },
       bad, "cannot lie in a directory"},
      {"compressed", [](std::string& b) { patch(b, nth(b, kCentral, 0) + 10, 8, 2); },
       StatusCode::kUnsupported, "archive/data.pkl is compressed (method 8)"},
      {"encrypted", [](std::string& b) { patch(b, nth(b, kCentral, 0) + 8, 1, 2); },
       StatusCode::kUnsupported, "encrypted"},
      {"sizes_differ", [](std::string& b) { patch(b, nth(b, kCentral, 0) + 24, 1, 4); }, bad,
       "as its size"},
      {"entry_past_end",
       [](std::string& b) {
         patch(b, nth(b, kCentral, 2) + 20, 1 << 20, 4);
         patch(b, nth(b, kCentral, 2) + 24, 1 << 20, 4);
       },
       bad, "claims 1048576 bytes"},
      {"header_past_end",
       [](std::string& b) { patch(b, nth(b, kCentral, 0) + 42, 0xffffff00U, 4); }, bad,
       "outside of the file"},
      {"no_local_header", [](std::string& b) { patch(b, nth(b, kCentral, 0) + 42, 1, 4); }, bad,
       "no local header of its own"},
      {"others_header",
       [](std::string& b) { patch(b, nth(b, kCentral, 0) + 42, nth(b, kLocal, 1), 4); }, bad,
       "no local header of its own"},
      {"missing_wide_size",
       [](std::string& b) { patch(b, nth(b, kCentral, 0) + 24, 0xffffffffU, 4); }, bad,
       "no 64-bit sizes"},
      {"name_past_end", [](std::string& b) { patch(b, nth(b, kCentral, 3) + 28, 60000, 2); }, bad,
       "central directory is damaged"},
      {"nameless", [](std::string& b) { patch(b, nth(b, kCentral, 3) + 28, 0, 2); }, bad,
       "no name"},
      {"big_endian", [](std::string& b) { b.replace(b.find("little"), 6, "biglit"); },
       StatusCode::kUnsupported, "byte order \"biglit\""},
      {"future_version", [](std::string& b) { b.replace(b.find("3\n"), 2, "99"); },
       StatusCode::kUnsupported, "archive version \"99\""},
  };
  const TempFolder folder;
  for (const HostileZip& hostile : table) {
    SCOPED_TRACE(hostile.name);
    const std::string name = std::string(hostile.name) + ".pt";
    std::string bytes = good;
    hostile.damage(bytes);
    write_text(folder / name, bytes);
    expect_failure(read_torch_archive(folder / name).status(), hostile.code, {name, hostile.cause});
  }
}

TEST(TorchHostileTest, DamagedSixtyFourBitFormIsRefused) {
  const TempFolder folder;
  write_archive(folder / "x", archive_files(whole("}")), /*zip64_from=*/0);
  const std::string good = read_text(folder / "x");
  ASSERT_OK(parse_torch_archive(as_byte_span(good), "good").status());
  constexpr std::string_view kEnd64("PK\x06\x06", 4);
  constexpr std::string_view kLocator("PK\x06\x07", 4);
  const auto refused = [&](size_t offset, uint64_t value, int count, StatusCode code,
                           const char* cause) {
    std::string bytes = good;
    patch(bytes, offset, value, count);
    expect_failure(parse_torch_archive(as_byte_span(bytes), "x.pt").status(), code,
                   {"x.pt", cause});
  };
  const size_t end64 = good.rfind(kEnd64);
  const size_t locator = good.rfind(kLocator);
  const size_t entry = nth(good, kCentral, 0);
  const size_t extra = entry + 46 + std::string_view("archive/data.pkl").size();
  const auto bad = StatusCode::kMalformed;
  refused(locator + 8, end64 + 1, 8, bad, "not where its locator says");
  refused(locator + 8, UINT64_MAX, 8, bad, "not where its locator says");
  refused(locator + 16, 2, 4, StatusCode::kUnsupported, "several parts");
  refused(end64 + 4, 45, 8, bad, "not where its locator says");
  refused(end64 + 24, 1, 8, StatusCode::kUnsupported, "several parts");
  refused(end64 + 40, 7, 8, bad, "does not end where");
  refused(end64 + 48, UINT64_MAX, 8, bad, "does not end where");
  refused(good.rfind(kEnd) + 12, 7, 4, bad, "differ");
  refused(extra, 0x7777, 2, bad, "no 64-bit sizes");
  refused(extra + 2, 4, 2, bad, "cut short");
  refused(extra + 2, 60000, 2, bad, "no 64-bit sizes");
  refused(extra + 4, UINT64_MAX, 8, bad, "as its size");
  refused(extra + 20, UINT64_MAX, 8, bad, "outside of the file");
}

TEST(TorchHostileTest, EntriesOnTopOfEachOtherAreRefused) {
  // The outer entry's data hold a whole second entry: the trick of overlapping zip bombs.
  const std::string inner = archive_bytes({{"archive/data/0", std::string(64, 'x')}});
  const std::string local = inner.substr(0, inner.find(kCentral));
  std::string bytes = archive_bytes({{"archive/data.pkl", local}, {"archive/data/0", "y"}});
  const size_t second = nth(bytes, kCentral, 1);
  patch(bytes, second + 20, 64, 4);
  patch(bytes, second + 24, 64, 4);
  patch(bytes, second + 42, bytes.find(kLocal, 4), 4);
  expect_failure(parse_torch_archive(as_byte_span(bytes), "bomb.pt").status(),
                 StatusCode::kMalformed, {"bomb.pt", "overlap"});
}

TEST(TorchHostileTest, ArchivesWithoutOnePickleAreRefused) {
  const auto expect_refused = [](const ArchiveFiles& files, const char* cause) {
    const std::string bytes = archive_bytes(files);
    expect_failure(parse_torch_archive(as_byte_span(bytes), "x.pt").status(),
                   StatusCode::kMalformed, {"x.pt", cause});
  };
  expect_refused({}, "no data.pkl");
  expect_refused({{"data.pkl", "}."}}, "no data.pkl");
  expect_refused({{"word/document.xml", ""}}, "no PyTorch checkpoint");
  expect_refused({{"a/data.pkl", ""}, {"b/data.pkl", ""}}, "two data.pkl");
  expect_refused({{"a/data.pkl", ""}, {"a/data.pkl", ""}}, "two entries are named a/data.pkl");
}

TEST(TorchHostileTest, EveryTruncationIsRefused) {
  for (const char* name : {"training.pt", "views.pt"}) {
    const std::string whole_file = read_text(fixture(name));
    ASSERT_FALSE(whole_file.empty());
    for (size_t length = 0; length < whole_file.size(); ++length) {
      const auto contents = parse_torch_archive(as_byte_span(whole_file).first(length), "cut");
      ASSERT_FALSE(contents.ok()) << name << " " << length;
    }
  }
}

}  // namespace
}  // namespace ultraflash
