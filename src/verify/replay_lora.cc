// Replay of a merged adapter: the merged weights, and the layers that use them. How it is driven:
// docs/formats.md.
#include <string>
#include <vector>

#include "core/check.h"
#include "verify/golden_file.h"
#include "weights/lora.h"

namespace ultraflash {

void replay_lora_merge(const Replay& r) {
  const GoldenFile& g = r.golden;
  CheckpointSource base(g.part("in.base."));
  LoraOptions options;
  options.alpha = g.number_or("alpha", static_cast<double>(g.integer("rank")));
  Result<LoraAdapter> adapter = LoraAdapter::from_checkpoint(g.part("in.adapter."), options);
  if (!adapter.ok()) throw Error(adapter.status());
  LoraSource merged(base, *std::move(adapter));

  Binder weights(merged, g.label());
  const Checkpoint expected = g.part("out.merged.");
  for (const TensorEntry& entry : expected.entries()) {
    r.compare("out.merged." + entry.name, weights.parameter(entry.name, entry.shape, {}));
  }
  if (const Status bound = weights.finish(); !bound.ok()) throw Error(bound);

  Binder layers(merged, g.label());
  Loader loader = r.loader(layers);
  const Checkpoint inputs = g.part("in.x.");
  std::vector<Linear> linears;
  for (const TensorEntry& input : inputs.entries()) {
    const Shape out = g.tensor("out.y." + input.name).shape();
    linears.push_back(loader.linear(input.name, input.shape[-1], out[-1], /*bias=*/false));
  }
  if (const Status bound = layers.finish(); !bound.ok()) throw Error(bound);
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::string& name = inputs.entries()[i].name;
    const Tensor x = r.ops.to_device(g.tensor("in.x." + name), r.options.dtype);
    r.compare("out.y." + name, r.ops.cast(r.ops.linear(x, linears[i]), DType::kF32));
  }
}

}  // namespace ultraflash
