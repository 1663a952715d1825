// What is in a checkpoint, for people and scripts: everything but the elements.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/shape.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

struct TensorDescription {
  std::string wrapper;         // key of the outermost dictionary; empty: none
  std::string name;            // as in the file
  std::string_view type_name;  // "f32", "f8_e5m2", ...
  Shape shape;
  int64_t size_bytes = 0;
  bool usable = true;  // false: of a type that can be listed only
};

/// Sums over some of the tensors. Views of one storage count in full each.
struct TensorTotals {
  int64_t tensors = 0;
  int64_t parameters = 0;  // elements
  int64_t size_bytes = 0;
};

struct CheckpointDescription {
  std::string path;
  CheckpointFormat format = CheckpointFormat::kSafetensors;
  std::vector<std::string> files;  // index first
  int64_t file_bytes = 0;          // of all files
  TensorTotals totals;
  std::map<std::string, TensorTotals> by_wrapper;  // the key "" holds tensors outside of any
  std::map<std::string, TensorTotals> by_type;     // "f32" -> ...
  CheckpointMetadata metadata;
  std::vector<CheckpointExtra> extras;
  std::vector<TensorDescription> entries;  // in file order
};

/// Describes all of `path`, whatever key or prefix loading would choose. Fails as
/// read_raw_checkpoint does.
Result<CheckpointDescription> describe_checkpoint(const std::filesystem::path& path);

}  // namespace ultraflash
