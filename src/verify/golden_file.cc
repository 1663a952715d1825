#include "verify/golden_file.h"

#include <cmath>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

}  // namespace

Result<GoldenFile> GoldenFile::open(const std::filesystem::path& path) {
  CheckpointOptions as_stored;
  as_stored.clean_names = false;
  UF_ASSIGN(RawCheckpoint raw, read_raw_checkpoint(path));
  UF_ASSIGN(Checkpoint all, Checkpoint::select(raw, path.string(), as_stored));
  const auto module = all.metadata().find("module");
  const auto config = all.metadata().find("config");
  if (module == all.metadata().end() || config == all.metadata().end()) {
    return make_status(StatusCode::kMalformed,
                       "{}: no 'module' and 'config' in its metadata; this is not a golden file",
                       path.string());
  }
  nlohmann::json parsed;
  if (config->second.size() <= kMaxConfigBytes) {
    parsed = nlohmann::json::parse(config->second, nullptr, /*allow_exceptions=*/false);
  }
  if (!parsed.is_object()) {
    return make_status(StatusCode::kMalformed, "{}: its config is not a JSON object",
                       path.string());
  }
  return GoldenFile(std::move(raw), std::move(all), module->second, std::move(parsed));
}

Checkpoint GoldenFile::part(const std::string& prefix) const {
  CheckpointOptions options;
  options.clean_names = false;
  options.prefix = prefix;
  Result<Checkpoint> part = Checkpoint::select(raw_, label(), options);
  if (!part.ok()) throw Error(part.status());
  return *std::move(part);
}

Tensor GoldenFile::tensor(const std::string& name) const {
  Result<Tensor> found = all_.tensor(name);
  if (!found.ok()) throw Error(found.status());
  return *found;
}

const nlohmann::json& GoldenFile::require(const char* key) const {
  const auto position = config_.find(key);
  if (position == config_.end()) {
    throw_error(StatusCode::kMalformed, "{}: its config has no '{}'", label(), key);
  }
  return *position;
}

int64_t GoldenFile::integer(const char* key) const {
  const nlohmann::json& value = require(key);
  if (!value.is_number_integer()) {
    throw_error(StatusCode::kMalformed, "{}: '{}' of its config is no integer", label(), key);
  }
  return value.get<int64_t>();
}

int64_t GoldenFile::integer_or(const char* key, int64_t fallback) const {
  const auto position = config_.find(key);
  return position == config_.end() || position->is_null() ? fallback : integer(key);
}

double GoldenFile::number_or(const char* key, double fallback) const {
  const auto position = config_.find(key);
  return position != config_.end() && position->is_number() ? position->get<double>() : fallback;
}

bool GoldenFile::flag_or(const char* key, bool fallback) const {
  const auto position = config_.find(key);
  return position != config_.end() && position->is_boolean() ? position->get<bool>() : fallback;
}

std::string GoldenFile::text_or(const char* key, const std::string& fallback) const {
  const auto position = config_.find(key);
  return position != config_.end() && position->is_string() ? position->get<std::string>()
                                                            : fallback;
}

std::vector<int64_t> GoldenFile::integers(const char* key) const {
  const nlohmann::json& list = require(key);
  std::vector<int64_t> values;
  if (!list.is_array() || list.size() > 4096) {
    throw_error(StatusCode::kMalformed, "{}: '{}' of its config is no list", label(), key);
  }
  for (const nlohmann::json& value : list) {
    if (!value.is_number_integer() && !value.is_boolean()) {
      throw_error(StatusCode::kMalformed,
                  "{}: '{}' of its config holds something else than integers", label(), key);
    }
    values.push_back(value.is_boolean() ? static_cast<int64_t>(value.get<bool>())
                                        : value.get<int64_t>());
  }
  return values;
}

Tensor Replay::latent(const std::string& name) const {
  Tensor x = golden.tensor(name);
  if (x.rank() == 4) x = x.reshape({1, x.dim(0), x.dim(1), x.dim(2), x.dim(3)});
  if (x.rank() != 5) {
    throw_error(StatusCode::kMalformed, "{}: {} is {}, expected [1, C, F, H, W]", golden.label(),
                name, x.to_string());
  }
  return ops.to_device(x.permute({0, 2, 3, 4, 1}).copy(), options.dtype);
}

