#include "weights/safetensors_writer.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/output_file.h"
#include "core/utf8.h"
#include "weights/strict_json.h"

namespace ultraflash {
namespace {

constexpr size_t kHeaderAlignment = 64;  // the elements start at a cache line of the mapping

// Tensors [begin, end) of the writer's order, and where they go.
struct Shard {
  std::filesystem::path path;
  size_t begin = 0;
  size_t end = 0;
};

int64_t bytes_of(const TensorHeader& header) {
  return dense_bytes(element_type(header.dtype), header.shape).value_or(0);
}

Status check_metadata(const CheckpointMetadata& metadata, std::string_view label) {
  for (const auto& [key, value] : metadata) {
    if (!is_utf8(key) || !is_utf8(value)) {
      return make_status(StatusCode::kInvalidArgument, "{}: metadata \"{}\" is not valid UTF-8",
                         label, printable(key, 80));
    }
  }
  return {};
}

std::string header_text(std::span<const TensorHeader> tensors, const CheckpointMetadata& metadata) {
  std::string text = "{";
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (text.back() != '{') text += ',';
      text += json_quoted(key) + ':' + json_quoted(value);
    }
    text += '}';
  }
  int64_t offset = 0;
  for (const TensorHeader& tensor : tensors) {
    if (text.back() != '{') text += ',';
    const int64_t end = offset + bytes_of(tensor);
    std::string sizes = tensor.shape.to_string();
    sizes.erase(std::remove(sizes.begin(), sizes.end(), ' '), sizes.end());
    text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                        json_quoted(tensor.name), element_type(tensor.dtype).safetensors, sizes,
                        offset, end);
    offset = end;
  }
  text += '}';
  const size_t total = 8 + text.size();
  text.append((kHeaderAlignment - total % kHeaderAlignment) % kHeaderAlignment, ' ');
  return text;
}

// Ends of the shards in `headers`: each takes tensors while they fit.
std::vector<size_t> plan_shards(const std::vector<TensorHeader>& headers, int64_t max_bytes) {
  std::vector<size_t> ends;
  int64_t filled = 0;
  for (size_t i = 0; i < headers.size(); ++i) {
    const int64_t bytes = bytes_of(headers[i]);
    if (filled > 0 && bytes > max_bytes - filled) {
      ends.push_back(i);
      filled = 0;
    }
    filled += bytes;
  }
  ends.push_back(headers.size());
  return ends;
}

std::filesystem::path shard_path(const std::filesystem::path& path, size_t index, size_t count) {
  return path.parent_path() /
         fmt::format("{}-{:05}-of-{:05}.safetensors", path.stem().string(), index + 1, count);
}

std::filesystem::path index_path(const std::filesystem::path& path) {
  return path.parent_path() / (path.stem().string() + ".safetensors.index.json");
}

void sort_by_alignment(std::span<TensorHeader> headers) {
  std::stable_sort(headers.begin(), headers.end(),
                   [](const TensorHeader& a, const TensorHeader& b) {
                     return dtype_size(a.dtype) > dtype_size(b.dtype);
                   });
}

class SafetensorsWriter final : public TensorWriter {
 public:
  // `index` is empty when there is one shard.
  SafetensorsWriter(std::vector<TensorHeader> order, CheckpointMetadata metadata,
                    std::vector<Shard> shards, std::filesystem::path index)
      : TensorWriter(std::move(order)),
        metadata_(std::move(metadata)),
        shards_(std::move(shards)),
        index_(std::move(index)) {}

  // Opens the first shard, so that an unwritable folder shows before any work is done.
  Status begin() { return open_next(); }

 protected:
  Status write_elements(size_t index, ByteSpan elements) override {
    while (index >= shards_[files_.size() - 1].end) UF_TRY(open_next());
    return files_.back().write(elements);
  }

  Status complete() override {
    while (files_.size() < shards_.size()) UF_TRY(open_next());
    for (OutputFile& file : files_) UF_TRY(file.commit());
    return index_.empty() ? Status() : write_index();
  }

