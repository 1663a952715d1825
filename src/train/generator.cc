#include "train/generator.h"

#include <algorithm>
#include <cmath>

#include "models/wan_dit_training.h"
#include "ops/autograd/torch_tensor.h"

namespace ultraflash {

Result<TextNetwork> TextNetwork::open(const TrainContext& context, const std::string& init,
                                      bool trainable) {
  TextNetwork text;
  UF_ASSIGN(text.prepared, TextEmbeddings::open(context));
  if (text.prepared) return text;
  text.parameters = std::make_shared<ParameterSet>(context.device, trainable);
  UF_TRY(bind_network(context, *text.parameters, init, context.recipe.text.checkpoint, {},
                      [&](Loader loader) {
                        text.network = Umt5Encoder::bind(loader, context.recipe.text.encoder);
                      }));
  return text;
}

Result<GeneratorNetwork> GeneratorNetwork::open(const TrainContext& context,
                                                const std::string& init, bool trainable) {
  GeneratorNetwork generator;
  generator.parameters = std::make_shared<ParameterSet>(context.device, trainable);
  const GeneratorSpec& spec = context.recipe.generator;
  UF_TRY(
      bind_network(context, *generator.parameters, init, spec.checkpoint, {}, [&](Loader loader) {
        generator.network = WanDit::bind(loader, spec.network, context.compute);
      }));
  return generator;
}

Result<GeneratorNetwork> GeneratorNetwork::copy(const TrainContext& context, bool trainable) const {
  GeneratorNetwork other;
  other.parameters = std::make_shared<ParameterSet>(context.device, trainable);
  other.parameters->bind_from(parameters.get());
  Binder binder(*other.parameters, "a copy");
  LoadTarget target;
  target.executor = context.executor.get();
  target.compute = context.compute;
  other.network =
      WanDit::bind(Loader(binder, target), context.recipe.generator.network, context.compute);
  other.parameters->bind_from(nullptr);
  UF_TRY(binder.finish());
  return other;
}

TimeModulation GeneratorNetwork::time(const TrainContext& context, std::span<const double> sigmas,
                                      int64_t batch) const {
  std::vector<double> timesteps(sigmas.begin(), sigmas.end());
  for (double& t : timesteps) t *= static_cast<double>(FlowMatchSchedule::kSteps);
  return network.time(context.ops(), timesteps, batch);
}

at::Tensor GeneratorNetwork::bidirectional(const TrainContext& context, const at::Tensor& latents,
                                           std::span<const double> sigmas, const TextKv& text,
                                           const ForwardProbe& probe) const {
  const TimeModulation modulation = time(context, sigmas, latents.size(0));
  return to_torch(
      run_bidirectional(context.ops(), network, from_torch(latents), modulation, text, probe));
}

at::Tensor GeneratorNetwork::chunk_causal(const TrainContext& context, const at::Tensor& latents,
                                          std::span<const double> sigmas,
                                          const TextKv& text) const {
  const TimeModulation modulation = time(context, sigmas, latents.size(0));
  return to_torch(run_chunk_causal(context.ops(), network, from_torch(latents),
                                   context.recipe.generator.frames_per_chunk, modulation, text));
}

at::Tensor GeneratorNetwork::teacher_forcing(const TrainContext& context, const at::Tensor& clean,
                                             const at::Tensor& noisy,
                                             std::span<const double> clean_sigmas,
                                             std::span<const double> noisy_sigmas,
                                             const TextKv& text) const {
  const int64_t batch = clean.size(0);
  const auto frames = static_cast<size_t>(clean.size(1));
  // One row of the modulation per frame: first the clean ones of a sample, then its noisy ones.
  std::vector<double> sigmas;
  for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
    for (const std::span<const double> half : {clean_sigmas, noisy_sigmas}) {
      const std::span<const double> rows = half.subspan(i * frames, frames);
      sigmas.insert(sigmas.end(), rows.begin(), rows.end());
    }
  }
  const TimeModulation modulation = time(context, sigmas, batch);
  return to_torch(run_teacher_forcing(context.ops(), network, from_torch(clean), from_torch(noisy),
                                      context.recipe.generator.frames_per_chunk, modulation, text));
}

at::Tensor sigma_tensor(const TrainContext& context, std::span<const double> sigmas,
                        int64_t batch) {
  const auto count = static_cast<int64_t>(sigmas.size());
  at::Tensor host = at::empty({count}, at::kFloat);
  std::transform(sigmas.begin(), sigmas.end(), host.mutable_data_ptr<float>(),
                 [](double s) { return static_cast<float>(s); });
  return host.to(context.device).reshape({batch, count / batch, 1, 1, 1});
}

double logit_normal(const FlowConfig& flow, StepRandom& random) {
  return 1.0 / (1.0 + std::exp(-(flow.logit_mean + flow.logit_std * random.normal())));
}

double shifted(double u, double shift) { return shift * u / (1.0 + (shift - 1.0) * u); }

at::Tensor add_noise(const at::Tensor& x, const at::Tensor& noise, const at::Tensor& sigma) {
  return at::lerp(x, noise, sigma);
}

at::Tensor renoised(const TrainContext& context, const GeneratorNetwork& network,
                    const at::Tensor& latents, std::span<const double> sigmas,
                    const Tensor& embeddings) {
  const at::NoGradGuard no_grad;
  const int64_t frames = latents.size(1);
  const int64_t chunk = context.recipe.generator.frames_per_chunk;
  const int64_t missing = (chunk - frames % chunk) % chunk;
  at::Tensor z = latents;
  if (missing > 0) {
    z = at::cat({z, z.narrow(1, frames - 1, 1).expand({-1, missing, -1, -1, -1})}, 1);
  }
  const at::Tensor sigma = sigma_tensor(context, sigmas, z.size(0));
  const at::Tensor x = add_noise(z, at::randn_like(z), sigma);
  std::vector<double> per_frame;
  for (const double s : sigmas) {
    per_frame.insert(per_frame.end(), static_cast<size_t>(frames + missing), s);
  }
  const at::Tensor v =
      network.chunk_causal(context, x, per_frame, network.text(context, embeddings));
  return (x - sigma * v).narrow(1, 0, frames);
}

at::Tensor sample_bidirectional(const TrainContext& context, const GeneratorNetwork& network,
                                const at::Tensor& noise, const TextKv& text, const TextKv& empty,
                                int64_t steps, double shift, double guidance,
                                std::span<const int64_t> keep, std::vector<at::Tensor>* states) {
  const at::NoGradGuard no_grad;
  at::Tensor x = noise;
  const auto sigma_of = [&](int64_t i) {
    return shifted(1.0 - static_cast<double>(i) / static_cast<double>(steps), shift);
  };
  for (int64_t i = 0; i < steps; ++i) {
    if (states != nullptr && std::find(keep.begin(), keep.end(), i) != keep.end()) {
      states->push_back(x);
    }
    const std::vector<double> sigmas(static_cast<size_t>(x.size(0)), sigma_of(i));
    at::Tensor v = network.bidirectional(context, x, sigmas, text);
    if (guidance != 1.0) {
      const at::Tensor unguided = network.bidirectional(context, x, sigmas, empty);
      v = at::lerp(unguided, v, guidance);
    }
    x = x + (sigma_of(i + 1) - sigma_of(i)) * v;
  }
  return x;
}

}  // namespace ultraflash
