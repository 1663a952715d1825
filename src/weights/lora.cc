#include "weights/lora.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/utf8.h"
#include "weights/parallel_chunks.h"

namespace ultraflash {
namespace {

enum class Part : uint8_t { kA, kB, kAlpha };

struct PartName {
  std::string_view text;
  Part part;
};
constexpr std::array<PartName, 4> kMatrixNames = {{{".lora_A.", Part::kA},
                                                   {".lora_B.", Part::kB},
                                                   {".lora_down.", Part::kA},
                                                   {".lora_up.", Part::kB}}};
constexpr std::array<std::string_view, 4> kPrefixes = {"base_model.model.", "diffusion_model.",
                                                       "model.", "module."};

struct ParsedName {
  std::string layer;
  Part part = Part::kA;
};

std::string layer_name(std::string_view name) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view prefix : kPrefixes) {
      if (name.starts_with(prefix)) {
        name.remove_prefix(prefix.size());
        again = true;
      }
    }
  }
  return std::string(name);
}

std::optional<ParsedName> parse_name(std::string_view name) {
  for (const auto& [text, part] : kMatrixNames) {
    const size_t at = name.rfind(text);
    if (at == std::string_view::npos || at == 0) continue;
    // "weight", or "<name of the adapter>.weight"
    const std::string_view rest = name.substr(at + text.size());
    const size_t dot = rest.find('.');
    if (rest != "weight" && (dot == std::string_view::npos || rest.substr(dot) != ".weight")) {
      continue;
    }
    return ParsedName{layer_name(name.substr(0, at)), part};
  }
  constexpr std::string_view kAlpha = ".alpha";
  if (name.ends_with(kAlpha) && name.size() > kAlpha.size()) {
    return ParsedName{layer_name(name.substr(0, name.size() - kAlpha.size())), Part::kAlpha};
  }
  return std::nullopt;
}

template <typename... Args>
Status failure(StatusCode code, const std::string& label, fmt::format_string<Args...> format,
               Args&&... args) {
  return make_status(code, "{}: {}", label, fmt::format(format, std::forward<Args>(args)...));
}

Result<double> read_alpha(const Tensor& tensor, const std::string& label, const std::string& name) {
  if (tensor.numel() != 1) {
    return failure(StatusCode::kMalformed, label, "{} is {}, expected one number", printable(name),
                   tensor.to_string());
  }
  const double alpha = static_cast<double>(tensor.to(DType::kF32).data<float>()[0]);
  if (!std::isfinite(alpha)) {
    return failure(StatusCode::kMalformed, label, "{} is not a finite number", printable(name));
  }
  return alpha;
}

Status check_layer(const LoraLayer& layer, const std::string& label) {
  const std::string shown = printable(layer.name);
  if (!layer.a.defined() || !layer.b.defined()) {
    return failure(StatusCode::kMalformed, label, "{} has lora_{} but no lora_{}", shown,
                   layer.a.defined() ? 'A' : 'B', layer.a.defined() ? 'B' : 'A');
  }
  if (layer.a.rank() != 2 || layer.b.rank() != 2 || !dtype_is_floating(layer.a.dtype()) ||
      !dtype_is_floating(layer.b.dtype())) {
    return failure(StatusCode::kUnsupported, label,
                   "{} has the adapter {} and {}; only adapters of linear layers are merged", shown,
                   layer.a.to_string(), layer.b.to_string());
  }
  if (layer.a.dim(0) != layer.b.dim(1) || layer.a.dim(0) == 0) {
    return failure(StatusCode::kMalformed, label,
                   "{} has lora_A {} and lora_B {}; their ranks ({} and {}) must be equal", shown,
                   layer.a.shape().to_string(), layer.b.shape().to_string(), layer.a.dim(0),
                   layer.b.dim(1));
  }
  return {};
}

constexpr int64_t kRows = 4;       // outputs computed together, so that a row of A is read once
constexpr int64_t kColumns = 512;  // inputs computed together: 4 x 512 sums stay in the first cache

struct Product {
  const float* a;  // [rank, inputs]
  const float* b;  // [outputs, rank]
  int64_t inputs;
  int64_t rank;
};

