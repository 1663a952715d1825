#include "weights/convert.h"

#include <memory>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "weights/lora.h"
#include "weights/names.h"
#include "weights/parameter_source.h"
#include "weights/safetensors_writer.h"
#include "weights/torch_archive.h"

namespace ultraflash {
namespace {

namespace fs = std::filesystem;

enum class OutputFormat : uint8_t { kSafetensors, kTorchArchive };

Result<OutputFormat> output_format(const fs::path& output, const ConvertOptions& options) {
  const std::string extension = output.extension().string();
  if (extension == ".safetensors") {
    if (!options.output_wrapper.empty()) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: safetensors files have no key around their tensors (\"{}\" was "
                         "asked for)",
                         output.string(), printable(options.output_wrapper, 60));
    }
    return OutputFormat::kSafetensors;
  }
  if (extension == ".pt" || extension == ".pth") {
    if (options.max_shard_bytes > 0) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: only safetensors files can be cut into shards", output.string());
    }
    return OutputFormat::kTorchArchive;
  }
  return make_status(StatusCode::kInvalidArgument,
                     "{}: the extension \"{}\" names no output format; use .safetensors, .pt or "
                     ".pth",
                     output.string(), printable(extension, 40));
}

int64_t shard_bytes(const ConvertOptions& options) {
  return options.max_shard_bytes > 0 ? options.max_shard_bytes : INT64_MAX;
}

Result<std::vector<TensorHeader>> plan_output(const Checkpoint& checkpoint,
                                              const ConvertOptions& options) {
  std::vector<TensorHeader> headers;
  for (const TensorEntry& entry : checkpoint.entries()) {
    if (!entry.dtype()) {
      return make_status(StatusCode::kUnsupported,
                         "{}: {} has element type {}, which cannot be converted",
                         checkpoint.label(), printable(entry.name), entry.type_name());
    }
    const bool cast = options.dtype && dtype_is_floating(*entry.dtype());
    headers.push_back({entry.name, cast ? *options.dtype : *entry.dtype(), entry.shape});
  }
  return headers;
}

Status refuse_overwrite(const std::vector<fs::path>& inputs, const std::vector<fs::path>& outputs) {
  for (const fs::path& output : outputs) {
    for (const fs::path& input : inputs) {
      std::error_code ignored;  // an output that does not exist yet is nobody's equal
      if (fs::equivalent(input, output, ignored)) {
        return make_status(StatusCode::kInvalidArgument,
                           "{}: is an input of this conversion; choose another name for the "
                           "output",
                           output.string());
      }
    }
  }
  return {};
}

// A chain of sources: the checkpoint, then each adapter on top of the one before.
class Sources {
 public:
  explicit Sources(const Checkpoint& checkpoint) {
    chain_.push_back(std::make_unique<CheckpointSource>(checkpoint));
  }

  Status add(const Checkpoint& checkpoint, const ConvertAdapter& options) {
    LoraOptions lora;
    lora.alpha = options.alpha;
    UF_ASSIGN(LoraAdapter adapter, LoraAdapter::open(options.path, lora));
    // Known before hours of writing, not after.
    for (const LoraLayer& layer : adapter.layers()) {
      if (checkpoint.find(layer.name + ".weight") == nullptr) {
        return make_status(StatusCode::kMalformed, "{}: {} matches no tensor of {}",
                           adapter.label(), printable(layer.name), checkpoint.label());
      }
    }
    chain_.push_back(
        std::make_unique<LoraSource>(*chain_.back(), std::move(adapter), options.scale));
    return {};
  }

  ParameterSource& top() { return *chain_.back(); }

 private:
  std::vector<std::unique_ptr<ParameterSource>> chain_;
};

Result<std::unique_ptr<TensorWriter>> create_writer(OutputFormat format, const fs::path& output,
                                                    std::vector<TensorHeader> headers,
                                                    const Checkpoint& checkpoint,
                                                    const ConvertOptions& options) {
  if (format == OutputFormat::kTorchArchive) {
    return create_torch_archive_writer(output, std::move(headers), options.output_wrapper);
  }
  return create_sharded_safetensors_writer(output, std::move(headers), checkpoint.metadata(),
                                           shard_bytes(options));
}

Status write_tensors(const Checkpoint& checkpoint, ParameterSource& source, TensorWriter& writer,
                     const ProgressFn& progress) {
  Progress state{"converting", 0, 0};
  const auto bytes_of = [](const TensorHeader& header) {
    return dense_bytes(element_type(header.dtype), header.shape).value_or(0);
  };
  for (const TensorHeader& header : writer.order()) state.total += bytes_of(header);
  for (const TensorHeader& header : writer.order()) {
    if (progress && !progress(state)) {
      return Status(StatusCode::kCancelled, "the conversion was cancelled");
    }
    UF_ASSIGN(const Tensor tensor, source.find({header.name, header.shape, {}, false}));
    UF_TRY(writer.append(tensor.to(header.dtype)));
    checkpoint.find(header.name)->release_pages();
    state.done += bytes_of(header);
  }
  if (progress && !progress(state)) {
    return Status(StatusCode::kCancelled, "the conversion was cancelled");
  }
  return writer.finish();
}

}  // namespace

Status convert_checkpoint(const fs::path& input, const fs::path& output,
                          const ConvertOptions& options, const ProgressFn& progress) {
  if (options.dtype && !dtype_is_floating(*options.dtype)) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: weights cannot become {}; use f32, bf16, f16 or f8_e4m3",
                       output.string(), dtype_name(*options.dtype));
  }
  UF_ASSIGN(const OutputFormat format, output_format(output, options));
  UF_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(input, options.input));
  UF_ASSIGN(std::vector<TensorHeader> headers, plan_output(checkpoint, options));
  std::vector<fs::path> inputs = checkpoint.files();
  Sources sources(checkpoint);
  for (const ConvertAdapter& adapter : options.adapters) {
    UF_TRY(sources.add(checkpoint, adapter));
    inputs.push_back(adapter.path);
  }
  UF_TRY(refuse_overwrite(inputs,
                          format == OutputFormat::kTorchArchive
                              ? std::vector<fs::path>{output}
                              : sharded_safetensors_paths(output, headers, shard_bytes(options))));
  return without_exceptions([&]() -> Status {
    UF_ASSIGN(const std::unique_ptr<TensorWriter> writer,
              create_writer(format, output, std::move(headers), checkpoint, options));
    return write_tensors(checkpoint, sources.top(), *writer, progress);
  });
}

}  // namespace ultraflash
