#include "core/output_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "support/files.h"
#include "support/status.h"

namespace ultraflash {
namespace {

using Names = std::vector<std::string>;

constexpr OutputFileOptions kUnbuffered{.buffer_bytes = 0};

// Runs `body` in a process of its own; true when it came to its end and said so.
bool in_child(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body() ? 0 : 1);
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(OutputFileTest, AppearsOnlyWhenCommitted) {
  const TempFolder folder;
  write_text(folder / "a", "old");
  Result<OutputFile> file = OutputFile::create(folder / "a");
  ASSERT_OK(file.status());
  ASSERT_OK(file->write(std::string_view("new")));
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(folder.files(), (Names{"a", "a.part"}));
  ASSERT_OK(file->commit());
  EXPECT_EQ(read_text(folder / "a"), "new");
  EXPECT_EQ(folder.files(), Names{"a"});
  EXPECT_EQ(file->part_path(), (folder / "a").string());
}

TEST(OutputFileTest, AbandonedPartsGoOrStayAsAskedFor) {
  const TempFolder folder;
  {
    Result<OutputFile> file = OutputFile::create(folder / "a");
    ASSERT_OK(file.status());
    ASSERT_OK(file->write(std::string_view("part")));
    OutputFile moved = *std::move(file);
    ASSERT_OK(moved.close());
  }
  EXPECT_EQ(folder.files(), Names());
  {
    Result<OutputFile> file =
        OutputFile::create(folder / "a", {.abandoned = OutputFileOptions::Abandoned::kKeep});
    ASSERT_OK(file.status());
    ASSERT_OK(file->write(std::string_view("half")));
    file->remove_part();
    file = OutputFile::create(folder / "b", {.abandoned = OutputFileOptions::Abandoned::kKeep});
    ASSERT_OK(file->write(std::string_view("half")));
  }
  EXPECT_EQ(folder.files(), Names{"b.part"});
  EXPECT_EQ(read_text(folder / "b.part"), "half");
}

TEST(OutputFileTest, LargeAndSmallWritesKeepTheirOrder) {
  const TempFolder folder;
  for (const int64_t buffer_bytes : {int64_t{0}, int64_t{5}, int64_t{1} << 20}) {
    Result<OutputFile> file = OutputFile::create(folder / "a", {.buffer_bytes = buffer_bytes});
    ASSERT_OK(file.status());
    std::string expected;
    for (int i = 0; i < 8; ++i) {
      const std::string piece(i % 2 == 0 ? 3 : 700'000 * static_cast<size_t>(i),
                              static_cast<char>('a' + i));
      ASSERT_OK(file->write(piece));
      expected += piece;
      EXPECT_EQ(file->position(), static_cast<int64_t>(expected.size()));
      EXPECT_TRUE(buffer_bytes != 0 || file->bytes_written() == file->position());
    }
    ASSERT_OK(file->commit());
    EXPECT_TRUE(read_text(folder / "a") == expected);
  }
}

TEST(OutputFileTest, SeekAndTruncateRewrite) {
  const TempFolder folder;
  Result<OutputFile> file = OutputFile::create(folder / "a");
  ASSERT_OK(file.status());
  ASSERT_OK(file->write(std::string_view("0123456789")));
  ASSERT_OK(file->seek(2));
  ASSERT_OK(file->write(std::string_view("ab")));
  EXPECT_EQ(file->size().value(), 10);
  ASSERT_OK(file->truncate(6));
  EXPECT_EQ(file->position(), 4);
  ASSERT_OK(file->truncate(3));
  EXPECT_EQ(file->position(), 3);
  ASSERT_OK(file->write(std::string_view("x")));
  ASSERT_OK(file->commit());
  EXPECT_EQ(read_text(folder / "a"), "01ax");
}

// A limit on file sizes stands for a full disk: write() fails in the same place.
TEST(OutputFileTest, AFullDiskIsOneSentenceAndLeavesTheOldFile) {
  for (const OutputFileOptions& options : {OutputFileOptions{}, kUnbuffered}) {
    const TempFolder folder;
    write_text(folder / "a", "old");
    EXPECT_TRUE(in_child([&] {
      const rlimit limit{4096, 4096};
      if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return false;
      Result<OutputFile> file = OutputFile::create(folder / "a", options);
      if (!file.ok()) return false;
      Status first = file->write(std::string(4000, 'x'));
      if (first.ok()) first = file->write(std::string(8 << 20, 'x'));
      const std::string& message = first.message();
      return first.code() == StatusCode::kIo && message.find((folder / "a.part").string()) == 0 &&
             message.find("ulimit -f") != std::string::npos &&
             file->write(std::string_view("y")).message() == message &&
             file->close().message() == message && file->commit().message() == message;
    }));
    EXPECT_EQ(read_text(folder / "a"), "old");
  }
}

TEST(OutputFileTest, WhatTheBufferHoldsFailsAtTheCommit) {
  const TempFolder folder;
  EXPECT_TRUE(in_child([&] {
    const rlimit limit{4096, 4096};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return false;
    Result<OutputFile> file = OutputFile::create(folder / "a");
    if (!file.ok() || !file->write(std::string(10'000, 'x')).ok()) return false;
    const bool refused = file->commit().code() == StatusCode::kIo;
    file->remove_part();
    return refused;
  }));
  EXPECT_EQ(folder.files(), Names());
  Result<OutputFile> device = OutputFile::create("/dev/full", {.allow_streams = true});
  ASSERT_OK(device.status());
  ASSERT_OK(device->write(std::string_view("x")));
  expect_failure(device->commit(), StatusCode::kIo, {"/dev/full", "No space left", "free some"});
}

TEST(OutputFileTest, UnusableFoldersSayWhy) {
  const TempFolder folder;
  write_text(folder / "file", "");
  std::filesystem::create_directory(folder / "d");
  expect_failure(OutputFile::create(folder / "no/a").status(), StatusCode::kNotFound,
                 {"no/a.part", "No such file", "folder exists"});
  expect_failure(OutputFile::create(folder / "file/a").status(), StatusCode::kNotFound, {"file/a"});
  expect_failure(OutputFile::create(folder / "d").status(), StatusCode::kInvalidArgument,
                 {"is a folder"});
  expect_failure(OutputFile::create("-").status(), StatusCode::kInvalidArgument,
                 {"standard output", "regular file"});
  expect_failure(OutputFile::create("/dev/null").status(), StatusCode::kInvalidArgument,
                 {"/dev/null", "regular file"});
  EXPECT_OK(OutputFile::create("/dev/null", {.allow_streams = true}).status());
  EXPECT_TRUE(in_child([&] {
    ::chmod(folder.path().c_str(), 0755);
    ::chmod((folder / "d").c_str(), 0555);
    if (::geteuid() == 0 && ::seteuid(65534) != 0) return false;  // the superuser may write
    const Status status = OutputFile::create(folder / "d/a").status();
    return status.code() == StatusCode::kIo &&
           status.message().find("ermission") != std::string::npos;
  }));
}

TEST(OutputFileTest, AFailedRenameKeepsWhatWasThere) {
  const TempFolder folder;
  {
    Result<OutputFile> file = OutputFile::create(folder / "a");
    ASSERT_OK(file.status());
    ASSERT_OK(file->write(std::string_view("new")));
    std::filesystem::create_directory(folder / "a");  // came in between
    expect_failure(file->commit(), StatusCode::kInvalidArgument, {"a: cannot be given its name"});
    EXPECT_TRUE(std::filesystem::is_directory(folder / "a"));
  }
  EXPECT_EQ(folder.files(), Names{"a"});
}

TEST(OutputFileTest, OneWriterAtATime) {
  const TempFolder folder;
  Result<OutputFile> first = OutputFile::create(folder / "a");
  ASSERT_OK(first.status());
  ASSERT_OK(first->write(std::string_view("1")));
  expect_failure(OutputFile::create(folder / "a").status(), StatusCode::kBusy,
                 {"a.part", "another program"});
  ASSERT_OK(first->commit(/*durable=*/false));
  EXPECT_EQ(read_text(folder / "a"), "1");
  write_text(folder / "a.part", "left behind");
  Result<OutputFile> second = OutputFile::create(folder / "a");
  ASSERT_OK(second.status());
  ASSERT_OK(second->commit());
  EXPECT_EQ(read_text(folder / "a"), "");
}

TEST(OutputFileTest, LinksLeadToTheFileButNeverToThePart) {
  const TempFolder folder;
  write_text(folder / "real", "old");
  write_text(folder / "other", "precious");
  std::filesystem::create_symlink("real", folder / "link");
  Result<OutputFile> file = OutputFile::create(folder / "link");
  ASSERT_OK(file.status());
  ASSERT_OK(file->write(std::string_view("new")));
  ASSERT_OK(file->commit());
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(read_text(folder / "real"), "new");
  std::filesystem::create_symlink("other", folder / "b.part");
  expect_failure(OutputFile::create(folder / "b").status(), StatusCode::kInvalidArgument,
                 {"b.part"});
  EXPECT_EQ(read_text(folder / "other"), "precious");
}

}  // namespace
}  // namespace ultraflash
