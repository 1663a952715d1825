#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "weights/checkpoint.h"
#include "weights/safetensors.h"

namespace ultraflash {
namespace {

namespace fs = std::filesystem;

enum class Content : uint8_t { kSafetensors, kIndex, kZip, kOther };

Content content_of(std::string_view bytes) {
  if (bytes.starts_with("PK")) return Content::kZip;
  // A safetensors header begins behind its length; a length that reads as '{' would be a header
  // of 123 bytes, so this question comes first.
  if (bytes.size() > 8 && bytes[8] == '{' && bytes[7] == 0) return Content::kSafetensors;
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && bytes[first] == '{') return Content::kIndex;
  return Content::kOther;
}

Status unknown_content(std::string_view bytes, const std::string& label) {
  // The protocol, and then the number that PyTorch began its files with before version 1.6.
  constexpr std::string_view kLegacyTorch =
      "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
  if (bytes.starts_with(kLegacyTorch)) {
    return make_status(StatusCode::kUnsupported,
                       "{}: is in PyTorch's file format from before version 1.6; load it with a "
                       "current torch.load and save it again with torch.save",
                       label);
  }
  if (bytes.starts_with("GGUF")) {
    return make_status(StatusCode::kUnsupported,
                       "{}: is a GGUF file; this program reads safetensors and PyTorch files",
                       label);
  }
  std::string cause;
  if (bytes.starts_with("version https://git-lfs")) {
    cause = "; it is a Git LFS pointer, fetch the file itself with \"git lfs pull\"";
  } else if (bytes.starts_with("<")) {
    cause = "; it looks like a web page, so the download failed";
  } else if (bytes.starts_with("\x80")) {
    cause = "; it looks like a bare pickle, which is not read";
  }
  return make_status(StatusCode::kMalformed,
                     "{}: is neither a safetensors file nor a PyTorch checkpoint{}", label, cause);
}

// The one file of `folder` that stands for it.
Result<fs::path> find_in_folder(const fs::path& folder) {
  std::vector<fs::path> indices;
  std::vector<fs::path> safetensors;
  std::vector<fs::path> archives;
  std::error_code error;
  for (fs::directory_iterator place(folder, error); !error && place != fs::directory_iterator();
       place.increment(error)) {
    const fs::directory_entry& entry = *place;
    const std::string name = entry.path().filename().string();
    std::error_code ignored;
    if (!entry.is_regular_file(ignored)) continue;
    if (name.ends_with(".safetensors.index.json")) {
      indices.push_back(entry.path());
    } else if (name.ends_with(".safetensors")) {
      safetensors.push_back(entry.path());
    } else if (name.ends_with(".pt") || name.ends_with(".pth")) {
      archives.push_back(entry.path());
    }
  }
  if (error) {
    return make_status(StatusCode::kIo, "{}: cannot list the folder: {}", folder.string(),
                       error.message());
  }
  for (std::vector<fs::path>* candidates : {&indices, &safetensors, &archives}) {
    if (candidates->size() == 1) return candidates->front();
    if (candidates->size() > 1) {
      std::sort(candidates->begin(), candidates->end());
      return make_status(StatusCode::kInvalidArgument,
                         "{}: holds {} checkpoints ({}, {}, ...); name the one to read",
                         folder.string(), candidates->size(), (*candidates)[0].filename().string(),
                         (*candidates)[1].filename().string());
    }
  }
  return make_status(StatusCode::kNotFound, "{}: holds no .safetensors, .pt or .pth file",
                     folder.string());
}

Result<RawCheckpoint> read_file(const fs::path& path) {
  UF_ASSIGN(const std::shared_ptr<MappedFile> file, MappedFile::open(path));
  const std::string label = path.string();
  RawCheckpoint raw;
  raw.files = {path};
  switch (content_of(as_text(file->bytes()))) {
    case Content::kSafetensors: {
      UF_ASSIGN(SafetensorsContents contents, parse_safetensors(file->bytes(), label, file));
      raw.format = CheckpointFormat::kSafetensors;
      raw.groups.push_back({"", std::move(contents.tensors)});
      raw.metadata = std::move(contents.metadata);
      return raw;
    }
    case Content::kIndex: {
      UF_ASSIGN(ShardedContents sharded, read_sharded_safetensors(path));
      raw.format = CheckpointFormat::kShardedSafetensors;
      raw.files.insert(raw.files.end(), sharded.shards.begin(), sharded.shards.end());
      raw.groups.push_back({"", std::move(sharded.contents.tensors)});
      raw.metadata = std::move(sharded.contents.metadata);
      return raw;
    }
    case Content::kZip: {
      UF_ASSIGN(TorchContents contents, parse_torch_archive(file->bytes(), label, file));
      raw.format = CheckpointFormat::kTorchArchive;
      raw.groups = std::move(contents.groups);
      raw.extras = std::move(contents.extras);
      return raw;
    }
    case Content::kOther:
      break;
  }
  return unknown_content(as_text(file->bytes()), label);
}

}  // namespace

std::string_view checkpoint_format_name(CheckpointFormat format) {
  switch (format) {
    case CheckpointFormat::kSafetensors:
      return "safetensors";
    case CheckpointFormat::kShardedSafetensors:
      return "sharded safetensors";
    case CheckpointFormat::kTorchArchive:
      return "torch archive";
  }
  return "unknown";
}

Result<RawCheckpoint> read_raw_checkpoint(const fs::path& path) {
  return without_exceptions([&]() -> Result<RawCheckpoint> {
    std::error_code ignored;
    if (!fs::is_directory(path, ignored)) return read_file(path);
    UF_ASSIGN(const fs::path file, find_in_folder(path));
    return read_file(file);
  });
}

}  // namespace ultraflash
