#include "recipes/random_weights.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "stream/networks.h"
#include "weights/parameter_source.h"
#include "weights/safetensors_writer.h"
#include "weights/torch_archive.h"

namespace ultraflash {
namespace {

constexpr int64_t kLoraRank = 256;  // of the published LongLive adapter

// How the published file of a role stores its tensors.
struct Publication {
  DType dtype = DType::kF32;
  std::string wrapper;  // of PyTorch archives
  std::string prefix;   // of names in PyTorch archives
};

Publication publication(const NetworkFile& file) {
  if (file.role == "generator") {
    std::string wrapper = file.spec.wrapper;
    if (wrapper.empty()) wrapper = file.spec.prefer_ema ? "generator_ema" : "generator";
    return {DType::kF32, std::move(wrapper), "model."};
  }
  if (file.role == "text") return {DType::kBF16, "", ""};
  if (file.role == "refiner" || file.role == "upsampler") return {DType::kBF16, "model", ""};
  const bool vae = !file.spec.files.empty() && file.spec.files[0].find("VAE") != std::string::npos;
  return {vae ? DType::kF32 : DType::kF16, "", ""};
}

bool is_torch(const std::filesystem::path& path) {
  return path.extension() == ".pt" || path.extension() == ".pth";
}

Result<std::unique_ptr<TensorWriter>> create_writer(const std::filesystem::path& path,
                                                    std::vector<TensorHeader> headers,
                                                    const std::string& wrapper) {
  if (is_torch(path)) return create_torch_archive_writer(path, std::move(headers), wrapper);
  return create_safetensors_writer(path, std::move(headers),
                                   {{"format", "pt"}, {"source", "ultraflash make-weights"}});
}

// The layers that a LoRA adapter of the generator changes: the ten products of each block.
std::vector<ParameterSpec> adapter_specs(const std::vector<ParameterSpec>& specs) {
  std::vector<ParameterSpec> adapter;
  for (const ParameterSpec& spec : specs) {
    if (!spec.name.starts_with("blocks.") || !spec.name.ends_with(".weight") ||
        spec.shape.rank() != 2) {
      continue;
    }
    const std::string layer =
        "base_model.model." + spec.name.substr(0, spec.name.size() - std::string(".weight").size());
    const int64_t rank = std::min({kLoraRank, spec.shape[0], spec.shape[1]});
    adapter.push_back({layer + ".lora_A.weight",
                       {rank, spec.shape[1]},
                       ParameterInit::fan_in({rank, spec.shape[1]})});
    adapter.push_back(
        {layer + ".lora_B.weight", {spec.shape[0], rank}, ParameterInit::normal(0.01F)});
  }
  return adapter;
}

struct Job {
  std::string role;
  std::filesystem::path path;
  std::vector<ParameterSpec> specs;
  Publication publication;
  uint64_t seed = 0;
};

Status write(const Job& job, const ProgressFn& progress, WrittenWeights& written) {
  const bool torch = is_torch(job.path);
  std::vector<TensorHeader> headers;
  std::map<std::string, const ParameterSpec*> by_name;
  for (const ParameterSpec& spec : job.specs) {
    const std::string name = torch ? job.publication.prefix + spec.name : spec.name;
    headers.push_back({name, job.publication.dtype, spec.shape});
    by_name[name] = &spec;
    written.parameters += spec.shape.numel();
  }
  written.role = job.role;
  written.path = job.path;
  written.tensors = static_cast<int64_t>(headers.size());
  UF_ASSIGN(const std::unique_ptr<TensorWriter> writer,
            create_writer(job.path, std::move(headers), job.publication.wrapper));
  RandomSource source(job.seed, job.publication.dtype);
  int64_t done = 0;
  for (const TensorHeader& header : writer->order()) {
    UF_ASSIGN(const Tensor tensor, source.find(*by_name.at(header.name)));
    UF_TRY(writer->append(tensor));
    done += header.shape.numel();
    if (progress && !progress({job.role, done, written.parameters})) {
      return {StatusCode::kCancelled,
              "making weights was cancelled; the file being written was removed"};
    }
  }
  return writer->finish();
}

}  // namespace

Result<std::vector<WrittenWeights>> make_random_weights(const Recipe& recipe,
                                                        const std::filesystem::path& folder,
                                                        const RandomWeightsOptions& options,
                                                        const ProgressFn& progress) {
  const RecipeData& data = recipe.data();
  if (options.scale != 0 && data.cascade(options.scale) == nullptr) {
    return make_status(StatusCode::kInvalidArgument, "recipe '{}' has no scale {}", data.name,
                       options.scale);
  }
  if (options.dtype && *options.dtype != DType::kF32 && *options.dtype != DType::kBF16 &&
      *options.dtype != DType::kF16) {
    return make_status(StatusCode::kUnsupported,
                       "random weights are made in f32, bf16 or f16, not in {}",
                       dtype_name(*options.dtype));
  }
  std::vector<Job> jobs;
  for (const NetworkFile& file : network_files(data, options.scale)) {
    if (file.role == "text" && !options.text_encoder) continue;
    SpecSource no_data;
    Binder binder(no_data, file.role);
    file.bind(Loader(binder, {}));
    Job job{file.role, folder / file.spec.files[0], binder.specs(), publication(file),
            file_seed(options.seed, file.spec)};
    if (options.dtype) job.publication.dtype = *options.dtype;
    if (!file.spec.lora_files.empty()) {
      Job adapter = job;
      adapter.role = "adapter";
      adapter.path = folder / file.spec.lora_files[0];
      adapter.specs = adapter_specs(job.specs);
      adapter.publication.wrapper = "generator_lora";
      adapter.publication.prefix = "";
      jobs.push_back(std::move(adapter));
    }
    jobs.push_back(std::move(job));
  }
  for (const Job& job : jobs) {
    std::error_code error;
    if (std::filesystem::exists(job.path, error)) {
      return make_status(StatusCode::kInvalidArgument,
                         "{} exists and is not overwritten; choose another folder",
                         job.path.string());
    }
  }
  std::vector<WrittenWeights> written;
  for (const Job& job : jobs) {
    std::error_code error;
    std::filesystem::create_directories(job.path.parent_path(), error);
    if (error) {
      return make_status(StatusCode::kIo, "{}: the folder cannot be made: {}",
                         job.path.parent_path().string(), error.message());
    }
    WrittenWeights file;
    UF_TRY(write(job, progress, file));
    written.push_back(std::move(file));
  }
  return written;
}

}  // namespace ultraflash
