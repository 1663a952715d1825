#include "train/degrade/degrade.h"

#include <array>

#include "train/clips.h"
#include "train/degrade/colour.h"
#include "train/degrade/filters.h"
#include "train/degrade/motion.h"
#include "train/pictures.h"

namespace ultraflash::degrade {
namespace {

using world::Draw;

at::Tensor morph(const at::Tensor& x, Draw& draw, double /*amplitude*/) {
  return temporal_morph(x, optical_flow(x), draw_morphs(draw, x.size(0)));
}

at::Tensor drop(const at::Tensor& x, Draw& draw, double /*amplitude*/) {
  return frame_drop(x, draw_losses(draw, x.size(0)));
}

at::Tensor blur_along(const at::Tensor& x, Draw& draw, double amplitude) {
  constexpr int64_t kTile = 16;
  constexpr double kDegree = 0.01745329252;
  if (draw.chance(0.2)) {  // as where no flow is known
    return motion_blur(
        x, line_blur(x, amplitude * draw.uniform(3.0, 15.0), draw.uniform(0.0, 360.0) * kDegree,
                     draw.uniform(-5.0, 5.0) * kDegree));
  }
  const double gain = draw.uniform(0.5, 1.5);
  return motion_blur(x, blur_from_flow(optical_flow(x), kTile, gain, 15.0 * amplitude));
}

at::Tensor waver(const at::Tensor& x, Draw& draw, double amplitude) {
  const std::vector<Ellipse> ellipses = draw_ellipses(draw, 1, 4, /*moving=*/false);
  const double strength = amplitude * draw.uniform(0.5, 3.0);
  return roi_warp(x, ellipses, smooth_field(x, strength, amplitude * draw.uniform(8.0, 24.0)));
}

at::Tensor bleed(const at::Tensor& x, Draw& draw, double /*amplitude*/) {
  const std::vector<Ellipse> ellipses = draw_ellipses(draw, 1, 6, /*moving=*/true);
  return colour_bleeding(x, ellipses, draw.uniform(0.2, 0.6));
}

at::Tensor jitter(const at::Tensor& x, Draw& draw, double amplitude) {
  return chunk_jitter(x, draw_jumps(draw, x.size(0), amplitude));
}

at::Tensor waver_colour(const at::Tensor& x, Draw& draw, double amplitude) {
  return flicker(x, draw_flicker(draw, x.size(0), amplitude));
}

at::Tensor drift(const at::Tensor& x, Draw& draw, double amplitude) {
  const double saturation = 1.0 + amplitude * draw.uniform(0.0, 0.25);
  return colour_drift(x, saturation, 1.0 + amplitude * draw.uniform(0.0, 0.15));
}

at::Tensor noise(const at::Tensor& x, Draw& draw, double amplitude) {
  const bool grey = draw.chance(0.4);
  if (draw.chance(0.5)) {
    return gaussian_noise(x, amplitude * draw.uniform(1.0, 10.0) / 255.0, grey);
  }
  return poisson_noise(x, amplitude * draw.uniform(0.05, 1.0), grey);
}

at::Tensor jpeg_frames(const at::Tensor& x, Draw& draw, double amplitude) {
  return jpeg(x, 100.0 - amplitude * draw.uniform(5.0, 40.0));
}

at::Tensor blocks(const at::Tensor& x, Draw& draw, double amplitude) {
  const double crf = 18.0 + amplitude * draw.uniform(0.0, 17.0);
  return predictive_blocks(x, crf, 12 + draw.below(37));
}

at::Tensor low_pass(const at::Tensor& x, Draw& draw, double /*amplitude*/) {
  return filtered(x, make_kernel(draw_sinc(draw))).clamp(0.0, 1.0);
}

constexpr std::array<Operation, 12> kOperations = {
    {{"M1", "temporal morph", 0.30, morph},
     {"M2", "frame drop", 0.25, drop},
     {"M3", "motion blur", 0.30, blur_along},
     {"M4", "warped regions", 0.30, waver},
     {"M5", "colour bleeding", 0.20, bleed},
     {"M6", "chunk jitter", 0.30, jitter},
     {"C1", "flicker", 0.25, waver_colour},
     {"C2", "saturation and contrast drift", 0.15, drift},
     {"S1", "noise", 0.15, noise},
     {"S2", "JPEG", 0.15, jpeg_frames},
     {"K1", "predictive blocks", 0.40, blocks},
     {"K2", "low-pass", 0.20, low_pass}}};

}  // namespace

std::span<const Operation> operations() { return kOperations; }

at::Tensor degraded(const at::Tensor& clip, int64_t height, int64_t width, Draw& draw,
                    const DegradeConfig& config) {
  at::Tensor x = clip;
  // Every number is drawn whether it is used or not.
  const bool pre_blur = draw.chance(kPreBlurProbability);
  const Kernel kernel = draw_blur(draw, config.amplitude);
  if (pre_blur) x = filtered(x, make_kernel(kernel)).clamp(0.0, 1.0);
  x = downsampled(x, height, width, draw_downsampling(draw, config.amplitude)).clamp(0.0, 1.0);
  for (const Operation& operation : operations()) {
    if (draw.chance(operation.probability)) x = operation.apply(x, draw, config.amplitude);
  }
  return x;
}

at::Tensor degraded_clips(const TrainContext& context, const at::Tensor& pictures, int64_t height,
                          int64_t width, int64_t first) {
  const at::NoGradGuard no_grad;
  const DegradeConfig& config = context.config.degrade;
  std::vector<at::Tensor> clips;
  for (int64_t i = 0; i < pictures.size(0); ++i) {
    Draw draw(make_random_stream(static_cast<uint64_t>(context.config.data.seed),
                                 RandomPurpose::kDegradation, static_cast<uint64_t>(first + i)));
    if (!draw.chance(config.share)) {
      clips.push_back(
          resized(pictures.narrow(0, i, 1), height, width, context.config.cascade.downsample));
      continue;
    }
    const at::Tensor clip = pictures.select(0, i).permute({0, 3, 1, 2}).contiguous();
    clips.push_back(degraded(clip, height, width, draw, config).permute({0, 2, 3, 1}).unsqueeze(0));
  }
  return at::cat(clips);
}

Result<RgbImage> degradation_sheet(const TrainContext& context) {
  constexpr int64_t kScale = 2;
  constexpr int64_t kFrames = 16;
  constexpr int kDraws = 4;
  const at::NoGradGuard no_grad;
  UF_ASSIGN(const std::unique_ptr<TrainingClips> clips,
            TrainingClips::open(context, /*unseen=*/true));
  const double amplitude = context.config.degrade.amplitude;
  const at::Tensor large = first_clips(context, *clips, kScale, kFrames, 1)
                               .select(0, 0)
                               .to(context.device)
                               .to(at::kFloat)
                               .div_(255.0)
                               .permute({0, 3, 1, 2})
                               .contiguous();
  const int64_t height = context.height();
  const int64_t width = context.width();
  const at::Tensor clean = downsampled(large, height, width, {});
  std::vector<at::Tensor> rows;
  const auto add = [&](std::string_view name, std::string_view what, const auto& apply) {
    // Of a few draws the one that changes most.
    at::Tensor best = clean;
    double most = -1.0;
    context.seed_step(static_cast<int64_t>(rows.size()));
    for (int i = 0; i < kDraws; ++i) {
      Draw draw({static_cast<uint64_t>(rows.size()), static_cast<uint64_t>(i)});
      const at::Tensor x = apply(draw);
      const double change = (x - clean).square().mean().item<double>();
      if (change <= most) continue;
      most = change;
      best = x;
    }
    context.log.info(fmt::format("row {}: {} {}, {:.1f} dB from the clean clip", rows.size() + 1,
                                 name, what, psnr(most)));
    std::vector<at::Tensor> columns;
    for (const int64_t frame : {kFrames / 3, kFrames / 2, kFrames - 2}) {
      const at::Tensor x = clean.select(0, frame);
      const at::Tensor y = best.select(0, frame);
      columns.insert(columns.end(), {x, y, 0.5 + 4.0 * (y - x)});
    }
    rows.push_back(to_bytes(at::stack(columns).permute({0, 2, 3, 1})));
  };
  add("P1", "pre-blur", [&](Draw& draw) {
    const at::Tensor x = filtered(large, make_kernel(draw_blur(draw, amplitude)));
    return downsampled(x, height, width, {});
  });
  add("P2", "downsampling", [&](Draw& draw) {
    return downsampled(large, height, width, draw_downsampling(draw, amplitude));
  });
  for (const Operation& operation : operations()) {
    add(operation.name, operation.what,
        [&](Draw& draw) { return operation.apply(clean, draw, amplitude); });
  }
  add("all", "one after the other",
      [&](Draw& draw) { return degraded(large, height, width, draw, context.config.degrade); });
  return clip_sheet(at::stack(rows), rows[0].size(0));
}

}  // namespace ultraflash::degrade
