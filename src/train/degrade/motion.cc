#include "train/degrade/motion.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "train/degrade/colour.h"
#include "train/degrade/filters.h"

namespace ultraflash::degrade {
namespace {

// Pixel coordinates [1, 2, h, w], x first.
at::Tensor pixel_grid(const at::Tensor& x) {
  const at::Tensor rows = at::arange(x.size(2), x.options());
  const at::Tensor columns = at::arange(x.size(3), x.options());
  return at::stack({columns.view({1, -1}).expand({x.size(2), -1}),
                    rows.view({-1, 1}).expand({-1, x.size(3)})})
      .unsqueeze(0);
}

at::Tensor sampled(const at::Tensor& x, const at::Tensor& places) {
  // Pixel centres are whole numbers here, and (2 i + 1) / n - 1 for libtorch.
  const auto scaled = [&](int64_t axis, int64_t length) {
    return (2.0 * places.select(1, axis) + 1.0) / static_cast<double>(length) - 1.0;
  };
  const at::Tensor grid = at::stack({scaled(0, x.size(3)), scaled(1, x.size(2))}, 3);
  return at::grid_sampler(x, grid.expand({x.size(0), -1, -1, -1}).contiguous(), /*bilinear=*/0,
                          /*border=*/1, /*align_corners=*/false);
}

at::Tensor box_mean(const at::Tensor& x, int64_t size) {
  const int64_t side = size / 2;
  return at::avg_pool2d(at::replication_pad2d(x, {side, side, side, side}), {size, size}, {1, 1});
}

at::Tensor gaussian(const at::Tensor& x, double sigma) {
  const auto reach = std::min<int64_t>(static_cast<int64_t>(std::ceil(2.5 * sigma)),
                                       std::min(x.size(2), x.size(3)) - 1);
  const at::Tensor places = at::arange(-reach, reach + 1, x.options());
  at::Tensor line = (-0.5 * (places / sigma).square()).exp();
  line = line / line.sum();
  const at::Tensor planes = x.flatten(0, 1).unsqueeze(1);
  const at::Tensor across = at::conv2d(at::reflection_pad2d(planes, {reach, reach, 0, 0}),
                                       line.view({1, 1, 1, 2 * reach + 1}));
  return at::conv2d(at::reflection_pad2d(across, {0, 0, reach, reach}),
                    line.view({1, 1, 2 * reach + 1, 1}))
      .view(x.sizes());
}

}  // namespace

at::Tensor warped(const at::Tensor& x, const at::Tensor& flow) {
  return sampled(x, pixel_grid(x) + flow);
}

at::Tensor optical_flow(const at::Tensor& clip) {
  constexpr int kLevels = 3;
  constexpr int kTurns = 4;
  constexpr int64_t kWindow = 9;
  constexpr double kFlat = 1e-4;    // squared slopes below this are noise
  constexpr double kLongest = 2.0;  // pixels of a level, in one turn
  std::vector<at::Tensor> pyramid = {clip.mean(1, /*keepdim=*/true)};
  while (static_cast<int>(pyramid.size()) < kLevels &&
         std::min(pyramid.back().size(2), pyramid.back().size(3)) >= 2 * kWindow) {
    pyramid.push_back(at::avg_pool2d(pyramid.back(), {2, 2}));
  }
  at::Tensor flow;
  for (auto level = pyramid.rbegin(); level != pyramid.rend(); ++level) {
    const int64_t pairs = level->size(0) - 1;
    const at::Tensor from = level->narrow(0, 0, pairs);
    const at::Tensor to = level->narrow(0, 1, pairs);
    flow = flow.defined() ? 2.0 * at::upsample_bilinear2d(flow, {level->size(2), level->size(3)},
                                                          /*align_corners=*/false)
                          : at::zeros({pairs, 2, level->size(2), level->size(3)}, level->options());
    const at::Tensor padded = at::replication_pad2d(from, {1, 1, 1, 1});
    const auto slope = [&](int64_t axis) {
      const auto part = [&](int64_t begin) {
        return padded.narrow(axis, begin, from.size(axis)).narrow(5 - axis, 1, from.size(5 - axis));
      };
      return 0.5 * (part(2) - part(0));
    };
    const at::Tensor gx = slope(3);
    const at::Tensor gy = slope(2);
    const at::Tensor xx = box_mean(gx * gx, kWindow) + kFlat;
    const at::Tensor yy = box_mean(gy * gy, kWindow) + kFlat;
    const at::Tensor xy = box_mean(gx * gy, kWindow);
    const at::Tensor determinant = xx * yy - xy * xy;
    for (int turn = 0; turn < kTurns; ++turn) {
      const at::Tensor change = from - warped(to, flow);
      const at::Tensor bx = box_mean(gx * change, kWindow);
      const at::Tensor by = box_mean(gy * change, kWindow);
      const at::Tensor step = at::cat({yy * bx - xy * by, xx * by - xy * bx}, 1) / determinant;
      flow = flow + step.clamp(-kLongest, kLongest);
    }
  }
  return flow;
}

at::Tensor temporal_morph(const at::Tensor& clip, const at::Tensor& flow,
                          const std::vector<Morph>& runs) {
  at::Tensor result = clip.clone();
  const int64_t last = clip.size(0) - 1;
  for (const Morph& run : runs) {
    for (int64_t t = run.first; t < std::min(run.first + run.frames, last + 1); ++t) {
      const int64_t neighbour = run.forward ? t + 1 : t - 1;
      if (neighbour < 0 || neighbour > last) continue;
      // From t to t + 1 the flow itself; to t - 1 roughly the way back of the flow before.
      const at::Tensor way =
          run.forward ? run.way * flow.narrow(0, t, 1) : -run.way * flow.narrow(0, t - 1, 1);
      const at::Tensor other = warped(clip.narrow(0, neighbour, 1), way);
      result.narrow(0, t, 1).copy_(at::lerp(clip.narrow(0, t, 1), other, run.mix));
    }
  }
  return result;
}

std::vector<Morph> draw_morphs(world::Draw& draw, int64_t frames) {
  std::vector<Morph> runs(static_cast<size_t>(1 + draw.below(3)));
  for (Morph& run : runs) {
    run.first = draw.below(std::max<int64_t>(frames - 1, 1));
    run.frames = 2 + draw.below(5);
    run.mix = draw.uniform(0.1, 0.5);
    run.way = draw.uniform(0.3, 1.0);
    run.forward = draw.chance(0.5);
  }
  return runs;
}

at::Tensor frame_drop(const at::Tensor& clip, const std::vector<Loss>& losses) {
  UF_CHECK(static_cast<int64_t>(losses.size()) == clip.size(0), "{} of {} frames", losses.size(),
           clip.size(0));
  std::vector<at::Tensor> frames;
  for (int64_t t = 0; t < clip.size(0); ++t) {
    Loss loss = losses[static_cast<size_t>(t)];
    if (t == 0) loss = Loss::kNone;
    if (loss == Loss::kBlend && t + 1 == clip.size(0)) loss = Loss::kHold;
    switch (loss) {
      case Loss::kNone:
        frames.push_back(clip.select(0, t));
        break;
      case Loss::kHold:
        frames.push_back(frames.back());
        break;
      case Loss::kBlend:
        frames.push_back(at::lerp(frames.back(), clip.select(0, t + 1), 0.5));
        break;
    }
  }
  return at::stack(frames);
}

std::vector<Loss> draw_losses(world::Draw& draw, int64_t frames) {
  constexpr int kMostInARow = 2;
  const double rate = draw.uniform(0.03, 0.12);
  std::vector<Loss> losses;
  int in_a_row = 0;
  for (int64_t t = 0; t < frames; ++t) {
    const bool lost = t > 0 && in_a_row < kMostInARow && draw.chance(rate);
    const bool hold = draw.chance(0.5);
    losses.push_back(!lost ? Loss::kNone : hold ? Loss::kHold : Loss::kBlend);
    in_a_row = lost ? in_a_row + 1 : 0;
  }
  return losses;
}

at::Tensor motion_blur(const at::Tensor& clip, const at::Tensor& blur) {
  constexpr int kSamples = 9;
  const at::Tensor grid = pixel_grid(clip);
  at::Tensor sum = at::zeros_like(clip);
  for (int i = 0; i < kSamples; ++i) {
    const double place = static_cast<double>(i) / (kSamples - 1) - 0.5;
    sum = sum + sampled(clip, grid + place * blur);
  }
  return sum / kSamples;
}

at::Tensor blur_from_flow(const at::Tensor& flow, int64_t tile, double gain, double longest) {
  constexpr double kStill = 0.05;  // pixels a frame
  const int64_t rows = std::max<int64_t>(flow.size(2) / tile, 1);
  const int64_t columns = std::max<int64_t>(flow.size(3) / tile, 1);
  at::Tensor x = at::adaptive_avg_pool2d(flow, {rows, columns});
  const at::Tensor length = x.norm(2, {1}, /*keepdim=*/true);
  const at::Tensor wanted = (gain * length).clamp(1.0, longest);
  x = x * (wanted / length.clamp_min(1e-6)) * (length > kStill).to(x.scalar_type());
  x = at::upsample_bilinear2d(x, {flow.size(2), flow.size(3)}, /*align_corners=*/false);
  // The last frame moves as the one before.
  return at::cat({x, x.narrow(0, x.size(0) - 1, 1)});
}

at::Tensor line_blur(const at::Tensor& clip, double length, double angle, double drift) {
  const at::Tensor angles = at::arange(clip.size(0), clip.options()) * drift + angle;
  return (length * at::stack({angles.cos(), angles.sin()}, 1))
      .view({clip.size(0), 2, 1, 1})
      .expand({-1, -1, clip.size(2), clip.size(3)});
}

at::Tensor ellipse_mask(const at::Tensor& clip, const std::vector<Ellipse>& ellipses) {
  constexpr double kFeather = 0.35;  // of the radius, beyond it
  const auto width = static_cast<double>(clip.size(3));
  const auto height = static_cast<double>(clip.size(2));
  const at::Tensor times = at::arange(clip.size(0), clip.options()).view({-1, 1, 1, 1});
  const at::Tensor grid = pixel_grid(clip);
  at::Tensor mask = at::zeros({clip.size(0), 1, clip.size(2), clip.size(3)}, clip.options());
  for (const Ellipse& e : ellipses) {
    const at::Tensor x =
        (grid.narrow(1, 0, 1) - width * (e.x + e.velocity_x * times)) / (width * e.radius_x);
    const at::Tensor y =
        (grid.narrow(1, 1, 1) - height * (e.y + e.velocity_y * times)) / (width * e.radius_y);
    const at::Tensor distance = (x.square() + y.square()).sqrt();
    mask = at::maximum(mask, ((1.0 + kFeather - distance) / kFeather).clamp(0.0, 1.0));
  }
  return mask;
}

at::Tensor roi_warp(const at::Tensor& clip, const std::vector<Ellipse>& ellipses,
                    const at::Tensor& field) {
  return warped(clip, field * ellipse_mask(clip, ellipses));
}

at::Tensor smooth_field(const at::Tensor& clip, double amplitude, double blur) {
  constexpr double kKept = 0.9;
  const at::Tensor noise =
      gaussian(at::randn({clip.size(0), 2, clip.size(2), clip.size(3)}, clip.options()), blur);
  std::vector<at::Tensor> field = {noise.select(0, 0)};
  for (int64_t t = 1; t < clip.size(0); ++t) {
    field.push_back(kKept * field.back() + std::sqrt(1.0 - kKept * kKept) * noise.select(0, t));
  }
  const at::Tensor all = at::stack(field);
  return all * (amplitude / (all.square().sum(1).mean().sqrt() + 1e-12));
}

std::vector<Ellipse> draw_ellipses(world::Draw& draw, int64_t least, int64_t most, bool moving) {
  std::vector<Ellipse> ellipses(static_cast<size_t>(least + draw.below(most - least + 1)));
  for (Ellipse& e : ellipses) {
    e.x = draw.uniform(0.1, 0.9);
    e.y = draw.uniform(0.1, 0.9);
    e.radius_x = draw.uniform(0.05, 0.2);
    e.radius_y = draw.uniform(0.05, 0.2);
    if (!moving) continue;
    e.velocity_x = draw.uniform(-0.01, 0.01);
    e.velocity_y = draw.uniform(-0.01, 0.01);
  }
  return ellipses;
}

at::Tensor colour_bleeding(const at::Tensor& clip, const std::vector<Ellipse>& ellipses,
                           double mix) {
  const at::Tensor ycc = to_ycc(clip);
  const at::Tensor chroma = ycc.narrow(1, 1, 2);
  const at::Tensor before =
      at::cat({chroma.narrow(0, 0, 1), chroma.narrow(0, 0, clip.size(0) - 1)});
  const at::Tensor mixed = chroma + mix * ellipse_mask(clip, ellipses) * (before - chroma);
  return from_ycc(at::cat({ycc.narrow(1, 0, 1), mixed}, 1)).clamp(0.0, 1.0);
}

at::Tensor chunk_jitter(const at::Tensor& clip, const std::vector<Jump>& jumps) {
  const at::Tensor grid = pixel_grid(clip);
  const double middle_x = 0.5 * static_cast<double>(clip.size(3) - 1);
  const double middle_y = 0.5 * static_cast<double>(clip.size(2) - 1);
  std::vector<at::Tensor> chunks;
  for (int64_t first = 0; first < clip.size(0); first += kJumpFrames) {
    const Jump& jump = jumps.at(static_cast<size_t>(first / kJumpFrames));
    const at::Tensor part = clip.narrow(0, first, std::min(kJumpFrames, clip.size(0) - first));
    const at::Tensor x = (grid.narrow(1, 0, 1) - middle_x) / jump.zoom + middle_x - jump.x;
    const at::Tensor y = (grid.narrow(1, 1, 1) - middle_y) / jump.zoom + middle_y - jump.y;
    chunks.push_back(jump.gain * sampled(part, at::cat({x, y}, 1)));
  }
  return at::cat(chunks).clamp(0.0, 1.0);
}

std::vector<Jump> draw_jumps(world::Draw& draw, int64_t frames, double amplitude) {
  std::vector<Jump> jumps(static_cast<size_t>((frames + kJumpFrames - 1) / kJumpFrames));
  for (Jump& jump : jumps) {
    jump.x = amplitude * draw.uniform(-1.0, 1.0);
    jump.y = amplitude * draw.uniform(-1.0, 1.0);
    jump.zoom = draw.uniform(0.995, 1.005);
    jump.gain = draw.uniform(0.99, 1.01);
  }
  return jumps;
}

}  // namespace ultraflash::degrade
