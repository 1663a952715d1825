// Safetensors, read: one file, or shards with a `*.safetensors.index.json`.
//
// Format: 8 bytes with the little-endian length of the header, the header (JSON: tensor name ->
// {dtype, shape, data_offsets}, and `__metadata__`, a map of strings), the elements. This reader is
// strict: see parse_safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"
#include "weights/tensor_entry.h"

namespace ultraflash {

constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the limit of the format's own reader
constexpr int64_t kMaxTensorsInFile = 250'000;

struct SafetensorsContents {
  std::vector<TensorEntry> tensors;  // in the order of their bytes in the file
  CheckpointMetadata metadata;
};

/// Reads the header in `bytes`, a whole file; the elements are not touched. The entries refer to
/// `bytes`, which `file` keeps alive (null: the caller does).
///
/// kMalformed, in a message that starts with `label`, for: a header longer than the file or the
/// limit above, JSON that parse_json_document refuses, a key or type it does not know, a rank over
/// 8, sizes that overflow, a byte range whose length is not that of the shape, bytes that belong to
/// two tensors or to none, and a file longer or shorter than its tensors.
Result<SafetensorsContents> parse_safetensors(ByteSpan bytes, std::string_view label,
                                              std::shared_ptr<const MappedFile> file = nullptr);

/// Maps and parses the file at `path`; also fails as MappedFile::open does.
Result<SafetensorsContents> read_safetensors(const std::filesystem::path& path);

/// The contents of a `*.safetensors.index.json`.
struct SafetensorsIndex {
  std::map<std::string, std::string> weight_map;  // tensor name -> name of the file that holds it
  std::vector<std::string> shards;                // the distinct file names, sorted
};

/// kMalformed for anything but {"metadata": {...}, "weight_map": {name: file, ...}} with plain file
/// names: a shard can only lie in the folder of its index.
Result<SafetensorsIndex> parse_safetensors_index(std::string_view text, std::string_view label);

struct ShardedContents {
  SafetensorsContents contents;  // shard after shard
  std::vector<std::filesystem::path> shards;
};

/// Reads an index and all its shards. Every tensor must be in the shard that the index names, and
/// every tensor of a shard in the index. kNotFound when a shard is missing.
Result<ShardedContents> read_sharded_safetensors(const std::filesystem::path& index_path);

}  // namespace ultraflash
