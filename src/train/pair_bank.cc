#include "train/pair_bank.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "train/degrade/degrade.h"
#include "train/generator.h"
#include "train/pictures.h"

namespace ultraflash {
namespace {

constexpr int64_t kDegradeNoise = 91;  // apart from the draws of steps

}  // namespace

StreamWindow StreamWindow::draw(const TrainContext& context, int64_t step, int64_t purpose,
                                int64_t reach, int64_t frames) {
  // Of one length on every rank: none shall wait for another.
  StepRandom random = StepRandom::shared(context, step, purpose);
  StreamWindow window;
  window.frames = frames;
  const int64_t last = context.config.bank.latent_frames - frames;
  const bool beginning = random.uniform() < 0.25;
  const int64_t first = beginning ? 0 : random.below(last + 1);
  window.lead = std::min(first, reach);
  window.first = first - window.lead;
  return window;
}

Result<PairAutoencoders> PairAutoencoders::open(const TrainContext& context, int64_t scale) {
  PairAutoencoders pair;
  UF_ASSIGN(pair.small, FrozenAutoencoder::open(context));
  UF_ASSIGN(pair.large, FrozenAutoencoder::open_large(context, scale, pair.small));
  return pair;
}

PairLatents encode_pair(const TrainContext& context, const PairAutoencoders& autoencoders,
                        const at::Tensor& pictures, int64_t scale) {
  const at::NoGradGuard no_grad;
  const at::Tensor small = resized(pictures, pictures.size(2) / scale, pictures.size(3) / scale,
                                   context.config.cascade.downsample);
  return {autoencoders.large.encode(context, pictures * 255.0),
          autoencoders.small.encode(context, small * 255.0)};
}

PairBank::PairBank(const TrainContext& context, PairAutoencoders autoencoders,
                   const TrainingClips& clips, const CaptionTokenizer& tokenizer, int64_t scale)
    : bank_(context, clips, tokenizer, scale,
            [&context, &clips, scale, autoencoders = std::move(autoencoders)](const at::Tensor& raw,
                                                                              int64_t group) {
              const at::Tensor on_device = raw.to(context.device, /*non_blocking=*/true);
              if (clips.encoded()) {  // noise, for trials
                const at::Tensor high =
                    on_device.repeat_interleave(scale, 2).repeat_interleave(scale, 3);
                return std::vector{high, on_device};
              }
              const at::Tensor pictures = on_device.to(at::kFloat).div_(255.0);
              const PairLatents pair = encode_pair(context, autoencoders, pictures, scale);
              std::vector<at::Tensor> kept = {pair.high, pair.low};
              if (context.config.degrade.share > 0.0) {
                const int64_t rank_group = group * context.ranks() + context.rank();
                context.seed_shared_step(rank_group, kDegradeNoise);
                const at::Tensor small = degrade::degraded_clips(
                    context, pictures, pictures.size(2) / scale, pictures.size(3) / scale,
                    rank_group * pictures.size(0));
                kept.push_back(autoencoders.small.encode(context, small * 255.0));
              }
              return kept;
            }) {}

PairBatch PairBank::sample(int64_t step, int64_t count, double dropout, FrameRange frames) const {
  LatentBatch batch = bank_.sample(step, count, dropout, /*purpose=*/0, frames);
  PairBatch pairs{
      std::move(batch.latents), std::move(batch.others[0]), {}, std::move(batch.tokens)};
  if (batch.others.size() > 1) pairs.damaged = std::move(batch.others[1]);
  return pairs;
}

}  // namespace ultraflash
