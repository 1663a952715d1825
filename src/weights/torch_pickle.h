// What the classes in a PyTorch pickle mean: storages, element types and rebuilt tensors.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "ultraflash/status.h"
#include "weights/pickle.h"
#include "weights/tensor_entry.h"
#include "weights/zip.h"

namespace ultraflash {

/// The classes that PickleTree::parse may let through.
std::span<const std::string_view> torch_class_names();
/// Name of a kClass value of such a tree.
std::string_view torch_class_name(PickleTree::Value value);

/// Turns calls like torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...) into places
/// in the archive.
class TorchTensorReader {
 public:
  /// All arguments but `root` and `file` must outlive the reader.
  TorchTensorReader(const ZipArchive& archive, std::string root, const PickleTree& tree,
                    std::string_view label, std::shared_ptr<const MappedFile> file);

  /// The tensor that `value` describes, without its name; nothing when it describes none. `shown`
  /// names it in messages. kMalformed for a call that this library does not know, and as
  /// parse_torch_archive says.
  [[nodiscard]] Result<std::optional<TensorEntry>> read(PickleTree::Value value,
                                                        std::string_view shown) const;

 private:
  struct Rebuild;
  struct StorageRange;

  Result<Rebuild> unwrap(PickleTree::Value call, std::string_view shown) const;
  Result<StorageRange> storage(PickleTree::Value value, std::string_view shown) const;
  Result<TensorEntry> place(const StorageRange& storage, const ElementType& type, int64_t offset,
                            std::span<const PickleTree::Value> sizes,
                            std::span<const PickleTree::Value> strides,
                            std::string_view shown) const;

  const ZipArchive& archive_;
  std::string root_;
  const PickleTree& tree_;
  std::string_view label_;
  std::shared_ptr<const MappedFile> file_;
};

}  // namespace ultraflash
