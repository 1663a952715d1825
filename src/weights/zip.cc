#include "weights/zip.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "weights/crc32.h"
#include "weights/malformed.h"

// Layouts and values: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
namespace ultraflash {
namespace {

constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kEnd64LocatorSignature = 0x07064b50;
constexpr size_t kLocalBytes = 30;
constexpr size_t kCentralBytes = 46;
constexpr size_t kEndBytes = 22;
constexpr size_t kEnd64Bytes = 56;
constexpr size_t kEnd64LocatorBytes = 20;
constexpr uint16_t kEncryptedFlag = 1U << 0;
constexpr uint16_t kUtf8Flag = 1U << 11;
constexpr uint16_t kZip64Extra = 0x0001;
constexpr uint16_t kAlignmentExtra = 0xd935;  // its data: the alignment (2 bytes), then padding
constexpr uint16_t kVersionZip64 = 45;        // of the format: the first with 64-bit sizes
constexpr uint16_t kDateOf1980 = 0x0021;      // January 1st; a real date would vary the bytes
constexpr uint32_t kIn64BitForm = 0xffffffffU;
constexpr size_t kDataAlignment = 64;

struct Directory {
  uint64_t entries = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Offset of the end record: the last one whose comment reaches to the end of the file.
std::optional<size_t> find_end_record(ByteSpan bytes) {
  if (bytes.size() < kEndBytes) return std::nullopt;
  const size_t last = bytes.size() - kEndBytes;
  const size_t first = last > 0xffff ? last - 0xffff : 0;
  for (size_t offset = last + 1; offset-- > first;) {
    if (load_le<uint32_t>(bytes, offset) == kEndSignature &&
        offset + kEndBytes + load_le<uint16_t>(bytes, offset + 20) == bytes.size()) {
      return offset;
    }
  }
  return std::nullopt;
}

Status check_single_part(bool single, std::string_view label) {
  if (single) return {};
  return make_status(StatusCode::kUnsupported, "{}: is one part of a zip archive in several parts",
                     label);
}

// The 64-bit end record in front of its locator at `locator`; `narrow` holds the 32-bit values.
Result<Directory> read_end64(ByteSpan bytes, size_t locator, const Directory& narrow,
                             std::string_view label) {
  UF_TRY(check_single_part(
      load_le<uint32_t>(bytes, locator + 4) == 0 && load_le<uint32_t>(bytes, locator + 16) <= 1,
      label));
  const auto record = load_le<uint64_t>(bytes, locator + 8);
  if (locator < kEnd64Bytes || record > locator - kEnd64Bytes ||
      load_le<uint32_t>(bytes, static_cast<size_t>(record)) != kEnd64Signature ||
      load_le<uint64_t>(bytes, static_cast<size_t>(record) + 4) != locator - record - 12) {
    return malformed(label, "the zip64 end record is not where its locator says");
  }
  const auto at = static_cast<size_t>(record);
  UF_TRY(check_single_part(
      load_le<uint32_t>(bytes, at + 16) == 0 && load_le<uint32_t>(bytes, at + 20) == 0 &&
          load_le<uint64_t>(bytes, at + 24) == load_le<uint64_t>(bytes, at + 32),
      label));
  const Directory wide{load_le<uint64_t>(bytes, at + 32), load_le<uint64_t>(bytes, at + 48),
                       load_le<uint64_t>(bytes, at + 40)};
  const auto agree = [](uint64_t small, uint64_t large, uint64_t marker) {
    return small == marker || small == large;
  };
  if (!agree(narrow.entries, wide.entries, 0xffff) ||
      !agree(narrow.offset, wide.offset, kIn64BitForm) ||
      !agree(narrow.bytes, wide.bytes, kIn64BitForm)) {
    return malformed(label, "the 32-bit and the 64-bit end record of the archive differ");
  }
  if (wide.offset > record || wide.bytes != record - wide.offset) {
    return malformed(label, "the central directory does not end where the end record begins");
  }
  return wide;
}

Result<Directory> find_directory(ByteSpan bytes, std::string_view label) {
  const std::optional<size_t> end = find_end_record(bytes);
  if (!end) {
    return malformed(label,
                     "starts like a zip archive but has no end record; the file was truncated");
  }
  UF_TRY(check_single_part(
      load_le<uint16_t>(bytes, *end + 4) == 0 && load_le<uint16_t>(bytes, *end + 6) == 0 &&
          load_le<uint16_t>(bytes, *end + 8) == load_le<uint16_t>(bytes, *end + 10),
      label));
  const Directory narrow{load_le<uint16_t>(bytes, *end + 10), load_le<uint32_t>(bytes, *end + 16),
                         load_le<uint32_t>(bytes, *end + 12)};
  if (*end >= kEnd64LocatorBytes &&
      load_le<uint32_t>(bytes, *end - kEnd64LocatorBytes) == kEnd64LocatorSignature) {
    return read_end64(bytes, *end - kEnd64LocatorBytes, narrow, label);
  }
  if (narrow.offset > *end || narrow.bytes != *end - narrow.offset) {
    return malformed(label, "the central directory does not end where the end record begins");
  }
  return narrow;
}

struct CentralEntry {
  std::string_view name;
  uint64_t size = 0;
  uint64_t offset = 0;  // of the local header
  size_t record_bytes = 0;
};

// Replaces the fields that say "see the 64-bit form" by their values in `extra`.
Status read_zip64_extra(ByteSpan extra, uint64_t& stored, uint64_t& size, uint64_t& offset,
                        std::string_view label) {
  while (extra.size() >= 4) {
    const auto id = load_le<uint16_t>(extra, 0);
    const size_t length = load_le<uint16_t>(extra, 2);
    if (length > extra.size() - 4) break;
    ByteSpan field = extra.subspan(4, length);
    extra = extra.subspan(4 + length);
    if (id != kZip64Extra) continue;
    for (uint64_t* value : {&size, &stored, &offset}) {
      if (*value != kIn64BitForm) continue;
      if (field.size() < 8) return malformed(label, "an entry's 64-bit sizes are cut short");
      *value = load_le<uint64_t>(field, 0);
      field = field.subspan(8);
    }
    return {};
  }
  return malformed(label, "an entry has no 64-bit sizes where it should");
}

Result<CentralEntry> read_central_entry(ByteSpan rest, std::string_view label) {
  if (rest.size() < kCentralBytes || load_le<uint32_t>(rest, 0) != kCentralSignature) {
    return malformed(label, "the central directory is damaged");
  }
  const auto flags = load_le<uint16_t>(rest, 8);
  const auto method = load_le<uint16_t>(rest, 10);
  uint64_t stored = load_le<uint32_t>(rest, 20);
  const size_t name_bytes = load_le<uint16_t>(rest, 28);
  const size_t extra_bytes = load_le<uint16_t>(rest, 30);
  CentralEntry entry;
  entry.size = load_le<uint32_t>(rest, 24);
  entry.offset = load_le<uint32_t>(rest, 42);
  entry.record_bytes = kCentralBytes + name_bytes + extra_bytes + load_le<uint16_t>(rest, 32);
  if (entry.record_bytes > rest.size()) {
    return malformed(label, "the central directory is damaged");
  }
  entry.name = as_text(rest.subspan(kCentralBytes, name_bytes));
  const std::string shown = printable(entry.name, 120);
  if (name_bytes == 0) return malformed(label, "an entry of the archive has no name");
  if ((flags & kEncryptedFlag) != 0) {
    return make_status(StatusCode::kUnsupported, "{}: the entry {} is encrypted", label, shown);
  }
  if (method != 0) {
    return make_status(StatusCode::kUnsupported,
                       "{}: the entry {} is compressed (method {}); checkpoints hold stored "
                       "entries, save it again with torch.save",
                       label, shown, method);
  }
  if (stored == kIn64BitForm || entry.size == kIn64BitForm || entry.offset == kIn64BitForm) {
    UF_TRY(read_zip64_extra(rest.subspan(kCentralBytes + name_bytes, extra_bytes), stored,
                            entry.size, entry.offset, label));
  }
  if (stored != entry.size) {
    return malformed(label, "the stored entry {} has {} bytes in the file but {} as its size",
                     shown, stored, entry.size);
  }
  return entry;
}

// The data of `entry`, behind its local header; everything lies before `limit`.
Result<ByteSpan> locate_data(ByteSpan bytes, const CentralEntry& entry, uint64_t limit,
                             std::string_view label) {
  const std::string shown = printable(entry.name, 120);
  if (entry.offset > limit || limit - entry.offset < kLocalBytes) {
    return malformed(label, "the entry {} lies outside of the file", shown);
  }
  const auto at = static_cast<size_t>(entry.offset);
  const size_t name_bytes = load_le<uint16_t>(bytes, at + 26);
  const uint64_t header_bytes = kLocalBytes + name_bytes + load_le<uint16_t>(bytes, at + 28);
  if (load_le<uint32_t>(bytes, at) != kLocalSignature || header_bytes > limit - entry.offset ||
      as_text(bytes.subspan(at + kLocalBytes, name_bytes)) != entry.name) {
    return malformed(label, "the entry {} has no local header of its own", shown);
  }
  const uint64_t begin = entry.offset + header_bytes;
  if (entry.size > limit - begin) {
    return malformed(label, "the entry {} claims {} bytes, but only {} are left", shown, entry.size,
                     limit - begin);
  }
  return bytes.subspan(static_cast<size_t>(begin), static_cast<size_t>(entry.size));
}

}  // namespace

Result<ZipArchive> ZipArchive::parse(ByteSpan bytes, std::string_view label) {
  UF_ASSIGN(const Directory directory, find_directory(bytes, label));
  if (directory.entries > static_cast<uint64_t>(kMaxZipEntries)) {
    return malformed(label, "{} entries, more than the {} allowed", directory.entries,
                     kMaxZipEntries);
  }
  if (directory.entries > directory.bytes / kCentralBytes) {
    return malformed(label, "{} entries cannot lie in a directory of {} bytes", directory.entries,
                     directory.bytes);
  }
  ByteSpan rest =
      bytes.subspan(static_cast<size_t>(directory.offset), static_cast<size_t>(directory.bytes));
  ZipArchive archive;
  archive.entries_.reserve(static_cast<size_t>(directory.entries));
  std::vector<const std::byte*> headers;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    UF_ASSIGN(const CentralEntry entry, read_central_entry(rest, label));
    UF_ASSIGN(const ByteSpan data, locate_data(bytes, entry, directory.offset, label));
    if (!archive.by_name_.emplace(entry.name, archive.entries_.size()).second) {
      return malformed(label, "two entries are named {}", printable(entry.name, 120));
    }
    archive.entries_.push_back({entry.name, data});
    headers.push_back(bytes.data() + entry.offset);
    rest = rest.subspan(entry.record_bytes);
  }
  if (!rest.empty()) {
    return malformed(label, "the central directory has more than its {} entries",
                     directory.entries);
  }
  std::vector<size_t> by_place(headers.size());
  std::iota(by_place.begin(), by_place.end(), size_t{0});
  std::sort(by_place.begin(), by_place.end(),
            [&](size_t a, size_t b) { return headers[a] < headers[b]; });
  for (size_t i = 1; i < by_place.size(); ++i) {
    const ByteSpan before = archive.entries_[by_place[i - 1]].data;
    if (headers[by_place[i]] < before.data() + before.size()) {
      return malformed(label, "the entries {} and {} overlap",
                       printable(archive.entries_[by_place[i - 1]].name, 120),
                       printable(archive.entries_[by_place[i]].name, 120));
    }
  }
  return archive;
}

const ZipEntry* ZipArchive::find(std::string_view name) const {
  const auto position = by_name_.find(name);
  return position == by_name_.end() ? nullptr : &entries_[position->second];
}

namespace {

// Appends numbers in little-endian order.
class LittleEndian {
 public:
  LittleEndian& u16(uint64_t value) { return put(value, 2); }
  LittleEndian& u32(uint64_t value) { return put(value, 4); }
  LittleEndian& u64(uint64_t value) { return put(value, 8); }
  LittleEndian& text(std::string_view value) {
    bytes_ += value;
    return *this;
  }
  LittleEndian& zeros(size_t count) {
    bytes_.append(count, '\0');
    return *this;
  }
  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  LittleEndian& put(uint64_t value, int count) {
    append_le(bytes_, value, count);
    return *this;
  }
  std::string bytes_;
};

}  // namespace

Result<ZipWriter> ZipWriter::create(const std::filesystem::path& path, uint64_t zip64_from) {
  UF_ASSIGN(OutputFile file, OutputFile::create(path.string()));
  return ZipWriter(std::move(file), zip64_from);
}

Status ZipWriter::add(std::string_view name, ByteSpan data) {
  UF_CHECK(!name.empty() && name.size() <= 0xffff, "an entry's name of {} bytes", name.size());
  const auto offset = static_cast<uint64_t>(file_.position());
  const uint64_t size = data.size();
  const uint32_t crc = crc32(data);
  const bool wide = size >= zip64_from_;
  const size_t before_padding = kLocalBytes + name.size() + (wide ? 20 : 0) + 6;
  const size_t padding =
      (kDataAlignment - (offset + before_padding) % kDataAlignment) % kDataAlignment;

  LittleEndian header;
  header.u32(kLocalSignature).u16(kVersionZip64).u16(kUtf8Flag).u16(/*stored*/ 0);
  header.u16(/*time*/ 0).u16(kDateOf1980).u32(crc);
  header.u32(wide ? kIn64BitForm : size).u32(wide ? kIn64BitForm : size);
  header.u16(name.size()).u16((wide ? 20 : 0) + 6 + padding).text(name);
  if (wide) header.u16(kZip64Extra).u16(16).u64(size).u64(size);
  header.u16(kAlignmentExtra).u16(2 + padding).u16(kDataAlignment).zeros(padding);
  UF_TRY(file_.write(header.bytes()));
  UF_TRY(file_.write(data));
  records_.push_back({std::string(name), crc, size, offset});
  return {};
}

Status ZipWriter::finish() {
  const auto directory = static_cast<uint64_t>(file_.position());
  for (const auto& [name, crc, size, offset] : records_) {
    const bool wide_size = size >= zip64_from_;
    const bool wide_offset = offset >= zip64_from_;
    LittleEndian extra;
    if (wide_size || wide_offset) {
      extra.u16(kZip64Extra).u16((wide_size ? 16 : 0) + (wide_offset ? 8 : 0));
      if (wide_size) extra.u64(size).u64(size);
      if (wide_offset) extra.u64(offset);
    }
    LittleEndian entry;
    entry.u32(kCentralSignature).u16(kVersionZip64).u16(kVersionZip64).u16(kUtf8Flag);
    entry.u16(/*stored*/ 0).u16(/*time*/ 0).u16(kDateOf1980).u32(crc);
    entry.u32(wide_size ? kIn64BitForm : size).u32(wide_size ? kIn64BitForm : size);
    entry.u16(name.size()).u16(extra.bytes().size()).u16(/*comment*/ 0).u16(/*part*/ 0);
    entry.u16(/*internal*/ 0).u32(/*external*/ 0).u32(wide_offset ? kIn64BitForm : offset);
    entry.text(name).text(extra.bytes());
    UF_TRY(file_.write(entry.bytes()));
  }
  const auto end = static_cast<uint64_t>(file_.position());
  const uint64_t bytes = end - directory;
  const uint64_t count = records_.size();
  const bool wide = end >= zip64_from_ || count >= 0xffff;
  LittleEndian tail;
  if (wide) {
    tail.u32(kEnd64Signature).u64(kEnd64Bytes - 12).u16(kVersionZip64).u16(kVersionZip64);
    tail.u32(/*part*/ 0).u32(/*part of the directory*/ 0).u64(count).u64(count).u64(bytes);
    tail.u64(directory);
    tail.u32(kEnd64LocatorSignature).u32(/*part*/ 0).u64(end).u32(/*parts*/ 1);
  }
  tail.u32(kEndSignature).u16(/*part*/ 0).u16(/*part of the directory*/ 0);
  tail.u16(wide ? 0xffff : count).u16(wide ? 0xffff : count);
  tail.u32(wide ? kIn64BitForm : bytes).u32(wide ? kIn64BitForm : directory).u16(/*comment*/ 0);
  UF_TRY(file_.write(tail.bytes()));
  return file_.commit();
}

}  // namespace ultraflash
