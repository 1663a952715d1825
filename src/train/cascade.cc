#include "train/cascade.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "diffusion/flow_match.h"
#include "models/wan_dit_training.h"
#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"
#include "train/generator.h"
#include "train/pictures.h"

namespace ultraflash {
namespace {

// A generator's parameters for a network with more input channels: its patch embedding gets zeros
// for them.
class WidenedSource final : public ParameterSource {
 public:
  explicit WidenedSource(ParameterSource& generator) : generator_(generator) {}

  Result<Tensor> find(const ParameterSpec& spec) override {
    UF_ASSIGN(const Tensor stored, generator_.find(spec));
    if (spec.name != "patch_embedding.weight" || stored.rank() != 5 ||
        spec.shape != stored.shape().with(1, spec.shape[1]) || stored.dim(1) >= spec.shape[1]) {
      return stored;
    }
    const at::Tensor narrow = to_torch(stored).to(at::kFloat);
    const int64_t more = spec.shape[1] - stored.dim(1);
    return from_torch(at::constant_pad_nd(narrow, {0, 0, 0, 0, 0, 0, 0, more}).contiguous());
  }
  [[nodiscard]] std::vector<std::string> names() const override { return generator_.names(); }
  [[nodiscard]] std::vector<std::string> complaints() const override {
    return generator_.complaints();
  }

