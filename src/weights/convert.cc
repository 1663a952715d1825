#include "weights/convert.h"

#include <memory>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/utf8.h"
#include "weights/lora.h"
#include "weights/parameter_source.h"
#include "weights/safetensors_writer.h"
#include "weights/torch_archive.h"

namespace ultraflash {
namespace {

namespace fs = std::filesystem;

enum class OutputFormat : uint8_t { kSafetensors, kTorchArchive };

// Where and how to write.
struct Output {
  fs::path path;
  OutputFormat format = OutputFormat::kSafetensors;
  int64_t shard_bytes = INT64_MAX;
  std::string wrapper;

  [[nodiscard]] std::vector<fs::path> files(const std::vector<TensorHeader>& headers) const {
    if (format == OutputFormat::kTorchArchive) return {path};
    return sharded_safetensors_paths(path, headers, shard_bytes);
  }

  Result<std::unique_ptr<TensorWriter>> create(std::vector<TensorHeader> headers,
                                               const CheckpointMetadata& metadata) const {
    if (format == OutputFormat::kTorchArchive) {
      return create_torch_archive_writer(path, std::move(headers), wrapper);
    }
    return create_sharded_safetensors_writer(path, std::move(headers), metadata, shard_bytes);
  }
};

Result<Output> plan_output(const fs::path& path, int64_t max_shard_bytes,
                           const std::string& wrapper) {
  Output output{path, OutputFormat::kSafetensors, INT64_MAX, wrapper};
  const std::string extension = path.extension().string();
  if (extension == ".safetensors") {
    if (!wrapper.empty()) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: safetensors files have no key around their tensors (\"{}\" was "
                         "asked for)",
                         path.string(), printable(wrapper, 60));
    }
    if (max_shard_bytes > 0) output.shard_bytes = max_shard_bytes;
    return output;
  }
  if (extension == ".pt" || extension == ".pth") {
    if (max_shard_bytes > 0) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: only safetensors files can be cut into shards", path.string());
    }
    output.format = OutputFormat::kTorchArchive;
    return output;
  }
  return make_status(StatusCode::kInvalidArgument,
                     "{}: the extension \"{}\" names no output format; use .safetensors, .pt or "
                     ".pth",
                     path.string(), printable(extension, 40));
}

