#include "weights/safetensors.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "weights/malformed.h"
#include "weights/names.h"
#include "weights/strict_json.h"

namespace ultraflash {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxShards = 4096;

std::optional<std::vector<int64_t>> integers(JsonValue value, size_t max_count) {
  if (!value.is_array() || value.size() > max_count) return std::nullopt;
  std::vector<int64_t> out;
  for (const auto& [key, item] : value) {
    const std::optional<uint64_t> number = item.unsigned_number();
    if (!number || *number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    out.push_back(static_cast<int64_t>(*number));
  }
  return out;
}

Result<CheckpointMetadata> read_metadata(JsonValue value, std::string_view label) {
  CheckpointMetadata metadata;
  if (!value.is_object()) return malformed(label, "__metadata__ is not an object of strings");
  for (const auto& [key, item] : value) {
    const std::optional<std::string_view> text = item.text();
    if (!text) return malformed(label, "__metadata__ \"{}\" is not a string", printable(key, 80));
    metadata.emplace(key, *text);
  }
  return metadata;
}

// One member of the header. `data` is what follows the header.
Result<TensorEntry> read_entry(std::string_view name, JsonValue value, ByteSpan data,
                               std::string_view label) {
  if (const char* problem = tensor_name_problem(name)) {
    return malformed(label, "the tensor name \"{}\" {}", printable(name, 80), problem);
  }
  const std::string shown = printable(name);
  const std::optional<JsonValue> dtype_value = value.find("dtype");
  const std::optional<JsonValue> shape_value = value.find("shape");
  const std::optional<JsonValue> offsets_value = value.find("data_offsets");
  if (value.size() != 3 || !dtype_value || !shape_value || !offsets_value) {
    return malformed(label, "{} does not have exactly dtype, shape and data_offsets", shown);
  }
  const ElementType* type = element_type_from_safetensors(dtype_value->text().value_or(""));
  if (type == nullptr) {
    return malformed(label, "{} has the unknown dtype {}", shown,
                     printable(dtype_value->to_string(40), 40));
  }
  const std::optional<std::vector<int64_t>> sizes = integers(*shape_value, Shape::kMaxRank);
  const std::optional<Shape> shape = sizes ? checked_shape(*sizes) : std::nullopt;
  if (!shape) {
    return malformed(label, "{} has the impossible shape {} (at most {} sizes)", shown,
                     printable(shape_value->to_string(120), 120), Shape::kMaxRank);
  }
  const std::optional<std::vector<int64_t>> offsets = integers(*offsets_value, 2);
  if (!offsets || offsets->size() != 2 || (*offsets)[0] > (*offsets)[1]) {
    return malformed(label, "{} has the impossible data_offsets {}", shown,
                     printable(offsets_value->to_string(80), 80));
  }
  const int64_t begin = (*offsets)[0];
  const int64_t end = (*offsets)[1];
  if (end > static_cast<int64_t>(data.size())) {
    return malformed(label,
                     "{} ends at byte {} of the data, but the file has only {}; it was truncated",
                     shown, end, data.size());
  }
  const std::optional<int64_t> needed = dense_bytes(*type, *shape);
  if (!needed || *needed != end - begin) {
    return malformed(label, "{} takes {} bytes, but {} {} needs {}", shown, end - begin, type->name,
                     shape->to_string(), needed ? std::to_string(*needed) : "a fraction of a byte");
  }
  TensorEntry entry;
  entry.name = name;
  entry.type = type;
  entry.shape = *shape;
  entry.strides = TensorEntry::dense_strides(*shape);
  entry.bytes = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  return entry;
}

// Every byte of `data` belongs to exactly one of `tensors`, which are sorted by place.
Status check_coverage(const std::vector<TensorEntry>& tensors, ByteSpan data,
                      std::string_view label) {
  const std::byte* next = data.data();
  for (const TensorEntry& entry : tensors) {
    const std::byte* begin = entry.bytes.data();
    if (begin < next) {
      return malformed(label, "{} overlaps the tensor before it by {} bytes", printable(entry.name),
                       next - begin);
    }
    if (begin > next) {
      return malformed(label, "{} bytes before {} belong to no tensor", begin - next,
                       printable(entry.name));
    }
    next = begin + entry.bytes.size();
  }
  const auto rest = static_cast<int64_t>(data.size()) - (next - data.data());
  if (rest != 0) return malformed(label, "{} bytes at the end belong to no tensor", rest);
  return {};
}

}  // namespace

Result<SafetensorsContents> parse_safetensors(ByteSpan bytes, std::string_view label,
                                              std::shared_ptr<const MappedFile> file) {
  if (bytes.size() < kLengthBytes) {
    return malformed(label, "{} bytes cannot be a safetensors file; it was truncated",
                     bytes.size());
  }
  const auto header_bytes = load_le<uint64_t>(bytes, 0);
  if (header_bytes > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return malformed(label, "the header claims {} bytes, more than the {} allowed", header_bytes,
                     kMaxSafetensorsHeaderBytes);
  }
  if (header_bytes > bytes.size() - kLengthBytes) {
    return malformed(label,
                     "the header claims {} bytes, but only {} follow; the file was truncated",
                     header_bytes, bytes.size() - kLengthBytes);
  }
  const std::string_view header =
      as_text(bytes.subspan(kLengthBytes, static_cast<size_t>(header_bytes)));
  const ByteSpan data = bytes.subspan(kLengthBytes + static_cast<size_t>(header_bytes));
  if (header.empty() || header.front() != '{') {
    return malformed(label, "the header does not start with '{{'; this is no safetensors file");
  }
  UF_ASSIGN(const JsonDocument json,
            parse_json_document(header, fmt::format("{}: the header", label)));
  if (json.root().size() > static_cast<size_t>(kMaxTensorsInFile)) {
    return malformed(label, "{} tensors, more than the {} allowed", json.root().size(),
                     kMaxTensorsInFile);
  }

  SafetensorsContents contents;
  contents.tensors.reserve(json.root().size());
  for (const auto& [name, value] : json.root()) {
    if (name == "__metadata__") {
      UF_ASSIGN(contents.metadata, read_metadata(value, label));
      continue;
    }
    UF_ASSIGN(TensorEntry entry, read_entry(name, value, data, label));
    entry.file = file;
    contents.tensors.push_back(std::move(entry));
  }
  // Empty tensors first where several start at one byte, so that they never look like overlaps.
  std::sort(contents.tensors.begin(), contents.tensors.end(),
            [](const TensorEntry& a, const TensorEntry& b) {
              if (a.bytes.data() != b.bytes.data()) return a.bytes.data() < b.bytes.data();
              if (a.bytes.size() != b.bytes.size()) return a.bytes.size() < b.bytes.size();
              return a.name < b.name;
            });
  UF_TRY(check_coverage(contents.tensors, data, label));
  return contents;
}

Result<SafetensorsContents> read_safetensors(const std::filesystem::path& path) {
  UF_ASSIGN(const std::shared_ptr<MappedFile> file, MappedFile::open(path));
  return parse_safetensors(file->bytes(), path.string(), file);
}

Result<SafetensorsIndex> parse_safetensors_index(std::string_view text, std::string_view label) {
  UF_ASSIGN(const JsonDocument json, parse_json_document(text, label));
  const std::optional<JsonValue> weight_map = json.root().find("weight_map");
  if (!weight_map || !weight_map->is_object()) {
    return malformed(label, "has no \"weight_map\" object; this is no safetensors index");
  }
  for (const auto& [key, value] : json.root()) {
    if (key != "weight_map" && (key != "metadata" || !value.is_object())) {
      return malformed(label, "the member \"{}\" does not belong into a safetensors index",
                       printable(key, 80));
    }
  }
  SafetensorsIndex index;
  std::set<std::string> shards;
  for (const auto& [name, value] : *weight_map) {
    if (const char* problem = tensor_name_problem(name)) {
      return malformed(label, "the tensor name \"{}\" {}", printable(name, 80), problem);
    }
    if (!value.text()) return malformed(label, "{} has no file name", printable(name));
    const std::string shard(*value.text());
    if (tensor_name_problem(shard) != nullptr || shard.size() > 255 || shard == "." ||
        shard == ".." || shard.find_first_of("/\\") != std::string::npos) {
      return malformed(label,
                       "{} is said to be in \"{}\"; a shard must be a plain file name in the "
                       "folder of the index",
                       printable(name), printable(shard, 120));
    }
    shards.insert(shard);
    if (shards.size() > kMaxShards) {
      return malformed(label, "more than {} shards", kMaxShards);
    }
    index.weight_map.emplace(name, shard);
  }
  index.shards.assign(shards.begin(), shards.end());
  return index;
}

Result<ShardedContents> read_sharded_safetensors(const std::filesystem::path& index_path) {
  UF_ASSIGN(const std::shared_ptr<MappedFile> file, MappedFile::open(index_path));
  const std::string label = index_path.string();
  if (file->bytes().size() > static_cast<size_t>(kMaxSafetensorsHeaderBytes)) {
    return malformed(label, "{} bytes, more than the {} allowed for an index", file->bytes().size(),
                     kMaxSafetensorsHeaderBytes);
  }
  UF_ASSIGN(const SafetensorsIndex index, parse_safetensors_index(as_text(file->bytes()), label));
  ShardedContents sharded;
  auto& [tensors, metadata] = sharded.contents;
  for (const std::string& name : index.shards) {
    const std::filesystem::path path = index_path.parent_path() / name;
    UF_ASSIGN(SafetensorsContents shard, read_safetensors(path));
    for (TensorEntry& entry : shard.tensors) {
      const auto place = index.weight_map.find(entry.name);
      if (place == index.weight_map.end() || place->second != name) {
        return malformed(label, "{} is in {}, but the index {}", printable(entry.name), name,
                         place == index.weight_map.end() ? "does not list it"
                                                         : "says it is in " + place->second);
      }
      tensors.push_back(std::move(entry));
    }
    metadata.merge(shard.metadata);
    sharded.shards.push_back(path);
  }
  // Each tensor found was in the file the index says, so equal counts mean that none is missing.
  if (tensors.size() != index.weight_map.size()) {
    std::set<std::string_view> found;
    for (const TensorEntry& entry : tensors) found.insert(entry.name);
    for (const auto& [name, shard] : index.weight_map) {
      if (found.count(name) == 0) {
        return malformed(label, "{} is not in {}, where the index says it is", printable(name),
                         shard);
      }
    }
  }
  return sharded;
}

}  // namespace ultraflash