 private:
  ParameterSource& generator_;
};

TimeModulation modulation(const TrainContext& context, const WanDit& transformer,
                          std::span<const double> sigmas, int64_t batch) {
  std::vector<double> timesteps(sigmas.begin(), sigmas.end());
  for (double& t : timesteps) t *= static_cast<double>(FlowMatchSchedule::kSteps);
  return transformer.time(context.ops(), timesteps, batch);
}

// Binds `refiner` for every scale; parameters that its set does not have yet come from `source`.
Status bind_refiner(const TrainContext& context, ParameterSource& source, const std::string& label,
                    Refiner& refiner) {
  refiner.parameters->bind_from(&source);
  for (const int64_t scale : context.config.cascade.scales) {
    UF_ASSIGN(const CascadeSpec* cascade, find_cascade(context, scale));
    Binder binder(*refiner.parameters, label);
    LoadTarget target;
    target.executor = context.executor.get();
    target.compute = context.compute;
    refiner.scales[scale] = {SparseSrDit::bind(Loader(binder, target), cascade->refiner->network)};
    UF_TRY(binder.finish());
  }
  refiner.parameters->bind_from(nullptr);
  return {};
}

}  // namespace

Result<const CascadeSpec*> find_cascade(const TrainContext& context, int64_t scale) {
  const CascadeSpec* cascade = context.recipe.cascade(scale);
  if (scale > 1 && cascade != nullptr && cascade->upsampler && cascade->refiner) return cascade;
  return make_status(StatusCode::kInvalidArgument,
                     "cascade.scales: recipe '{}' has no upsampler and super-resolution "
                     "transformer at scale {}",
                     context.recipe.name, scale);
}

// --- upsampler -----------------------------------------------------------------------------------

Result<UpsamplerNetwork> UpsamplerNetwork::open(const TrainContext& context,
                                                const std::string& init, int64_t scale,
                                                bool trainable) {
  UF_ASSIGN(const CascadeSpec* cascade, find_cascade(context, scale));
  UpsamplerNetwork upsampler;
  upsampler.parameters = std::make_shared<ParameterSet>(context.device, trainable);
  constexpr std::string_view kScale = "{scale}";
  std::string path = init;
  const size_t place = path.find(kScale);
  if (place != std::string::npos) path.replace(place, kScale.size(), std::to_string(scale));
  UF_TRY(bind_network(
      context, *upsampler.parameters, path, cascade->upsampler->checkpoint, {}, [&](Loader loader) {
        upsampler.network = LatentUpsampler::bind(std::move(loader), cascade->upsampler->network);
      }));
  if (init.empty()) {
    const at::NoGradGuard no_grad;
    for (const std::string& name : upsampler.parameters->names()) {
      if (name.starts_with("final.")) upsampler.parameters->leaf(name).zero_();
    }
  }
  return upsampler;
}

at::Tensor UpsamplerNetwork::run(const TrainContext& context, const at::Tensor& latents,
                                 UpsamplerState& state) const {
  const at::Tensor x = latents.to(to_torch(context.compute)).contiguous();
  return to_torch(network.run(context.ops(), from_torch(x), state)).to(at::kFloat);
}

int64_t UpsamplerNetwork::reach() const {
  const LatentUpsamplerConfig& c = network.config();
  return c.version == 1
             ? c.num_blocks
             : std::accumulate(c.blocks_per_stage.begin(), c.blocks_per_stage.end(), int64_t{0});
}

at::Tensor UpsamplerNetwork::run_window(const TrainContext& context, const at::Tensor& latents,
                                        int64_t lead) const {
  UpsamplerState state;
  if (lead > 0) {
    const at::NoGradGuard no_grad;
    (void)run(context, latents.narrow(1, 0, lead), state);
  }
  return run(context, latents.narrow(1, lead, latents.size(1) - lead), state);
}

// --- super-resolution transformer ----------------------------------------------------------------

Result<Refiner> Refiner::open(const TrainContext& context, const std::string& init,
                              bool trainable) {
  UF_ASSIGN(const CascadeSpec* cascade, find_cascade(context, context.config.cascade.scales[0]));
  Refiner refiner;
  refiner.parameters = std::make_shared<ParameterSet>(context.device, trainable);
  const std::string& generator = context.config.init.generator;
  try {
    if (!init.empty() || generator.empty()) {
      UF_ASSIGN(const InitialWeights initial,
                InitialWeights::open(context, init, cascade->refiner->checkpoint));
      UF_TRY(bind_refiner(context, *initial.source, initial.label, refiner));
      return refiner;
    }
    UF_ASSIGN(const InitialWeights initial,
              InitialWeights::open(context, generator, context.recipe.generator.checkpoint));
    WidenedSource widened(*initial.source);
    UF_TRY(bind_refiner(context, widened, initial.label, refiner));
    return refiner;
  } catch (const Error& error) {
    return error.status();
  }
}

Result<Refiner> Refiner::copy(const TrainContext& context, bool trainable) const {
  Refiner other;
  other.parameters = std::make_shared<ParameterSet>(context.device, trainable);
  UF_TRY(bind_refiner(context, *parameters, "a copy", other));
  return other;
}

at::Tensor RefinerNetwork::dense(const TrainContext& context, const at::Tensor& x,
                                 const at::Tensor& y, std::span<const double> sigmas,
                                 const TextKv& text) const {
  const WanDit& transformer = network.transformer();
  const TimeModulation time = modulation(context, transformer, sigmas, x.size(0));
  const int64_t frames = x.size(1);
  const int64_t chunk = network.config().stream_chunk_size;
  at::Tensor both = at::cat({x, y}, 4);
  const int64_t missing = (chunk - frames % chunk) % chunk;
  if (missing > 0) {
    both = at::cat({both, both.narrow(1, frames - 1, 1).expand({-1, missing, -1, -1, -1})}, 1);
  }
  return to_torch(run_chunk_causal(context.ops(), transformer, from_torch(both), chunk, time, text))
      .narrow(1, 0, frames);
}

at::Tensor RefinerNetwork::dense(const TrainContext& context, const at::Tensor& x,
                                 const at::Tensor& y, const at::Tensor& sigmas,
                                 const TextKv& text) const {
  const DeviceTimesteps timesteps(context.ops(),
                                  sigmas * static_cast<double>(FlowMatchSchedule::kSteps));
  const std::vector<double> as_many(static_cast<size_t>(sigmas.size(0)), 0.0);
  return dense(context, x, y, as_many, text);
}

at::Tensor RefinerNetwork::flow_loss(const TrainContext& context, const at::Tensor& z,
                                     const at::Tensor& y, const at::Tensor& sigmas,
                                     const at::Tensor& embeddings) const {
  const at::Tensor noise = at::randn_like(z);
  const at::Tensor x = add_noise(z, noise, per_sample(sigmas));
  const at::Tensor v = dense(context, x, y, sigmas, text(context, from_torch(embeddings)));
  return (v - (noise - z)).square().mean();
}

at::Tensor per_sample(const at::Tensor& sigmas) {
  return sigmas.to(at::kFloat).view({-1, 1, 1, 1, 1});
}

at::Tensor RefinerNetwork::sparse(const TrainContext& context, const at::Tensor& x,
                                  const at::Tensor& y, std::span<const double> sigmas,
                                  const TextKv& text, SparseSrState& state,
                                  const SparseBudget& budget) const {
  const TimeModulation time = modulation(context, network.transformer(), sigmas, x.size(0));
  SparseSrPass pass;
  pass.time = &time;
  pass.text = &text;
  pass.kv_len = budget.kv_len;
  pass.ratio_factor = budget.ratio_factor;
  return to_torch(network.run(context.ops(), from_torch(x.contiguous()), from_torch(y.contiguous()),
                              state, pass));
}

at::Tensor RefinerNetwork::sample(const TrainContext& context, const at::Tensor& noise,
                                  const at::Tensor& y, const TextKv& text, int64_t steps,
                                  double shift) const {
  const at::NoGradGuard no_grad;
  at::Tensor x = noise;
  const auto sigma_of = [&](int64_t i) {
    return shifted(1.0 - static_cast<double>(i) / static_cast<double>(steps), shift);
  };
  for (int64_t i = 0; i < steps; ++i) {
    const std::vector<double> sigmas(static_cast<size_t>(x.size(0)), sigma_of(i));
    x = x + (sigma_of(i + 1) - sigma_of(i)) * dense(context, x, y, sigmas, text);
  }
  return x;
}

at::Tensor RefinerNetwork::sample_guided(const TrainContext& context, const at::Tensor& noise,
                                         const at::Tensor& y, const Tensor& embeddings,
                                         const Tensor& no_text, int64_t steps, double shift,
                                         double guidance) const {
  const at::NoGradGuard no_grad;
  const int64_t batch = noise.size(0);
  const at::Tensor condition = at::cat({y, y});
  const TextKv both = text(context, from_torch(at::cat({to_torch(embeddings), to_torch(no_text)})));
  at::Tensor x = noise;
  const auto sigma_of = [&](int64_t i) {
    return shifted(1.0 - static_cast<double>(i) / static_cast<double>(steps), shift);
  };
  for (int64_t i = 0; i < steps; ++i) {
    const std::vector<double> sigmas(static_cast<size_t>(2 * batch), sigma_of(i));
    const at::Tensor v = dense(context, at::cat({x, x}), condition, sigmas, both);
    x = x + (sigma_of(i + 1) - sigma_of(i)) *
                at::lerp(v.narrow(0, batch, batch), v.narrow(0, 0, batch), guidance);
  }
  return x;
}

at::Tensor DecodedPair::last_of(const at::Tensor& pictures) const {
  const int64_t rate = pictures.size(1) / frames;
  return pictures.unflatten(1, {frames, rate}).select(2, rate - 1).flatten(0, 1);
}

at::Tensor decode_window(const TrainContext& context, const TinyDecoder& decoder,
                         const at::Tensor& latents, int64_t first, int64_t frames, int64_t clips) {
  const int64_t lead = std::min<int64_t>(first, 1);
  const auto low = static_cast<double>(decoder.config().output_low());
  DecoderState state;
  const at::Tensor z = latents.narrow(0, 0, std::min(clips, latents.size(0)))
                           .narrow(1, first - lead, lead + frames)
                           .to(to_torch(context.compute))
                           .contiguous();
  const at::Tensor y = to_torch(decoder.run(context.ops(), from_torch(z), state));
  const int64_t shown = frames * decoder.config().frames_per_latent();
  const at::Tensor pictures = y.narrow(1, y.size(1) - shown, shown).to(at::kFloat);
  return low == 0.0 ? pictures : (pictures - low) / (1.0 - low);
}

DecodedPair decode_pair(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                        const at::Tensor& x, const at::Tensor& truth, int64_t clips, int64_t frames,
                        int64_t step, int64_t purpose) {
  const PairWindow window = PairWindow::draw(context, x.size(1), frames, step, purpose);
  DecodedPair result =
      decode_pair(context, autoencoder, x, truth, clips, window.places(x.device()));
  result.first += window.first;
  return result;
}

DecodedPair decode_pair(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                        const at::Tensor& x, const at::Tensor& truth, int64_t clips,
                        const at::Tensor& places) {
  DecodedPair result;
  result.frames = std::max<int64_t>(places.size(0) - 1, 1);
  result.first = places.size(0) - result.frames;
  const auto decoded = [&](const at::Tensor& latents) {
    const at::Tensor seen =
        latents.narrow(0, 0, std::min(clips, latents.size(0))).index_select(1, places);
    return decode_window(context, autoencoder.decoder, seen, result.first, result.frames, clips);
  };
  {
    const at::NoGradGuard no_grad;
    result.truth = decoded(truth);
  }
  result.made = decoded(x);
  return result;
}

PairWindow PairWindow::draw(const TrainContext& context, int64_t all, int64_t frames, int64_t step,
                            int64_t purpose) {
  PairWindow window;
  window.count = std::min(frames + 1, all);
  window.first = StepRandom(context, step, purpose).below(all - window.count + 1);
  return window;
}

at::Tensor PairWindow::places(at::Device device) const {
  return at::arange(first, first + count, at::TensorOptions(at::kLong).device(device));
}

at::Tensor picture_distance(const DecodedPair& pictures, double spectrum) {
  const at::Tensor error = pictures.made - pictures.truth;
  const at::Tensor distance =
      error.abs().mean() + difference(error, 2).abs().mean() + difference(error, 3).abs().mean();
  if (spectrum == 0.0) return distance;
  return distance +
         spectrum * spectrum_distance(pictures.made.flatten(0, 1), pictures.truth.flatten(0, 1));
}

}  // namespace ultraflash
