#include "stream/decoder_stage.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {
namespace {

// Pictures are decoded some latent frames at a time, so that the widest layer (64 channels at full
// size) stays small and in cache however long the group is.
constexpr int64_t kPixelsPerCall = 1 << 18;

constexpr int64_t kPixelsInOneGo = 1 << 21;  // of a picture

int64_t frames_per_call(const Tensor& latent) {
  const int64_t pixels = latent.dim(2) * latent.dim(3) * 64 * 4;
  return std::clamp<int64_t>(kPixelsPerCall / std::max<int64_t>(pixels, 1), 1, latent.dim(1));
}

}  // namespace

bool decodes_in_one_go(int64_t rows, int64_t columns) {
  return 64 * rows * columns <= kPixelsInOneGo;
}

PictureRate picture_rate(const DecoderSpec& spec, TrimRule rule) {
  PictureRate rate;
  if (spec.kind == DecoderKind::kWanVae) {
    rate.per_latent = spec.vae.frames_per_latent();
    rate.of_first = 1;
    rate.dropped = 0;
    return rate;
  }
  rate.per_latent = spec.tiny.frames_per_latent();
  rate.of_first = rate.per_latent;
  rate.dropped = spec.tiny.frames_to_trim() * (rule == TrimRule::kReleased ? 2 : 1);
  return rate;
}

void DecoderStage::reset(int64_t dropped, int64_t limit) {
  tiny_state_.reset();
  vae_state_.reset();
  to_drop_ = dropped;
  limit_ = limit;
  delivered_ = 0;
  decoded_ = 0;
}

float DecoderStage::low() const {
  return decoder_.tiny ? decoder_.tiny->config().output_low() : -1.0F;
}

Tensor DecoderStage::decode(const Tensor& latent) {
  if (!decoder_.tiny) {
    return ops_.to_rgb8(decoder_.vae->decode(ops_, latent, vae_state_), low(), 1.0F);
  }
  Decoding& d = decoding_[latent.dim(1)];
  if (!d.latent.defined()) {
    d.latent = ops_.empty(latent.dtype(), latent.shape());
    const int64_t pictures = latent.dim(1) * decoder_.tiny->config().frames_per_latent();
    d.pictures = ops_.empty(DType::kU8, {1, pictures, 8 * latent.dim(2), 8 * latent.dim(3), 3});
  }
  ops_.copy(d.latent, latent);
  ops_.repeat(d.recordings[tiny_state_.net.started ? 1 : 0], [&] {
    const int64_t frames = latent.dim(1);
    const int64_t step = frames_per_call(latent);
    const int64_t rate = decoder_.tiny->config().frames_per_latent();
    for (int64_t first = 0; first < frames; first += step) {
      const int64_t end = std::min(first + step, frames);
      tiny_state_.net.more_follows = end < frames;
      const Tensor pictures = decoder_.tiny->run(ops_, d.latent.slice(1, first, end), tiny_state_);
      ops_.copy(d.pictures.slice(1, rate * first, rate * end), ops_.to_rgb8(pictures, low(), 1.0F));
    }
  });
  tiny_state_.net.started = true;
  return d.pictures;
}

int64_t DecoderStage::needed(int64_t frames) const {
  if (limit_ == 0) return frames;
  const int64_t rate = decoder_.tiny->config().frames_per_latent();
  const int64_t pictures = std::max<int64_t>(limit_ - delivered_, 0) + to_drop_;
  return std::clamp<int64_t>((pictures + rate - 1) / rate, 1, frames);
}

Tensor DecoderStage::run(const Tensor& latent) {
  const int64_t frames = latent.dim(1);
  const bool one_go = decoder_.tiny && decodes_in_one_go(latent.dim(2), latent.dim(3));
  const int64_t step = one_go ? needed(frames) : frames_per_call(latent);
  Tensor all;
  int64_t count = 0;
  for (int64_t first = 0; first < frames; first += step) {
    if (limit_ > 0 && delivered_ + count >= limit_) break;
    const int64_t end = std::min(first + step, frames);
    const Tensor pictures = decode(latent.slice(1, first, end));  // [1, n, 8h, 8w, 3]
    const int64_t made = pictures.dim(1);
    decoded_ += made;
    const int64_t dropped = std::min(to_drop_, made);
    to_drop_ -= dropped;
    const int64_t room = limit_ > 0 ? limit_ - delivered_ - count : made;
    const int64_t kept = std::min(made - dropped, room);
    if (kept <= 0) continue;
    if (!all.defined()) {
      const int64_t rate = decoder_.tiny ? decoder_.tiny->config().frames_per_latent()
                                         : decoder_.vae->config().frames_per_latent();
      all = ops_.empty(DType::kU8, pictures.shape().with(1, kept + rate * (frames - end)));
    }
    ops_.copy(all.slice(1, count, count + kept), pictures.slice(1, dropped, dropped + kept));
    count += kept;
  }
  if (count == 0) return {};
  delivered_ += count;
  const Shape shape{count, all.dim(2), all.dim(3), 3};
  return all.slice(1, 0, count).reshape(shape);
}

}  // namespace ultraflash