Result<std::vector<TensorHeader>> plan_tensors(const Checkpoint& checkpoint,
                                               const ConvertOptions& options) {
  std::vector<TensorHeader> headers;
  std::vector<bool> met(options.dropped.size(), false);
  for (const TensorEntry& entry : checkpoint.entries()) {
    bool stays = true;
    for (size_t i = 0; i < met.size(); ++i) {
      if (!entry.name.starts_with(options.dropped[i])) continue;
      met[i] = true;
      stays = false;
    }
    if (!stays) continue;
    if (!entry.dtype()) {
      return make_status(StatusCode::kUnsupported,
                         "{}: {} has element type {}, which cannot be converted",
                         checkpoint.label(), printable(entry.name), entry.type_name());
    }
    const bool cast = options.dtype && dtype_is_floating(*entry.dtype());
    headers.push_back({entry.name, cast ? *options.dtype : *entry.dtype(), entry.shape});
  }
  for (size_t i = 0; i < met.size(); ++i) {
    if (met[i]) continue;
    return make_status(StatusCode::kNotFound,
                       "{}: no tensor begins with \"{}\", so none can be left out",
                       checkpoint.label(), printable(options.dropped[i], 60));
  }
  if (headers.empty()) {
    return make_status(StatusCode::kInvalidArgument, "{}: all of its tensors would be left out",
                       checkpoint.label());
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

// (1 - share) of `base` and `share` of `other`, in f32. Integers are those of `base`. Both have the
// same tensors.
class AverageSource final : public ParameterSource {
 public:
  AverageSource(ParameterSource& base, Checkpoint other, double share)
      : base_(base), other_(std::move(other)), share_(static_cast<float>(share)) {}

  Result<Tensor> find(const ParameterSpec& spec) override {
    UF_ASSIGN(const Tensor base, base_.find(spec));
    if (!base.defined() || !dtype_is_floating(base.dtype())) return base;
    UF_ASSIGN(const Tensor other, other_.tensor(spec.name));
    const Tensor a = base.to(DType::kF32);
    const Tensor b = other.to(DType::kF32);
    const Tensor average = Tensor::zeros(DType::kF32, base.shape());
    auto* const sum = average.mutable_data<float>();
    for (int64_t i = 0; i < average.numel(); ++i) {
      sum[i] = (1.0F - share_) * a.data<float>()[i] + share_ * b.data<float>()[i];
    }
    return average;
  }

 private:
  ParameterSource& base_;
  Checkpoint other_;
  float share_;
};

// A chain of sources: the checkpoint or an average, then each adapter on top of the one before.
class Sources {
 public:
  explicit Sources(const Checkpoint& checkpoint) {
    chain_.push_back(std::make_unique<CheckpointSource>(checkpoint));
  }

  // Appends the adapter's files to `inputs`.
  Status add(const Checkpoint& checkpoint, const ConvertAdapter& options,
             std::vector<fs::path>& inputs) {
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
    inputs.insert(inputs.end(), adapter.files().begin(), adapter.files().end());
    chain_.push_back(
        std::make_unique<LoraSource>(*chain_.back(), std::move(adapter), options.scale));
    return {};
  }

  // Appends the other checkpoint's files to `inputs`.
  Status average(const Checkpoint& checkpoint, const ConvertOptions& options,
                 std::vector<fs::path>& inputs) {
    UF_ASSIGN(Checkpoint other, Checkpoint::open(options.average->path, options.input));
    for (const TensorEntry& entry : checkpoint.entries()) {
      const TensorEntry* match = other.find(entry.name);
      if (match != nullptr && match->shape == entry.shape && match->dtype()) continue;
      return make_status(
          StatusCode::kMalformed, "{}: cannot be averaged with {}: {} is {} there and {} here",
          other.label(), checkpoint.label(), printable(entry.name), entry.shape.to_string(),
          match == nullptr ? "missing" : match->shape.to_string());
    }
    inputs.insert(inputs.end(), other.files().begin(), other.files().end());
    chain_.push_back(
        std::make_unique<AverageSource>(*chain_.back(), std::move(other), options.average->share));
    return {};
  }

  ParameterSource& top() { return *chain_.back(); }

 private:
  std::vector<std::unique_ptr<ParameterSource>> chain_;
};

Status write_tensors(const Checkpoint& checkpoint, ParameterSource& source, TensorWriter& writer,
                     const ProgressFn& progress) {
  Progress state{"converting", 0, 0};
  const auto bytes_of = [](const TensorHeader& header) {
    return dense_bytes(element_type(header.dtype), header.shape).value_or(0);
  };
  const auto cancelled = [&] { return progress && !progress(state); };
  const Status stopped(StatusCode::kCancelled, "the conversion was cancelled");
  for (const TensorHeader& header : writer.order()) state.total += bytes_of(header);
  for (const TensorHeader& header : writer.order()) {
    if (cancelled()) return stopped;
    UF_ASSIGN(const Tensor tensor, source.find({header.name, header.shape, {}, false}));
    UF_TRY(writer.append(tensor.to(header.dtype)));
    checkpoint.find(header.name)->release_pages();
    state.done += bytes_of(header);
  }
  if (cancelled()) return stopped;
  return writer.finish();
}

}  // namespace

Status convert_checkpoint(const fs::path& input, const fs::path& output,
                          const ConvertOptions& options, const ProgressFn& progress) {
  return without_exceptions([&]() -> Status {
    if (options.dtype && !dtype_is_floating(*options.dtype)) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: weights cannot become {}; use f32, bf16, f16 or f8_e4m3",
                         output.string(), dtype_name(*options.dtype));
    }
    if (options.average && !(options.average->share >= 0.0 && options.average->share <= 1.0)) {
      return make_status(StatusCode::kInvalidArgument, "a share of {} in an average; it is 0 to 1",
                         options.average->share);
    }
    UF_ASSIGN(const Output plan,
              plan_output(output, options.max_shard_bytes, options.output_wrapper));
    UF_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(input, options.input));
    UF_ASSIGN(std::vector<TensorHeader> headers, plan_tensors(checkpoint, options));
    std::vector<fs::path> inputs = checkpoint.files();
    Sources sources(checkpoint);
    if (options.average) UF_TRY(sources.average(checkpoint, options, inputs));
    for (const ConvertAdapter& adapter : options.adapters) {
      UF_TRY(sources.add(checkpoint, adapter, inputs));
    }
    UF_TRY(refuse_overwrite(inputs, plan.files(headers)));
    UF_ASSIGN(const std::unique_ptr<TensorWriter> writer,
              plan.create(std::move(headers), checkpoint.metadata()));
    return write_tensors(checkpoint, sources.top(), *writer, progress);
  });
}

}  // namespace ultraflash
