// Zip archives as PyTorch writes them: stored entries, 64-bit sizes where needed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/bytes.h"
#include "core/output_file.h"
#include "ultraflash/status.h"

namespace ultraflash {

constexpr int64_t kMaxZipEntries = 1'000'000;

struct ZipEntry {
  std::string_view name;  // in the archive's bytes
  ByteSpan data;
};

/// A view of an archive in memory. Checksums are not compared: PyTorch can leave them out, and
/// reading a checkpoint's every byte at load would cost more than it finds.
class ZipArchive {
 public:
  /// Reads the central directory of `bytes`, a whole file, which must outlive the archive.
  /// kMalformed for a missing or contradictory directory, entries outside of the file, on top of
  /// each other or of one name, and more than kMaxZipEntries; kUnsupported for compressed or
  /// encrypted entries and archives in several parts. Messages start with `label`.
  static Result<ZipArchive> parse(ByteSpan bytes, std::string_view label);

  /// In the order of the central directory.
  [[nodiscard]] const std::vector<ZipEntry>& entries() const { return entries_; }
  /// The entry with this name, or null.
  [[nodiscard]] const ZipEntry* find(std::string_view name) const;

 private:
  std::vector<ZipEntry> entries_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

/// Writes an archive of stored entries, each one's data aligned to 64 bytes.
class ZipWriter {
 public:
  /// Sizes, offsets and counts from `zip64_from` on are written in the 64-bit form; smaller values
  /// than the default exist for tests.
  static Result<ZipWriter> create(const std::filesystem::path& path,
                                  uint64_t zip64_from = 0xffffffffU);

  Status add(std::string_view name, ByteSpan data);
  /// Writes the central directory and gives the file its name.
  Status finish();

 private:
  struct Record {
    std::string name;
    uint32_t crc = 0;
    uint64_t size = 0;
    uint64_t offset = 0;  // of the local header
  };

  ZipWriter(OutputFile file, uint64_t zip64_from)
      : file_(std::move(file)), zip64_from_(zip64_from) {}

  OutputFile file_;
  uint64_t zip64_from_;
  std::vector<Record> records_;
};

}  // namespace ultraflash