 private:
  Status open_next() {
    if (!files_.empty()) UF_TRY(files_.back().close());
    const Shard& shard = shards_[files_.size()];
    UF_ASSIGN(OutputFile file, OutputFile::create(shard.path.string()));
    const std::span<const TensorHeader> tensors(order().data() + shard.begin,
                                                shard.end - shard.begin);
    const std::string header = header_text(tensors, metadata_);
    const auto length = static_cast<uint64_t>(header.size());
    UF_TRY(file.write(std::as_bytes(std::span(&length, 1))));
    UF_TRY(file.write(header));
    files_.push_back(std::move(file));
    return {};
  }

  Status write_index() {
    std::map<std::string_view, std::string> weight_map;
    int64_t total = 0;
    for (const Shard& shard : shards_) {
      for (size_t i = shard.begin; i < shard.end; ++i) {
        weight_map.emplace(order()[i].name, shard.path.filename().string());
        total += bytes_of(order()[i]);
      }
    }
    std::string text =
        fmt::format("{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n", total);
    text += "  \"weight_map\": {";
    for (const auto& [name, file] : weight_map) {
      text += fmt::format("{}\n    {}: {}", text.back() == '{' ? "" : ",", json_quoted(name),
                          json_quoted(file));
    }
    text += "\n  }\n}\n";
    UF_ASSIGN(OutputFile file, OutputFile::create(index_.string()));
    UF_TRY(file.write(text));
    return file.commit();
  }

  CheckpointMetadata metadata_;
  std::vector<Shard> shards_;
  std::filesystem::path index_;
  std::vector<OutputFile> files_;  // one per shard begun; all but the last are closed
};

}  // namespace

Result<std::unique_ptr<TensorWriter>> create_safetensors_writer(
    const std::filesystem::path& path, std::vector<TensorHeader> headers,
    const CheckpointMetadata& metadata) {
  return create_sharded_safetensors_writer(path, std::move(headers), metadata, INT64_MAX);
}

Result<std::unique_ptr<TensorWriter>> create_sharded_safetensors_writer(
    const std::filesystem::path& path, std::vector<TensorHeader> headers,
    const CheckpointMetadata& metadata, int64_t max_shard_bytes) {
  return without_exceptions([&]() -> Result<std::unique_ptr<TensorWriter>> {
    UF_TRY(check_headers(headers, path.string()));
    UF_TRY(check_metadata(metadata, path.string()));
    const std::vector<size_t> ends = plan_shards(headers, max_shard_bytes);
    if (ends.size() > 1 && !is_utf8(path.filename().string())) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: the name is not UTF-8 and cannot stand in an index; choose another",
                         printable(path.string()));
    }
    std::vector<Shard> shards;
    size_t begin = 0;
    for (const size_t end : ends) {
      sort_by_alignment(std::span(headers).subspan(begin, end - begin));
      shards.push_back(
          {ends.size() == 1 ? path : shard_path(path, shards.size(), ends.size()), begin, end});
      begin = end;
    }
    auto writer = std::make_unique<SafetensorsWriter>(
        std::move(headers), metadata, std::move(shards),
        ends.size() == 1 ? std::filesystem::path() : index_path(path));
    UF_TRY(writer->begin());
    return std::unique_ptr<TensorWriter>(std::move(writer));
  });
}

std::vector<std::filesystem::path> sharded_safetensors_paths(
    const std::filesystem::path& path, const std::vector<TensorHeader>& headers,
    int64_t max_shard_bytes) {
  const size_t count = plan_shards(headers, max_shard_bytes).size();
  if (count == 1) return {path};
  std::vector<std::filesystem::path> paths;
  for (size_t i = 0; i < count; ++i) paths.push_back(shard_path(path, i, count));
  paths.push_back(index_path(path));
  return paths;
}

Status save_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                        const CheckpointMetadata& metadata) {
  return save_sharded_safetensors(path, tensors, metadata, INT64_MAX);
}

Status save_sharded_safetensors(const std::filesystem::path& path,
                                const std::vector<NamedTensor>& tensors,
                                const CheckpointMetadata& metadata, int64_t max_shard_bytes) {
  return without_exceptions([&]() -> Status {
    UF_ASSIGN(
        const std::unique_ptr<TensorWriter> writer,
        create_sharded_safetensors_writer(path, headers_of(tensors), metadata, max_shard_bytes));
    return write_all(*writer, tensors);
  });
}

}  // namespace ultraflash
