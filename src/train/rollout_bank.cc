#include "train/rollout_bank.h"

#include <ATen/core/grad_mode.h>

#include "diffusion/flow_match.h"
#include "stream/cache_policy.h"
#include "train/clips.h"

namespace ultraflash {
namespace {

enum : int64_t { kCaptionDraw = 121, kStreamDraw = 122, kPlaceDraw = 123 };

}  // namespace

Result<RolloutPlan> stream_plan(const TrainContext& context) {
  UF_ASSIGN(RolloutPlan plan, RolloutPlan::make(context));
  const CachePolicy policy = context.recipe.cache_policy();
  if (policy.kind == CacheKind::kWindow) {
    plan.window_frames = policy.capacity_frames;
    plan.sink_frames = policy.sink_frames;
  }
  return plan;
}

at::Tensor draw_streams(const TrainContext& context, const GeneratorNetwork& generator,
                        const RolloutPlan& plan, const Tensor& embeddings, int64_t frames,
                        int64_t draw, int64_t purpose) {
  const at::NoGradGuard no_grad;
  const PreferenceConfig& c = context.config.preference;
  const GeneratorSpec& spec = context.recipe.generator;
  const int64_t batch = embeddings.dim(0);
  const int64_t chunks = frames / plan.chunk_frames;
  const auto steps = static_cast<int64_t>(plan.sigmas.size());
  CacheSettings settings;
  if (steps > 1 && StepRandom::shared(context, draw, purpose).uniform() < c.fewer_steps) {
    for (const int64_t i : reduced_steps(steps, steps - 1)) {
      settings.later_steps.push_back(static_cast<size_t>(i));
    }
  }
  at::Tensor without;  // bool [chunks, batch]
  if (c.skip_refresh > 0.0) {
    StepRandom random(context, draw, purpose);
    at::Tensor host = at::empty({chunks, batch}, at::kBool);
    for (int64_t i = 0; i < chunks * batch; ++i) {
      host.mutable_data_ptr<bool>()[i] = random.uniform() < c.skip_refresh;
    }
    without = host.to(context.device);
    settings.without_context = [&](int64_t chunk, const at::Tensor& /*clean*/, bool& /*all*/) {
      return without.select(0, chunk);
    };
  }
  context.seed_step(draw, purpose);
  const at::Tensor noise = at::randn(
      {batch, frames, spec.latent_height, spec.latent_width, spec.network.in_dim}, context.f32());
  return roll_out_whole(context, generator, plan, noise, embeddings, settings);
}

RolloutBank::RolloutBank(const TrainContext& context, const GeneratorNetwork& generator,
                         const TextNetwork& text, const TrainingClips& clips,
                         const CaptionTokenizer& tokenizer, RolloutPlan plan)
    : context_(context),
      generator_(generator),
      text_(text),
      clips_(clips),
      tokenizer_(tokenizer),
      plan_(std::move(plan)) {}

void RolloutBank::fill(int64_t first_step) {
  const PreferenceConfig& c = context_.config.preference;
  first_step_ = first_step;
  next_group_ = c.refresh_every > 0 ? first_step / c.refresh_every : 0;
  for (int64_t i = 0; i < c.rollouts / c.make_batch; ++i) make_group();
}

void RolloutBank::advance(int64_t step) {
  const int64_t every = context_.config.preference.refresh_every;
  if (every > 0 && step > first_step_ && step % every == 0) make_group();
}

// Streams of group `next_group_`, which depend on its number alone.
void RolloutBank::make_group() {
  const PreferenceConfig& c = context_.config.preference;
  const at::NoGradGuard no_grad;
  const int64_t place = next_group_ % (c.rollouts / c.make_batch) * c.make_batch;
  const int64_t first_clip = (next_group_ * context_.ranks() + context_.rank()) * c.make_batch;
  captions_.resize(static_cast<size_t>(c.rollouts));
  StepRandom random(context_, next_group_, kCaptionDraw);
  std::vector<const TokenRow*> rows;
  for (int64_t i = 0; i < c.make_batch; ++i) {
    TokenRow& row = captions_[static_cast<size_t>(place + i)];
    row = tokenizer_.encode(clips_.caption(first_clip + i, random.below(16), /*full=*/false));
    rows.push_back(&row);
  }
  const Tensor embeddings = text_.run(context_, CaptionTokenizer::batch(rows));
  const at::Tensor group =
      draw_streams(context_, generator_, plan_, embeddings, context_.config.bank.latent_frames,
                   next_group_, kStreamDraw);
  if (!latents_.defined()) {
    std::vector<int64_t> sizes = group.sizes().vec();
    sizes[0] = c.rollouts;
    latents_ = at::empty(sizes, group.options().dtype(at::kBFloat16));
  }
  latents_.narrow(0, place, c.make_batch).copy_(group);
  ++next_group_;
}

RolloutBank::Batch RolloutBank::sample(int64_t step, int64_t count, int64_t frames) const {
  StepRandom random(context_, step, kPlaceDraw);
  at::Tensor places = at::empty({count}, at::kLong);
  std::vector<const TokenRow*> rows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = random.below(context_.config.preference.rollouts);
    places.mutable_data_ptr<int64_t>()[i] = place;
    rows.push_back(&captions_[static_cast<size_t>(place)]);
  }
  return {latents_.narrow(1, 0, frames).index_select(0, places.to(context_.device)).to(at::kFloat),
          CaptionTokenizer::batch(rows)};
}

}  // namespace ultraflash
