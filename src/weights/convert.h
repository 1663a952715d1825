// Conversion between checkpoint files: format, element type, shards, merged adapters.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ultraflash/log.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

struct ConvertAdapter {
  std::filesystem::path path;
  double scale = 1.0;
  std::optional<double> alpha;  // as LoraOptions::alpha
};

struct ConvertAverage {
  std::filesystem::path path;
  double share = 0.5;  // of this file in the result, 0 to 1
};

struct ConvertOptions {
  /// Element type of the floating-point tensors of the output; integers stay. Absent: as they are.
  /// f8_e4m3 stores plain rounded values without scales.
  std::optional<DType> dtype;
  /// Averaged with the input before adapters are merged: a checkpoint of the same tensors.
  std::optional<ConvertAverage> average;
  /// Merged in this order.
  std::vector<ConvertAdapter> adapters;
  /// Safetensors only: elements of a shard. 0: one file.
  int64_t max_shard_bytes = 0;
  /// PyTorch only: the key around the tensors. Empty: none.
  std::string output_wrapper;
  /// Which tensors to take, and under which names.
  CheckpointOptions input;
  /// Of these, those whose names begin with one of `dropped` stay behind (the encoder of an
  /// autoencoder that only decodes).
  std::vector<std::string> dropped;
};

/// Writes the tensors of `input` (a file, an index or a folder) to `output`, whose extension names
/// the format: .safetensors, .pt or .pth. Metadata goes along between safetensors files; values
/// that are no tensors are left behind. Holds the conversion of one tensor at a time, so the size
/// of the checkpoint does not matter. The output is complete or does not appear.
///
/// `progress` counts output bytes. Fails as Checkpoint::open and LoraAdapter::open do;
/// kInvalidArgument when the output would overwrite a file it is made from or has an unknown
/// extension; kNotFound when a prefix to drop is no tensor's; kUnsupported for tensors of a type
/// that cannot be converted; kMalformed when an adapter or the checkpoint to average with does not
/// fit; kIo when writing fails; kCancelled.
Status convert_checkpoint(const std::filesystem::path& input, const std::filesystem::path& output,
                          const ConvertOptions& options, const ProgressFn& progress = {});

}  // namespace ultraflash
