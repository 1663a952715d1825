// Builds PyTorch archives by hand, honest and hostile ones.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weights/zip.h"
#include "weights_test_util.h"

namespace ultraflash {

using ArchiveFiles = std::vector<std::pair<std::string, std::string>>;

inline void write_archive(const std::filesystem::path& path, const ArchiveFiles& files,
                          uint64_t zip64_from = 0xffffffffU) {
  Result<ZipWriter> writer = ZipWriter::create(path, zip64_from);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  for (const auto& [name, data] : files) {
    ASSERT_TRUE(writer->add(name, as_byte_span(data)).ok());
  }
  ASSERT_TRUE(writer->finish().ok());
}

// Pieces of pickles, protocol 2.
namespace pickled {

inline std::string number(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>((value >> (8 * i)) & 0xffU);
  return out;
}
inline std::string integer(int64_t value) {
  return "\x8a\x08" + number(static_cast<uint64_t>(value), 8);
}
inline std::string text(std::string_view value) {
  return "X" + number(value.size(), 4) + std::string(value);
}
inline std::string global(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string tuple(const std::vector<std::string>& items) {
  std::string out = "(";
  for (const std::string& item : items) out += item;
  return out + "t";
}
inline std::string integers(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const int64_t value : values) items.push_back(integer(value));
  return tuple(items);
}
inline std::string storage(std::string_view type, std::string_view key, int64_t count) {
  return tuple({text("storage"), global("torch", type), text(key), text("cpu"), integer(count)}) +
         "Q";
}
inline std::string tensor(const std::string& storage, int64_t offset,
                          const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") +
         tuple({storage, integer(offset), integers(sizes), integers(strides), "\x89",
                global("collections", "OrderedDict") + ")R"}) +
         "R";
}
/// {key: value, ...}, given as alternating pieces.
inline std::string dict(const std::vector<std::string>& items) {
  std::string out = "}(";
  for (const std::string& item : items) out += item;
  return out + "u";
}
inline std::string whole(const std::string& body) { return "\x80\x02" + body + "."; }

}  // namespace pickled

/// An archive with this pickle and one storage "0" of four floats 0, 1, 2, 3.
inline ArchiveFiles archive_files(const std::string& pickle) {
  const float values[4] = {0, 1, 2, 3};
  return {{"archive/data.pkl", pickle},
          {"archive/byteorder", "little"},
          {"archive/data/0", std::string(reinterpret_cast<const char*>(values), sizeof(values))},
          {"archive/version", "3\n"}};
}

}  // namespace ultraflash
