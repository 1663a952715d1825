// Degradations that move things: M1 to M6 of ultra-flash-training 2.4. A clip is f32
// [frames, 3, height, width] in [0, 1] on any device; a flow f32 [n, 2, height, width] has the way
// in pixels, x first, from a pixel of one frame to its place in another.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "train/world/scene.h"

namespace ultraflash::degrade {

/// x[n] at (place + flow): [n, c, h, w] read with bilinear weights, edges repeated.
at::Tensor warped(const at::Tensor& x, const at::Tensor& flow);
/// From each frame to the next, [frames - 1, 2, h, w]: Lucas and Kanade over three halvings, for
/// movements of a few pixels. Flat places have no flow. See dense_flow.h for a better one.
at::Tensor optical_flow(const at::Tensor& clip);

/// M1: frames of a run become mixtures with a neighbour that is brought part of the way to them.
struct Morph {
  int64_t first = 0;  // frame
  int64_t frames = 2;
  double mix = 0.3;     // a
  double way = 0.6;     // b, of the flow
  bool forward = true;  // the neighbour is the next frame, else the one before
};
at::Tensor temporal_morph(const at::Tensor& clip, const at::Tensor& flow,
                          const std::vector<Morph>& runs);
std::vector<Morph> draw_morphs(world::Draw& draw, int64_t frames);

/// M2: a frame is lost; the last one is held, or its neighbours are blended.
enum class Loss : uint8_t { kNone, kHold, kBlend };
at::Tensor frame_drop(const at::Tensor& clip, const std::vector<Loss>& losses);
std::vector<Loss> draw_losses(world::Draw& draw, int64_t frames);

/// M3: every pixel is the mean along `blur`, a flow [frames, 2, h, w] whose length is that of the
/// streak.
at::Tensor motion_blur(const at::Tensor& clip, const at::Tensor& blur);
/// Streaks from the clip's own movement, the mean over tiles of `tile` pixels with soft borders:
/// length `gain` times the flow's, 1 to `longest` pixels; none where nothing moves.
at::Tensor blur_from_flow(const at::Tensor& flow, int64_t tile, double gain, double longest);
/// One streak for all: `length` pixels in direction `angle`, which turns by `drift` a frame.
at::Tensor line_blur(const at::Tensor& clip, double length, double angle, double drift);

/// M4: soft ellipses in which the picture wavers. The field is smooth in space, and in time each
/// frame's is 0.9 of the last one's and something new.
struct Ellipse {
  double x = 0.5;  // of the width and the height
  double y = 0.5;
  double radius_x = 0.1;  // of the width
  double radius_y = 0.1;
  double velocity_x = 0.0;  // of the width and the height, a frame
  double velocity_y = 0.0;
};
/// f32 [frames, 1, h, w]: 1 inside, 0 outside, soft between.
at::Tensor ellipse_mask(const at::Tensor& clip, const std::vector<Ellipse>& ellipses);
/// `field` from smooth_field(); amplitude in pixels.
at::Tensor roi_warp(const at::Tensor& clip, const std::vector<Ellipse>& ellipses,
                    const at::Tensor& field);
/// Random displacements [frames, 2, h, w] of root mean square `amplitude` pixels, blurred over
/// `blur` pixels. Drawn from the device's generator.
at::Tensor smooth_field(const at::Tensor& clip, double amplitude, double blur);
std::vector<Ellipse> draw_ellipses(world::Draw& draw, int64_t least, int64_t most, bool moving);

/// M5: the colour (not the brightness) of the frame before runs into this one inside ellipses.
at::Tensor colour_bleeding(const at::Tensor& clip, const std::vector<Ellipse>& ellipses,
                           double mix);

/// M6: a jump at every chunk of an autoregressive generator.
struct Jump {
  double x = 0.0;  // pixels
  double y = 0.0;
  double zoom = 1.0;
  double gain = 1.0;
};
inline constexpr int64_t kJumpFrames = 12;
/// One jump for every kJumpFrames frames, the first chunk included.
at::Tensor chunk_jitter(const at::Tensor& clip, const std::vector<Jump>& jumps);
std::vector<Jump> draw_jumps(world::Draw& draw, int64_t frames, double amplitude);

}  // namespace ultraflash::degrade
