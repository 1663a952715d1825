// Checkpoint: the uniform view of a file of weights, whatever its format.
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
#include "weights/torch_archive.h"

namespace ultraflash {

enum class CheckpointFormat : uint8_t { kSafetensors, kShardedSafetensors, kTorchArchive };
/// "safetensors", "sharded safetensors", "torch archive"
std::string_view checkpoint_format_name(CheckpointFormat format);

/// A checkpoint as its files have it: no key chosen, no name changed.
struct RawCheckpoint {
  CheckpointFormat format = CheckpointFormat::kSafetensors;
  std::vector<std::filesystem::path> files;  // all that were read; the index first
  std::vector<TensorGroup> groups;           // safetensors: one without a key
  CheckpointMetadata metadata;
  std::vector<CheckpointExtra> extras;
};

/// Reads `path`: a safetensors file, an index of shards, a PyTorch archive, or a folder with one of
/// them. What a file is, its first bytes decide, not its name. In a folder an index goes before a
/// single .safetensors file, and that before a single .pt or .pth file.
///
/// kNotFound when there is nothing; kInvalidArgument when a folder holds several candidates;
/// kUnsupported for known formats that are not read (PyTorch before 1.6, TorchScript, GGUF);
/// kMalformed for everything else, with the likely cause for Git LFS pointers and web pages.
Result<RawCheckpoint> read_raw_checkpoint(const std::filesystem::path& path);

/// Keys of the outermost dictionary that are looked for, in this order: with `prefer_ema`
/// "generator_ema", "generator", without it the other way round; then "generator_lora", "model",
/// "state_dict". A training checkpoint's "critic" is only ever taken when asked for by name.
std::vector<std::string> default_wrapper_order(bool prefer_ema);

struct CheckpointOptions {
  /// The key whose tensors to take; kNotFound when it is not there. Empty: the first of
  /// `wrapper_order` that is there, else the whole file.
  std::string wrapper;
  std::vector<std::string> wrapper_order = default_wrapper_order(/*prefer_ema=*/true);
  /// Only tensors whose names start so, without it ("w." of a golden file).
  std::string prefix;
  /// Remove what training wrappers add to names (clean_tensor_names). Applied after `prefix`.
  bool clean_names = true;
};

/// Cheap to copy; all copies share the mapping. Thread-safe: nothing changes after open().
class Checkpoint {
 public:
  /// Fails as read_raw_checkpoint does, and with kMalformed when two tensors get one name by
  /// cleaning, kNotFound when `options` name a key or prefix that is not there.
  static Result<Checkpoint> open(const std::filesystem::path& path,
                                 const CheckpointOptions& options = {});
  /// The same choice from what is already read; `label` stands for the file in messages.
  static Result<Checkpoint> select(RawCheckpoint raw, std::string label,
                                   const CheckpointOptions& options = {});

  /// In file order: by place for safetensors (shard after shard), as pickled for archives.
  [[nodiscard]] const std::vector<TensorEntry>& entries() const;
  /// The entry with this name, or null.
  [[nodiscard]] const TensorEntry* find(std::string_view name) const;
  /// The tensor with this name: kNotFound, or as TensorEntry::load. Messages name the file.
  [[nodiscard]] Result<Tensor> tensor(std::string_view name) const;

  [[nodiscard]] CheckpointFormat format() const;
  /// The path given to open(), for messages.
  [[nodiscard]] const std::string& label() const;
  [[nodiscard]] const std::vector<std::filesystem::path>& files() const;
  /// The key whose tensors these are; empty when none was chosen.
  [[nodiscard]] const std::string& wrapper() const;
  /// All keys of the file that hold tensors.
  [[nodiscard]] const std::vector<std::string>& wrappers() const;
  /// Of safetensors files; empty for archives.
  [[nodiscard]] const CheckpointMetadata& metadata() const;
  /// Of the whole file, whatever the key chosen.
  [[nodiscard]] const std::vector<CheckpointExtra>& extras() const;

 private:
  struct State;
  explicit Checkpoint(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace ultraflash
