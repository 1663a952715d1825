#include "train/rollout.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "ops/autograd/torch_tensor.h"
#include "stream/cache_policy.h"

namespace ultraflash {

Result<RolloutPlan> RolloutPlan::make(const TrainContext& context) {
  const GeneratorSpec& spec = context.recipe.generator;
  const SelfForcingConfig& config = context.config.self_forcing;
  const int64_t frames = context.config.bank.latent_frames;
  if (frames % spec.frames_per_chunk != 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "bank.latent_frames {} is no multiple of the recipe's chunks of {}", frames,
                       spec.frames_per_chunk);
  }
  const FlowMatchSchedule schedule(static_cast<float>(spec.timestep_shift));
  UF_ASSIGN(const std::vector<float> warped, schedule.warp(spec.denoising_steps));
  RolloutPlan plan;
  for (const float t : warped) {
    plan.timesteps.push_back(static_cast<double>(t));
    plan.sigmas.push_back(static_cast<double>(schedule.sigma_at(t)));
  }
  plan.context_timestep = spec.context_timestep;
  plan.context_sigma = config.context_noise;
  plan.chunk_frames = spec.frames_per_chunk;
  plan.window_frames = config.window_frames;
  plan.sink_frames = config.sink_frames;
  return plan;
}

namespace {

// roll_out(), with `settings` for the chunks after the first.
at::Tensor run(const TrainContext& context, const GeneratorNetwork& generator,
               const RolloutPlan& plan, const at::Tensor& noise, const Tensor& embeddings,
               const std::vector<int64_t>& exits, bool gradient, const CacheSettings& settings) {
  const at::AutoGradMode grad_mode(gradient);
  Executor& ops = context.ops();
  const WanDit& network = generator.network;
  const int64_t batch = noise.size(0);
  const int64_t frames = noise.size(1);
  const int64_t chunks = frames / plan.chunk_frames;
  const int64_t first = chunks - static_cast<int64_t>(exits.size());  // that counts
  UF_CHECK(frames % plan.chunk_frames == 0 && first >= 0 && first < chunks,
           "{} frames and {} exits", frames, exits.size());
  // In the graph once: the passes without gradient use their values.
  const TextKv text = generator.text(context, embeddings);
  std::vector<TimeModulation> times;
  for (const double t : plan.timesteps) times.push_back(network.time(ops, {&t, 1}));
  const int64_t capacity = plan.window_frames > 0 ? plan.window_frames : frames;
  CacheRing ring({plan.window_frames > 0 ? CacheKind::kWindow : CacheKind::kGrow, capacity,
                  plan.window_frames > 0 ? plan.sink_frames : 0});
  const bool grows = plan.window_frames == 0;
  const int64_t frame_tokens = noise.size(2) / 2 * (noise.size(3) / 2);
  KvState state;
  TimeModulation context_time;
  {
    const at::NoGradGuard no_grad;
    context_time = network.time(ops, {&plan.context_timestep, 1});
    state = make_kv_state(ops, network, batch, grows ? 0 : capacity, frame_tokens);
  }
  CausalPass pass;
  pass.text = &text;
  std::vector<at::Tensor> output;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Result<ChunkPlace> place = ring.append(plan.chunk_frames, chunk * plan.chunk_frames);
    if (!place.ok()) throw Error(place.status());
    pass.place = *std::move(place);
    if (grows) {
      // Every write makes a new cache, and a step with gradient may keep the old one: a cache has
      // no room before it is needed.
      const at::NoGradGuard no_grad;
      for (KvCache& cache : state.layers) {
        for (Tensor* x : {&cache.k, &cache.v}) {
          *x = from_torch(
              at::constant_pad_nd(to_torch(*x), {0, 0, 0, plan.chunk_frames * frame_tokens}));
        }
      }
      pass.place.ring_end = (chunk + 1) * plan.chunk_frames;
    }
    ops.update_place(pass.place);
    at::Tensor z = noise.narrow(1, chunk * plan.chunk_frames, plan.chunk_frames).contiguous();
    const auto denoised = [&](size_t step) {
      pass.time = &times[step];
      pass.cache_only = false;
      const Tensor flow = run_causal(ops, network, from_torch(z), state, pass);
      return z - plan.sigmas[step] * to_torch(flow);
    };
    const bool counts = chunk >= first;
    const auto exit = counts ? static_cast<size_t>(exits[static_cast<size_t>(chunk - first)])
                             : plan.sigmas.size() - 1;
    std::vector<size_t> steps = settings.later_steps;
    if (chunk == 0 || steps.empty()) {
      steps.clear();
      for (size_t step = 0; step <= exit; ++step) steps.push_back(step);
    }
    for (size_t i = 0; i + 1 < steps.size(); ++i) {
      const at::NoGradGuard no_grad;
      const at::Tensor x0 = denoised(steps[i]);
      z = at::lerp(x0, at::randn_like(x0), plan.sigmas[steps[i + 1]]);
    }
    at::Tensor clean;
    {
      const at::AutoGradMode here(gradient && counts);
      clean = denoised(steps.back());
    }
    if (counts) output.push_back(clean);
    if (chunk + 1 == chunks) break;
    const at::NoGradGuard no_grad;
    clean = clean.detach();
    bool all = false;
    at::Tensor without;
    if (chunk > 0 && settings.without_context)
      without = settings.without_context(chunk, clean, all);
    if (all) continue;
    const KvState before = state;  // handles: a pass makes new caches
    if (plan.context_sigma > 0.0) {
      clean = at::lerp(clean, at::randn_like(clean), plan.context_sigma);
    }
    pass.time = &context_time;
    pass.cache_only = true;
    (void)run_causal(ops, network, from_torch(clean), state, pass);
    if (!without.defined()) continue;
    const at::Tensor keeps = without.view({batch, 1, 1});
    for (size_t layer = 0; layer < state.layers.size(); ++layer) {
      const auto blend = [&](Tensor& now, const Tensor& then) {
        now = from_torch(at::where(keeps, to_torch(then), to_torch(now)));
      };
      blend(state.layers[layer].k, before.layers[layer].k);
      blend(state.layers[layer].v, before.layers[layer].v);
    }
  }
  return at::cat(output, 1);
}

}  // namespace

at::Tensor roll_out(const TrainContext& context, const GeneratorNetwork& generator,
                    const RolloutPlan& plan, const at::Tensor& noise, const Tensor& embeddings,
                    const std::vector<int64_t>& exits, bool gradient) {
  return run(context, generator, plan, noise, embeddings, exits, gradient, {});
}

at::Tensor roll_out_whole(const TrainContext& context, const GeneratorNetwork& generator,
                          const RolloutPlan& plan, const at::Tensor& noise,
                          const Tensor& embeddings, const CacheSettings& settings) {
  const std::vector<int64_t> last(static_cast<size_t>(noise.size(1) / plan.chunk_frames),
                                  static_cast<int64_t>(plan.sigmas.size()) - 1);
  return run(context, generator, plan, noise, embeddings, last, /*gradient=*/false, settings);
}

}  // namespace ultraflash
