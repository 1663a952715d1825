// Safetensors, written: one file, or shards with an index.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "weights/tensor_writer.h"

namespace ultraflash {

/// One file. Tensors are laid out with the widest element type first, so that all of them are
/// aligned; among equals the given order stays. kInvalidArgument for unusable or repeated names and
/// for metadata that is not UTF-8; kIo when the file cannot be created.
Result<std::unique_ptr<TensorWriter>> create_safetensors_writer(
    const std::filesystem::path& path, std::vector<TensorHeader> headers,
    const CheckpointMetadata& metadata = {});

/// For `folder/model.safetensors`: `folder/model-00001-of-00003.safetensors` and so on with at most
/// `max_shard_bytes` of elements each (a larger tensor gets a shard of its own), and
/// `folder/model.safetensors.index.json`, which appears last. Everything that fits one shard is
/// written as plain `folder/model.safetensors`. Within a shard the order is as above.
Result<std::unique_ptr<TensorWriter>> create_sharded_safetensors_writer(
    const std::filesystem::path& path, std::vector<TensorHeader> headers,
    const CheckpointMetadata& metadata, int64_t max_shard_bytes);

/// The files that the writer above would leave behind, index last.
std::vector<std::filesystem::path> sharded_safetensors_paths(
    const std::filesystem::path& path, const std::vector<TensorHeader>& headers,
    int64_t max_shard_bytes);

/// Writes `tensors` as one file. The file is complete or does not appear.
Status save_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                        const CheckpointMetadata& metadata = {});

/// As create_sharded_safetensors_writer.
Status save_sharded_safetensors(const std::filesystem::path& path,
                                const std::vector<NamedTensor>& tensors,
                                const CheckpointMetadata& metadata, int64_t max_shard_bytes);

}  // namespace ultraflash
