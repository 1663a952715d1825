#include "train/pair_bank.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "train/degrade/degrade.h"
#include "train/generator.h"
#include "train/pictures.h"

namespace ultraflash {
namespace {

// Small clips as generators would make them, f32 [n, frames, h, w, 3]: those that were prepared,
// and damaged here where there are none.
at::Tensor damaged_clips(const TrainContext& context, const TrainingClips& clips,
                         const at::Tensor& pictures, int64_t scale, int64_t first) {
  const int64_t height = pictures.size(2) / scale;
  const int64_t width = pictures.size(3) / scale;
  ClipWindow window;
  window.scale = scale;
  window.frames = pictures.size(1);
  window.width = pictures.size(3);
  window.height = pictures.size(2);
  const at::Tensor raw = at::empty({window.frames, height, width, 3}, at::kByte);
  std::vector<at::Tensor> all;
  for (int64_t i = 0; i < pictures.size(0); ++i) {
    if (degrade::chosen(context, first + i) &&
        clips.damaged(first + i, window, raw.mutable_data_ptr<uint8_t>())) {
      all.push_back(raw.unsqueeze(0).to(context.device).to(at::kFloat).div_(255.0));
    } else {
      all.push_back(
          degrade::degraded_clips(context, pictures.narrow(0, i, 1), height, width, first + i));
    }
  }
  return at::cat(all);
}

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
  const TrainConfig& config = context.config;
  const double picture = config.stage == TrainStage::kUpsampler  ? config.upsampler.picture
                         : config.stage == TrainStage::kSrSparse ? config.sr_sparse.picture
                                                                 : 0.0;
  if (pair.large.vae_decodes && picture > 0.0) {
    return make_status(StatusCode::kInvalidArgument,
                       "init.decoder: a loss of decoded pictures needs the decoder of scale {}; "
                       "name it, or set {}.picture=0",
                       scale, stage_name(config.stage));
  }
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
                const int64_t first = (group * context.ranks() + context.rank()) * pictures.size(0);
                const at::Tensor small = damaged_clips(context, clips, pictures, scale, first);
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
