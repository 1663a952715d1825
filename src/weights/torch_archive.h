// PyTorch checkpoints (.pt, .pth) as torch.save has written them since version 1.6: a zip archive
// with a pickle that describes tensors (`<root>/data.pkl`) and their storages (`<root>/data/<n>`).
//
// The pickle is read as data (pickle.h); no code in it runs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"
#include "weights/tensor_entry.h"
#include "weights/tensor_writer.h"

namespace ultraflash {

constexpr int kMaxTorchDepth = 32;  // of nested containers

/// The tensors under one key of the outermost dictionary.
struct TensorGroup {
  std::string key;                   // empty: tensors that stand in the outermost dictionary itself
  std::vector<TensorEntry> tensors;  // names are the keys below, joined with "."
};

/// A value that is no tensor: a training step, a learning rate, a list of numbers.
struct CheckpointExtra {
  std::string name;  // keys from the outermost dictionary on, joined with "."
  std::string kind;  // "int", "float", "str", "bool", "None", "list", "tuple", "dict", "other"
  std::string text;  // as Python shows it, shortened; bytes that are no text as \xNN
};

struct TorchContents {
  std::vector<TensorGroup> groups;  // in the order of the pickle; at most one has an empty key
  std::vector<CheckpointExtra> extras;
};

/// Reads the directory and the pickle in `bytes`, a whole file; storages are not touched. The
/// entries refer to `bytes`, which `file` keeps alive (null: the caller does).
///
/// Failures as ZipArchive::parse and PickleTree::parse have them, and kMalformed for a tensor that
/// reaches past its storage or a storage of another size than announced; kUnsupported for
/// TorchScript files, big-endian files, and views that repeat elements (torch.expand).
Result<TorchContents> parse_torch_archive(ByteSpan bytes, std::string_view label,
                                          std::shared_ptr<const MappedFile> file = nullptr);

/// Maps and parses the file at `path`; also fails as MappedFile::open does.
Result<TorchContents> read_torch_archive(const std::filesystem::path& path);

/// A file that torch.load(weights_only=True) reads as {wrapper_key: OrderedDict(name -> tensor)},
/// or as the OrderedDict alone when `wrapper_key` is empty. Tensors keep the given order; f8_e4m3
/// needs torch 2.1 or later to read. kInvalidArgument for unusable or repeated names.
Result<std::unique_ptr<TensorWriter>> create_torch_archive_writer(
    const std::filesystem::path& path, std::vector<TensorHeader> headers,
    std::string_view wrapper_key = {});

/// Writes `tensors` as such a file. The file is complete or does not appear.
Status save_torch_archive(const std::filesystem::path& path,
                          const std::vector<NamedTensor>& tensors,
                          std::string_view wrapper_key = {});

}  // namespace ultraflash