// sums[r][i] = (B A)[row + r, column + i]. Each sum runs over the rank in order, without fused
// operations, so that every machine and number of threads gets the same bits.
inline __attribute__((always_inline)) void multiply_tile(const Product& p, int64_t row,
                                                         int64_t rows, int64_t column,
                                                         int64_t columns,
                                                         float (&sums)[kRows][kColumns]) {
  for (auto& sum : sums) std::fill(std::begin(sum), std::end(sum), 0.0F);
  for (int64_t k = 0; k < p.rank; ++k) {
    const float* const a = p.a + k * p.inputs + column;
    for (int64_t r = 0; r < rows; ++r) {
      const float b = p.b[(row + r) * p.rank + k];
      float* const sum = sums[r];
      for (int64_t i = 0; i < columns; ++i) sum[i] += b * a[i];
    }
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void multiply_tile_avx2(const Product& p, int64_t row, int64_t rows,
                                                        int64_t column, int64_t columns,
                                                        float (&sums)[kRows][kColumns]) {
  multiply_tile(p, row, rows, column, columns, sums);
}
#endif

void multiply(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t columns,
              float (&sums)[kRows][kColumns]) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (has_avx2) return multiply_tile_avx2(p, row, rows, column, columns, sums);
#endif
  multiply_tile(p, row, rows, column, columns, sums);
}

}  // namespace

Result<LoraAdapter> LoraAdapter::open(const std::filesystem::path& path,
                                      const LoraOptions& options) {
  return without_exceptions([&]() -> Result<LoraAdapter> {
    CheckpointOptions checkpoint;
    checkpoint.wrapper = options.wrapper;
    checkpoint.wrapper_order = {"generator_lora", "lora", "state_dict", "model"};
    UF_ASSIGN(const Checkpoint file, Checkpoint::open(path, checkpoint));
    return from_checkpoint(file, options);
  });
}

Result<LoraAdapter> LoraAdapter::from_checkpoint(const Checkpoint& checkpoint,
                                                 const LoraOptions& options) {
  return without_exceptions([&]() -> Result<LoraAdapter> {
    LoraAdapter adapter;
    adapter.label_ = checkpoint.label();
    adapter.files_ = checkpoint.files();
    const std::string& label = adapter.label_;
    std::map<std::string, double> alphas;
    for (const TensorEntry& entry : checkpoint.entries()) {
      const std::optional<ParsedName> parsed = parse_name(entry.name);
      if (!parsed) {
        return failure(StatusCode::kUnsupported, label,
                       "{} is not part of a LoRA adapter (expected ....lora_A.weight, "
                       "....lora_B.weight or ....alpha)",
                       printable(entry.name));
      }
      UF_ASSIGN(Tensor tensor, checkpoint.tensor(entry.name));
      if (parsed->part == Part::kAlpha) {
        UF_ASSIGN(alphas[parsed->layer], read_alpha(tensor, label, entry.name));
        continue;
      }
      const auto [position, fresh] =
          adapter.by_name_.emplace(parsed->layer, adapter.layers_.size());
      if (fresh) adapter.layers_.push_back({parsed->layer, {}, {}, 0});
      LoraLayer& layer = adapter.layers_[position->second];
      Tensor& place = parsed->part == Part::kA ? layer.a : layer.b;
      if (place.defined()) {
        return failure(StatusCode::kMalformed, label, "{} has more than one adapter",
                       printable(layer.name));
      }
      place = std::move(tensor);
    }
    if (adapter.layers_.empty()) {
      return failure(StatusCode::kMalformed, label, "holds no LoRA adapter");
    }
    for (LoraLayer& layer : adapter.layers_) {
      UF_TRY(check_layer(layer, label));
      const auto alpha = alphas.find(layer.name);
      layer.alpha = options.alpha           ? *options.alpha
                    : alpha != alphas.end() ? alpha->second
                                            : static_cast<double>(layer.rank());
      if (alpha != alphas.end()) alphas.erase(alpha);
    }
    if (!alphas.empty()) {
      return failure(StatusCode::kMalformed, label, "{} has an alpha but no matrices",
                     printable(alphas.begin()->first));
    }
    return adapter;
  });
}

const LoraLayer* LoraAdapter::find(std::string_view layer) const {
  const auto position = by_name_.find(std::string(layer));
  return position == by_name_.end() ? nullptr : &layers_[position->second];
}

