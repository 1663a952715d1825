#include "weights/inspect.h"

#include <system_error>
#include <utility>

#include "core/exceptions.h"

namespace ultraflash {
namespace {

void add(TensorTotals& totals, const TensorDescription& tensor) {
  ++totals.tensors;
  totals.parameters += tensor.shape.numel();
  totals.size_bytes += tensor.size_bytes;
}

}  // namespace

Result<CheckpointDescription> describe_checkpoint(const std::filesystem::path& path) {
  return without_exceptions([&]() -> Result<CheckpointDescription> {
    UF_ASSIGN(RawCheckpoint raw, read_raw_checkpoint(path));
    CheckpointDescription description;
    description.path = path.string();
    description.format = raw.format;
    description.metadata = std::move(raw.metadata);
    description.extras = std::move(raw.extras);
    for (const std::filesystem::path& file : raw.files) {
      std::error_code error;
      const uintmax_t bytes = std::filesystem::file_size(file, error);
      if (!error) description.file_bytes += static_cast<int64_t>(bytes);
      description.files.push_back(file.string());
    }
    for (const TensorGroup& group : raw.groups) {
      for (const TensorEntry& entry : group.tensors) {
        TensorDescription tensor{group.key,   entry.name,         entry.type_name(),
                                 entry.shape, entry.size_bytes(), entry.dtype().has_value()};
        add(description.totals, tensor);
        add(description.by_wrapper[group.key], tensor);
        add(description.by_type[std::string(entry.type_name())], tensor);
        description.entries.push_back(std::move(tensor));
      }
    }
    return description;
  });
}

}  // namespace ultraflash