Tensor Replay::channels_first(const Tensor& x) const {
  return ops.to_host(ops.cast(x, DType::kF32)).permute({0, 4, 1, 2, 3}).copy();
}

void Replay::compare(const std::string& output, const Tensor& got_any) const {
  const Tensor expected = golden.tensor(output).to(DType::kF32);
  VerifyRow row;
  row.output = output;
  row.measure = "relative error";
  row.limit = options.tolerance.value_or(options.dtype == DType::kF32 ? 1e-4 : 3e-2);
  const Tensor got = ops.to_host(got_any).to(DType::kF32);
  if (got.numel() != expected.numel()) {
    row.value = std::nan("");
    row.measure = fmt::format("shape {} instead of {}", got.shape().to_string(),
                              expected.shape().to_string());
    report.rows.push_back(row);
    return;
  }
  double error = 0.0;
  double norm = 0.0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    const auto e = static_cast<double>(expected.data<float>()[i]);
    const double difference = std::fabs(static_cast<double>(got.data<float>()[i]) - e);
    error += difference * difference;
    norm += e * e;
    if (!(difference <= row.largest_difference)) {
      row.largest_difference = difference;
      row.worst_index = i;
    }
  }
  row.value = norm > 0.0 ? std::sqrt(error / norm) : std::sqrt(error);
  row.ok = row.value <= row.limit;  // false for NaN
  report.rows.push_back(row);
}

void Replay::compare_mask(const std::string& output, const Tensor& got_any) const {
  const Tensor expected = golden.tensor(output);
  const Tensor got = ops.to_host(got_any);
  VerifyRow row;
  row.output = output;
  row.measure = "mask agreement";
  // In f32 only ties may differ, and ties are rare.
  row.limit = options.mask_agreement > 0.0 ? options.mask_agreement
                                           : (options.dtype == DType::kF32 ? 0.999 : 0.99);
  if (got.numel() == expected.numel() && dtype_size(expected.dtype()) == 1) {
    int64_t equal = 0;
    for (int64_t i = 0; i < expected.numel(); ++i) {
      const bool same = (got.data<uint8_t>()[i] != 0) == (expected.data<uint8_t>()[i] != 0);
      equal += same ? 1 : 0;
      if (!same && row.worst_index < 0) row.worst_index = i;
    }
    row.value =
        static_cast<double>(equal) / static_cast<double>(std::max<int64_t>(expected.numel(), 1));
    row.largest_difference = static_cast<double>(expected.numel() - equal);
    row.ok = row.value >= row.limit;
  }
  report.rows.push_back(row);
}

void Replay::compare_exact(const std::string& output, const Tensor& got) const {
  const Tensor expected = golden.tensor(output).to(DType::kI64);
  const Tensor actual = got.to(DType::kI64);
  VerifyRow row;
  row.output = output;
  row.measure = "equal";
  row.limit = 1.0;
  int64_t equal = 0;
  if (actual.numel() == expected.numel()) {
    for (int64_t i = 0; i < expected.numel(); ++i) {
      const bool same = actual.data<int64_t>()[i] == expected.data<int64_t>()[i];
      equal += same ? 1 : 0;
      if (!same && row.worst_index < 0) row.worst_index = i;
    }
    row.value = expected.numel() == 0
                    ? 1.0
                    : static_cast<double>(equal) / static_cast<double>(expected.numel());
  }
  row.ok = row.value == 1.0;
  report.rows.push_back(row);
}

void Replay::compare_count(const std::string& output, int64_t got) const {
  const std::vector<int64_t> one = {got};
  compare_exact(output, Tensor::of<int64_t>(one, {1}));
}

Loader Replay::loader(Binder& binder) const {
  LoadTarget target;
  target.executor = &ops;
  target.compute = options.dtype;
  return Loader(binder, target);
}

}  // namespace ultraflash