const LoraLayer* LoraAdapter::find_for_weight(std::string_view weight) const {
  constexpr std::string_view kWeight = ".weight";
  if (!weight.ends_with(kWeight)) return nullptr;
  return find(weight.substr(0, weight.size() - kWeight.size()));
}

Result<Tensor> merge_lora(const Tensor& weight, const LoraLayer& layer, double scale) {
  return without_exceptions([&]() -> Result<Tensor> {
    if (weight.rank() != 2 || !dtype_is_floating(weight.dtype())) {
      return make_status(StatusCode::kUnsupported,
                         "{}.weight is {}, and adapters merge into floating-point matrices only",
                         printable(layer.name), weight.to_string());
    }
    const int64_t outputs = weight.dim(0);
    const int64_t inputs = weight.dim(1);
    if (layer.a.dim(1) != inputs || layer.b.dim(0) != outputs) {
      return make_status(StatusCode::kMalformed,
                         "{}.weight is {}, but its adapter is for [{}, {}]; it belongs to another "
                         "model",
                         printable(layer.name), weight.shape().to_string(), layer.b.dim(0),
                         layer.a.dim(1));
    }
    const Tensor a = layer.a.to(DType::kF32);
    const Tensor b = layer.b.to(DType::kF32);
    const Tensor dense = weight.to(weight.dtype());
    const Tensor merged = Tensor::allocate(weight.dtype(), weight.shape());
    const Product product{a.data<float>(), b.data<float>(), inputs, layer.rank()};
    const auto factor = static_cast<float>(scale * layer.alpha / static_cast<double>(layer.rank()));
    const auto width = static_cast<int64_t>(dtype_size(weight.dtype()));
    std::byte* const out = merged.mutable_raw();
    parallel_chunks(outputs, kRows, [&](int64_t begin, int64_t end) {
      float sums[kRows][kColumns];
      float base[kColumns];
      for (int64_t column = 0; column < inputs; column += kColumns) {
        const int64_t columns = std::min(kColumns, inputs - column);
        multiply(product, begin, end - begin, column, columns, sums);
        for (int64_t row = begin; row < end; ++row) {
          const int64_t place = (row * inputs + column) * width;
          float* const sum = sums[row - begin];
          convert_elements(weight.dtype(), dense.raw() + place, DType::kF32, base, columns);
          for (int64_t i = 0; i < columns; ++i) sum[i] = base[i] + factor * sum[i];
          convert_elements(DType::kF32, sum, weight.dtype(), out + place, columns);
        }
      }
    });
    return merged;
  });
}

Result<Tensor> LoraSource::find(const ParameterSpec& spec) {
  return without_exceptions([&]() -> Result<Tensor> {
    UF_ASSIGN(Tensor weight, base_.find(spec));
    const LoraLayer* layer = adapter_.find_for_weight(spec.name);
    if (layer == nullptr) return weight;
    {
      const std::lock_guard lock(mutex_);
      used_.insert(layer->name);
    }
    if (!weight.defined()) return weight;
    Result<Tensor> merged = merge_lora(weight, *layer, scale_);
    if (!merged) {
      return make_status(merged.status().code(), "{}: {}", adapter_.label(),
                         merged.status().message());
    }
    return merged;
  });
}

std::vector<std::string> LoraSource::complaints() const {
  std::vector<std::string> complaints = base_.complaints();
  const std::lock_guard lock(mutex_);
  std::vector<std::string> unmatched;
  for (const LoraLayer& layer : adapter_.layers()) {
    if (used_.count(layer.name) == 0) unmatched.push_back(printable(layer.name));
  }
  if (unmatched.empty()) return complaints;
  const size_t shown = std::min<size_t>(unmatched.size(), 4);
  complaints.push_back(fmt::format(
      "{} of the {} layers of the adapter {} match nothing ({}{})", unmatched.size(),
      adapter_.layers().size(), adapter_.label(),
      fmt::join(unmatched.begin(), unmatched.begin() + static_cast<ptrdiff_t>(shown), ", "),
      unmatched.size() > shown ? ", ..." : ""));
  return complaints;
}

}  // namespace ultraflash
