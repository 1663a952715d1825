// Replays of the tokenizer, the text encoder and the noise schedule. How each is driven:
// docs/formats.md.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "core/check.h"
#include "diffusion/flow_match.h"
#include "models/umt5.h"
#include "text/tokenizer.h"
#include "verify/golden_file.h"

namespace ultraflash {
namespace {

void require_ok(const Status& status) {
  if (!status.ok()) throw Error(status);
}

}  // namespace

void replay_tokenizer(const Replay& r) {
  const GoldenFile& g = r.golden;
  const Tensor model = g.tensor("w.spiece_model");
  TokenizerOptions options;
  options.extra_ids = g.integer_or("extra_ids", 0);
  const Result<Tokenizer> tokenizer =
      Tokenizer::from_bytes({reinterpret_cast<const std::byte*>(model.data<uint8_t>()),
                             static_cast<size_t>(model.numel())},
                            options, g.label());
  require_ok(tokenizer.status());
  const auto cases = g.config().find("cases");
  if (cases == g.config().end() || !cases->is_array()) {
    throw_error(StatusCode::kMalformed, "{}: its config has no list 'cases'", g.label());
  }
  for (size_t i = 0; i < cases->size(); ++i) {
    const nlohmann::json& row = (*cases)[i];
    const auto prompt = row.at("prompt").get<std::string>();
    const auto max_tokens = row.at("max_tokens").get<int64_t>();
    const Result<TokenIds> tokens = row.value("clean", false)
                                        ? encode_prompt(*tokenizer, prompt, max_tokens)
                                        : tokenizer->encode(prompt, max_tokens);
    require_ok(tokens.status());
    const auto as_tensor = [&](const std::vector<int64_t>& values) {
      return Tensor::of<int64_t>(values, {static_cast<int64_t>(values.size())});
    };
    r.compare_exact(fmt::format("out.ids.{}", i), as_tensor(tokens->ids));
    r.compare_exact(fmt::format("out.mask.{}", i), as_tensor(tokens->mask()));
  }
}

void replay_umt5_encoder(const Replay& r) {
  const GoldenFile& g = r.golden;
  Umt5Config config;
  config.vocab_size = g.integer("vocab");
  config.dim = g.integer("dim");
  config.dim_attn = g.integer("dim_attn");
  config.dim_ffn = g.integer("dim_ffn");
  config.num_heads = g.integer("num_heads");
  config.num_layers = g.integer("num_layers");
  config.num_buckets = g.integer("num_buckets");
  require_ok(config.validate());
  CheckpointSource source(g.weights());
  Binder binder(source, g.label());
  const Umt5Encoder encoder = Umt5Encoder::bind(r.loader(binder), config);
  require_ok(binder.finish());
  const Tensor ids = g.tensor("in.ids").to(DType::kI64);
  const Tensor mask = g.tensor("in.mask").to(DType::kI64);
  if (mask.shape() != ids.shape() || ids.rank() != 2) {
    throw_error(StatusCode::kMalformed, "{}: in.mask is {} beside in.ids {}", g.label(),
                mask.to_string(), ids.to_string());
  }
  // The mask is a run of ones; its length says how many tokens are real.
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < ids.dim(0); ++b) {
    int64_t length = 0;
    for (int64_t i = 0; i < ids.dim(1); ++i)
      length += mask.data<int64_t>()[b * ids.dim(1) + i] != 0;
    lengths.push_back(length);
  }
  const Tensor hidden = encoder.run(r.ops, ids, Tensor::of<int64_t>(lengths, {ids.dim(0)}),
                                    /*zero_padding=*/false);
  r.compare("out.hidden", r.ops.cast(hidden, DType::kF32));
}

void replay_flow_match_scheduler(const Replay& r) {
  const GoldenFile& g = r.golden;
  const FlowMatchSchedule schedule(static_cast<float>(g.number_or("shift", 5.0)));
  const auto as_tensor = [](std::span<const float> values) {
    return Tensor::of<float>(values, {static_cast<int64_t>(values.size())});
  };
  r.compare("out.sigmas", as_tensor(schedule.sigmas()));
  r.compare("out.timesteps", as_tensor(schedule.timesteps()));
  const std::vector<int64_t> steps = {1000, 750, 500, 250};
  Result<std::vector<float>> warped = schedule.warp(steps);
  require_ok(warped.status());
  r.compare("out.warped", as_tensor(*warped));

  const Tensor x0 = r.ops.to_device(g.tensor("in.x0"), r.options.dtype);
  const Tensor noise = r.ops.to_device(g.tensor("in.noise"), r.options.dtype);
  const Tensor t = g.tensor("in.t").to(DType::kF32);
  Tensor noisy = r.ops.empty(x0.dtype(), x0.shape());
  for (int64_t i = 0; i < t.numel(); ++i) {
    const float sigma = schedule.sigma_at(t.data<float>()[i]);
    r.ops.copy(noisy.slice(0, i, i + 1),
               r.ops.axpby(1.0F - sigma, x0.slice(0, i, i + 1), sigma, noise.slice(0, i, i + 1)));
  }
  r.compare("out.noisy", r.ops.cast(noisy, DType::kF32));
}

}  // namespace ultraflash
