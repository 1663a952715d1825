#include "core/input_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <numeric>
#include <thread>

#include "support/files.h"
#include "support/status.h"

namespace ultraflash {
namespace {

std::string pattern(size_t size) {
  std::string text(size, '\0');
  std::iota(text.begin(), text.end(), '\0');
  return text;
}

std::string as_string(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

TEST(InputFileTest, ReadsPeeksAndSeeks) {
  const TempFolder folder;
  const std::string text = pattern(10'000);
  write_text(folder / "a", text);
  const std::vector<uint8_t> bytes(text.begin(), text.end());
  Result<InputFile> opened = InputFile::open(folder / "a");
  ASSERT_OK(opened.status());
  for (InputFile* file : {&*opened, new InputFile(InputFile::over(bytes, "memory"))}) {
    const std::unique_ptr<InputFile> owner(file == &*opened ? nullptr : file);
    EXPECT_EQ(file->size(), 10'000);
    const auto peeked = file->peek(100);
    ASSERT_OK(peeked.status());
    EXPECT_EQ(std::string(peeked->begin(), peeked->end()), text.substr(0, 100));
    std::vector<uint8_t> out(150);
    EXPECT_EQ(file->read(out).value(), 150);
    EXPECT_EQ(as_string(out), text.substr(0, 150));
    ASSERT_OK(file->seek(9'990));
    EXPECT_EQ(file->read(out).value(), 10);
    ASSERT_OK(file->seek(20'000));
    EXPECT_EQ(file->read(out).value(), 0);
    ASSERT_OK(file->seek(5'000));
    const auto rest = file->read_rest(5'000);
    ASSERT_OK(rest.status());
    EXPECT_EQ(as_string(*rest), text.substr(5'000));
  }
}

TEST(InputFileTest, MovedFilesGoOn) {
  const TempFolder folder;
  write_text(folder / "a", "abc");
  Result<InputFile> first = InputFile::open(folder / "a");
  ASSERT_OK(first.status());
  ASSERT_OK(first->peek(1).status());
  InputFile second = *std::move(first);
  EXPECT_EQ(as_string(second.read_rest(3).value()), "abc");
}

TEST(InputFileTest, RestIsBounded) {
  const TempFolder folder;
  write_text(folder / "a", pattern(3'000'000));
  const auto rest = [&](int64_t max_bytes) {
    return InputFile::open(folder / "a")->read_rest(max_bytes);
  };
  EXPECT_EQ(rest(3'000'000)->size(), 3'000'000U);
  expect_failure(rest(2'999'999).status(), StatusCode::kUnsupported, {"3000000", "2999999"});
  expect_failure(InputFile::open("/dev/zero")->read_rest(5'000'000).status(),
                 StatusCode::kUnsupported, {"/dev/zero", "5000000"});
  EXPECT_FALSE(InputFile::open("/proc/self/status")->read_rest(1'000'000)->empty());
  // A size that no memory could hold is refused by what the system says of it.
  std::filesystem::resize_file(folder / "a", uintmax_t{1} << 42);
  expect_failure(rest(int64_t{1} << 30).status(), StatusCode::kUnsupported, {"4398046511104"});
}

TEST(InputFileTest, WhatCannotBeReadSaysWhy) {
  const TempFolder folder;
  for (const auto open : {InputFile::open, InputFile::open_regular}) {
    expect_failure(open(folder / "missing").status(), StatusCode::kNotFound,
                   {"missing", "No such file", "check the spelling"});
    expect_failure(open(folder.path()).status(), StatusCode::kInvalidArgument,
                   {folder.path().string(), "is a folder"});
  }
}

TEST(InputFileTest, OnlyOpenTakesPipesAndOpenRegularDoesNotWaitForThem) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  expect_failure(InputFile::open_regular(path).status(), StatusCode::kInvalidArgument,
                 {"pipe", "not a regular file"});
  expect_failure(InputFile::open_regular("/dev/zero").status(), StatusCode::kInvalidArgument,
                 {"/dev/zero"});
  std::thread writer([&] { write_text(path, "through"); });
  Result<InputFile> file = InputFile::open(path);
  ASSERT_OK(file.status());
  EXPECT_FALSE(file->seekable());
  EXPECT_EQ(as_string(file->read_rest(100).value()), "through");
  writer.join();
}

}  // namespace
}  // namespace ultraflash
