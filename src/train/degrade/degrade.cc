#include "train/degrade/degrade.h"

#include <array>
#include <cmath>

#include "core/check.h"
#include "media/recode.h"
#include "train/clips.h"
#include "train/degrade/colour.h"
#include "train/degrade/dense_flow.h"
#include "train/degrade/filters.h"
#include "train/degrade/motion.h"
#include "train/pictures.h"

namespace ultraflash::degrade {
namespace {

using world::Draw;

constexpr int64_t kNoise = 91;  // purpose of the device's generator, apart from draws of steps

bool takes_h264(const DegradeConfig& config) {
  return config.codec == DegradeCodec::kH264 ||
         (config.codec == DegradeCodec::kAuto && can_recode());
}

bool takes_dense_flow(const DegradeConfig& config) {
  return config.flow == DegradeFlow::kOpencv ||
         (config.flow == DegradeFlow::kAuto && has_dense_flow());
}

at::Tensor morph(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  return temporal_morph(x, flow_of(x, config), draw_morphs(draw, x.size(0)));
}

at::Tensor drop(const at::Tensor& x, Draw& draw, const DegradeConfig& /*config*/) {
  return frame_drop(x, draw_losses(draw, x.size(0)));
}

at::Tensor blur_along(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  constexpr int64_t kTile = 16;
  constexpr double kDegree = 0.01745329252;
  if (draw.chance(0.2)) {  // as where no flow is known
    return motion_blur(
        x, line_blur(x, config.amplitude * draw.uniform(3.0, 15.0),
                     draw.uniform(0.0, 360.0) * kDegree, draw.uniform(-5.0, 5.0) * kDegree));
  }
  const double gain = draw.uniform(0.5, 1.5);
  return motion_blur(x, blur_from_flow(flow_of(x, config), kTile, gain, 15.0 * config.amplitude));
}

at::Tensor waver(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  const std::vector<Ellipse> ellipses = draw_ellipses(draw, 1, 4, /*moving=*/false);
  const double strength = config.amplitude * draw.uniform(0.5, 3.0);
  return roi_warp(x, ellipses,
                  smooth_field(x, strength, config.amplitude * draw.uniform(8.0, 24.0)));
}

at::Tensor bleed(const at::Tensor& x, Draw& draw, const DegradeConfig& /*config*/) {
  const std::vector<Ellipse> ellipses = draw_ellipses(draw, 1, 6, /*moving=*/true);
  return colour_bleeding(x, ellipses, draw.uniform(0.2, 0.6));
}

at::Tensor jitter(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  return chunk_jitter(x, draw_jumps(draw, x.size(0), config.amplitude));
}

at::Tensor waver_colour(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  return flicker(x, draw_flicker(draw, x.size(0), config.amplitude));
}

at::Tensor drift(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  const double saturation = 1.0 + config.amplitude * draw.uniform(0.0, 0.25);
  return colour_drift(x, saturation, 1.0 + config.amplitude * draw.uniform(0.0, 0.15));
}

at::Tensor noise(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  const bool grey = draw.chance(0.4);
  if (draw.chance(0.5)) {
    return gaussian_noise(x, config.amplitude * draw.uniform(1.0, 10.0) / 255.0, grey);
  }
  return poisson_noise(x, config.amplitude * draw.uniform(0.05, 1.0), grey);
}

at::Tensor jpeg_frames(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  return jpeg(x, 100.0 - config.amplitude * draw.uniform(5.0, 40.0));
}

at::Tensor codec(const at::Tensor& x, Draw& draw, const DegradeConfig& config) {
  constexpr std::array<const char*, 2> kPresets = {"medium", "fast"};
  const double crf = 18.0 + config.amplitude * draw.uniform(0.0, 17.0);
  const int64_t gop = 12 + draw.below(37);
  const char* preset = draw.pick(kPresets);
  if (!takes_h264(config)) return predictive_blocks(x, crf, gop);
  return h264(x, static_cast<int>(std::lround(crf)), gop, preset);
}

at::Tensor low_pass(const at::Tensor& x, Draw& draw, const DegradeConfig& /*config*/) {
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
     {"K1", "video codec", 0.40, codec},
     {"K2", "low-pass", 0.20, low_pass}}};

}  // namespace

std::span<const Operation> operations() { return kOperations; }

