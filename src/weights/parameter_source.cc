#include "weights/parameter_source.h"

#include <algorithm>
#include <cmath>

#include "core/exceptions.h"

namespace ultraflash {

ParameterInit ParameterInit::fan_in(const Shape& shape) {
  const int64_t outputs = shape.rank() > 0 ? shape[0] : 1;
  const int64_t inputs = shape.numel() / std::max<int64_t>(outputs, 1);
  return normal(1.0F / std::sqrt(static_cast<float>(std::max<int64_t>(inputs, 1))));
}

Result<Tensor> CheckpointSource::find(const ParameterSpec& spec) {
  return checkpoint_.tensor(spec.name);
}

std::vector<std::string> CheckpointSource::names() const {
  std::vector<std::string> names;
  for (const TensorEntry& entry : checkpoint_.entries()) names.push_back(entry.name);
  return names;
}

Result<Tensor> CastSource::find(const ParameterSpec& spec) {
  UF_ASSIGN(const Tensor tensor, base_.find(spec));
  if (!tensor.defined() || !dtype_is_floating(tensor.dtype())) return tensor;
  return without_exceptions([&]() -> Result<Tensor> { return tensor.to(dtype_); });
}

}  // namespace ultraflash
