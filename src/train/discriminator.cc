#include "train/discriminator.h"

#include <string>

#include "ops/autograd/torch_tensor.h"

namespace ultraflash {
namespace {

constexpr double kEps = 1e-6;

at::Tensor rms_normed(const at::Tensor& x, const at::Tensor& weight) {
  return x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + kEps) * weight;
}

}  // namespace

Result<Discriminator> Discriminator::make(const TrainContext& context) {
  const WanDitConfig& c = context.recipe.generator.network;
  Discriminator result;
  result.heads_ = c.num_heads;
  result.layers_ = {c.num_layers / 2 - 1, c.num_layers * 3 / 4 - 1, c.num_layers - 1};
  for (int64_t& layer : result.layers_) layer = std::max<int64_t>(layer, 0);
  result.parameters_ = std::make_shared<ParameterSet>(context.device, /*trainable=*/true);
  RandomSource random(static_cast<uint64_t>(context.config.seed) + 1);
  result.parameters_->bind_from(&random);
  Binder binder(*result.parameters_, "the discriminator");
  const int64_t d = c.dim;
  const int64_t ffn = d * 16 / 3;  // 8192 at the published width
  const auto vector = [&](const std::string& name, const ParameterInit& init, int64_t size) {
    (void)binder.parameter(name, {size}, init);
  };
  const auto matrix = [&](const std::string& name, int64_t out, int64_t in) {
    (void)binder.parameter(name + ".weight", {out, in}, scaled_fan_in({out, in}, 1.0F));
    vector(name + ".bias", ParameterInit::zeros(), out);
  };
  (void)binder.parameter("_register_tokens.tokens", {kTaps, d}, ParameterInit::normal(0.02F));
  vector("_register_tokens.norm.weight", ParameterInit::ones(), d);
  for (int64_t tap = 0; tap < kTaps; ++tap) {
    const std::string base = fmt::format("_gan_ca_blocks.{}.", tap);
    vector(base + "norm3.weight", ParameterInit::ones(), d);
    vector(base + "norm3.bias", ParameterInit::zeros(), d);
    for (const char* name : {"q", "k", "v", "o"}) matrix(base + "cross_attn." + name, d, d);
    vector(base + "cross_attn.norm_q.weight", ParameterInit::ones(), d);
    vector(base + "cross_attn.norm_k.weight", ParameterInit::ones(), d);
    vector(base + "norm2.weight", ParameterInit::ones(), d);
    vector(base + "norm2.bias", ParameterInit::zeros(), d);
    matrix(base + "ffn.0", ffn, d);
    matrix(base + "ffn.2", d, ffn);
  }
  vector("_cls_pred_branch.0.weight", ParameterInit::ones(), kTaps * d);
  vector("_cls_pred_branch.0.bias", ParameterInit::zeros(), kTaps * d);
  matrix("_cls_pred_branch.1", d, kTaps * d);
  matrix("_cls_pred_branch.3", 1, d);  // 2 is the activation
  result.parameters_->bind_from(nullptr);
  UF_TRY(binder.finish());
  return result;
}

at::Tensor Discriminator::read(const at::Tensor& hidden, int64_t tap) const {
  const std::string base = fmt::format("_gan_ca_blocks.{}.", tap);
  const int64_t batch = hidden.size(0);
  const int64_t d = hidden.size(2);
  const auto linear = [&](const at::Tensor& x, const std::string& name) {
    return at::linear(x, leaf(base + name + ".weight"), leaf(base + name + ".bias"));
  };
  const auto in_heads = [&](const at::Tensor& x) {
    return x.reshape({batch, x.size(1), heads_, d / heads_}).transpose(1, 2);
  };
  const at::Tensor x = at::layer_norm(hidden.to(at::kFloat), {d}, leaf(base + "norm3.weight"),
                                      leaf(base + "norm3.bias"), kEps);
  const at::Tensor token =
      rms_normed(leaf("_register_tokens.tokens").select(0, tap).expand({batch, 1, d}),
                 leaf("_register_tokens.norm.weight"));
  const at::Tensor q =
      rms_normed(linear(token, "cross_attn.q"), leaf(base + "cross_attn.norm_q.weight"));
  const at::Tensor k =
      rms_normed(linear(x, "cross_attn.k"), leaf(base + "cross_attn.norm_k.weight"));
  const at::Tensor y = at::scaled_dot_product_attention(in_heads(q), in_heads(k),
                                                        in_heads(linear(x, "cross_attn.v")));
  const at::Tensor attended =
      token + linear(y.transpose(1, 2).reshape({batch, 1, d}), "cross_attn.o");
  const at::Tensor n =
      at::layer_norm(attended, {d}, leaf(base + "norm2.weight"), leaf(base + "norm2.bias"), kEps);
  return attended + linear(at::gelu(linear(n, "ffn.0"), "tanh"), "ffn.2");  // [batch, 1, dim]
}

at::Tensor Discriminator::logits(const TrainContext& context, const GeneratorNetwork& trunk,
                                 const at::Tensor& latents, std::span<const double> sigmas,
                                 const Tensor& embeddings, at::Tensor* flow) const {
  std::vector<at::Tensor> taps(kTaps);
  const ForwardProbe probe = [&](std::string_view name, const Tensor& value) {
    for (size_t tap = 0; tap < taps.size(); ++tap) {
      if (name == fmt::format("blocks.{}.ffn", layers_[tap])) taps[tap] = to_torch(value);
    }
  };
  const TextKv text = trunk.text(context, embeddings);
  at::Tensor prediction = trunk.bidirectional(context, latents, sigmas, text, probe);
  if (flow != nullptr) *flow = std::move(prediction);
  std::vector<at::Tensor> tokens;
  for (int64_t tap = 0; tap < kTaps; ++tap) {
    tokens.push_back(read(taps[static_cast<size_t>(tap)], tap).select(1, 0));
  }
  at::Tensor y = at::cat(tokens, 1);  // [batch, 3 * dim]
  y = at::layer_norm(y, {y.size(1)}, leaf("_cls_pred_branch.0.weight"),
                     leaf("_cls_pred_branch.0.bias"), kEps);
  y = at::silu(at::linear(y, leaf("_cls_pred_branch.1.weight"), leaf("_cls_pred_branch.1.bias")));
  return at::linear(y, leaf("_cls_pred_branch.3.weight"), leaf("_cls_pred_branch.3.bias"))
      .squeeze(1);
}

at::Tensor discriminator_loss(const at::Tensor& real, const at::Tensor& fake, bool relativistic) {
  if (relativistic) return at::softplus(fake - real).mean();
  return at::softplus(-real).mean() + at::softplus(fake).mean();
}

at::Tensor adversarial_loss(const at::Tensor& real, const at::Tensor& fake, bool relativistic) {
  return at::softplus(relativistic ? real - fake : -fake).mean();
}

at::Tensor slope_penalty(const at::Tensor& logits, const at::Tensor& disturbed, double sigma) {
  return ((disturbed - logits) / sigma).square().mean();
}

}  // namespace ultraflash