Result<std::string> describe(const DegradeConfig& config) {
  if (config.codec == DegradeCodec::kH264 && !can_recode()) {
    return make_status(StatusCode::kUnsupported,
                       "degrade.codec: this build or its libavcodec has no H.264; take blocks, or "
                       "clips that were prepared elsewhere");
  }
  if (config.flow == DegradeFlow::kOpencv && !has_dense_flow()) {
    return make_status(StatusCode::kUnsupported,
                       "degrade.flow: there is no OpenCV in this build or on this machine; take "
                       "own, or clips that were prepared elsewhere");
  }
  return fmt::format(
      "degradations of clips that were not prepared: {}, {}",
      takes_h264(config) ? "H.264 by libx264" : "a predictive codec's blocks in place of H.264",
      takes_dense_flow(config) ? "optical flow by OpenCV" : "optical flow of Lucas and Kanade");
}

bool stands_in(const DegradeConfig& config) {
  return !takes_h264(config) || !takes_dense_flow(config);
}

at::Tensor flow_of(const at::Tensor& clip, const DegradeConfig& config) {
  return takes_dense_flow(config) ? dense_flow(clip) : optical_flow(clip);
}

at::Tensor h264(const at::Tensor& clip, int crf, int64_t gop, const std::string& preset) {
  // [frames, h, w, 3] on the CPU
  const at::Tensor bytes = to_bytes(clip.permute({0, 2, 3, 1})).contiguous();
  RecodeOptions options;
  options.crf = crf;
  options.gop = gop;
  options.preset = preset;
  const Status status =
      recode_h264({bytes.mutable_data_ptr<uint8_t>(), static_cast<size_t>(bytes.numel())},
                  {clip.size(3), clip.size(2), /*fps_num=*/16, /*fps_den=*/1}, options);
  if (!status.ok()) throw Error(status);
  return bytes.to(clip.device()).to(at::kFloat).div_(255.0).permute({0, 3, 1, 2}).contiguous();
}

at::Tensor degraded(const at::Tensor& clip, int64_t height, int64_t width, Draw& draw,
                    const DegradeConfig& config) {
  at::Tensor x = clip;
  // Every number is drawn whether it is used or not.
  const bool pre_blur = draw.chance(kPreBlurProbability);
  const Kernel kernel = draw_blur(draw, config.amplitude);
  if (pre_blur) x = filtered(x, make_kernel(kernel)).clamp(0.0, 1.0);
  x = downsampled(x, height, width, draw_downsampling(draw, config.amplitude)).clamp(0.0, 1.0);
  for (const Operation& operation : operations()) {
    if (draw.chance(operation.probability)) x = operation.apply(x, draw, config);
  }
  return x;
}

bool chosen(const TrainContext& context, int64_t index) {
  const auto seed = static_cast<uint64_t>(context.config.data.seed);
  Draw draw(make_random_stream(seed, RandomPurpose::kDegradation, static_cast<uint64_t>(index),
                               /*step=*/1));
  return draw.chance(context.config.degrade.share);
}

at::Tensor damaged_clip(const TrainContext& context, const at::Tensor& pictures, int64_t height,
                        int64_t width, int64_t index) {
  const at::NoGradGuard no_grad;
  context.seed_shared_step(index, kNoise);
  const auto seed = static_cast<uint64_t>(context.config.data.seed);
  Draw draw(make_random_stream(seed, RandomPurpose::kDegradation, static_cast<uint64_t>(index)));
  const at::Tensor clip = pictures.permute({0, 3, 1, 2}).contiguous();
  return degraded(clip, height, width, draw, context.config.degrade).permute({0, 2, 3, 1});
}

at::Tensor degraded_clips(const TrainContext& context, const at::Tensor& pictures, int64_t height,
                          int64_t width, int64_t first) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> clips;
  for (int64_t i = 0; i < pictures.size(0); ++i) {
    clips.push_back(
        chosen(context, first + i)
            ? damaged_clip(context, pictures.select(0, i), height, width, first + i)
            : resized(pictures.narrow(0, i, 1), height, width, context.config.cascade.downsample)
                  .squeeze(0));
  }
  return at::stack(clips);
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
        [&](Draw& draw) { return operation.apply(clean, draw, context.config.degrade); });
  }
  add("all", "one after the other",
      [&](Draw& draw) { return degraded(large, height, width, draw, context.config.degrade); });
  return clip_sheet(at::stack(rows), rows[0].size(0));
}

}  // namespace ultraflash::degrade
