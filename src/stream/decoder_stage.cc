#include "stream/decoder_stage.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {
namespace {

// Pictures are decoded some latent frames at a time, so that the widest layer (64 channels at full
// size) stays small and in cache however long the group is.
constexpr int64_t kPixelsPerCall = 1 << 18;

}  // namespace

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
}

float DecoderStage::low() const {
  return decoder_.tiny ? decoder_.tiny->config().output_low() : -1.0F;
}

Tensor DecoderStage::decode(const Tensor& latent) {
  const Tensor pictures = decoder_.tiny ? decoder_.tiny->run(ops_, latent, tiny_state_)
                                        : decoder_.vae->decode(ops_, latent, vae_state_);
  return ops_.to_rgb8(pictures, low(), 1.0F);  // [1, n, 8h, 8w, 3]
}

Tensor DecoderStage::run(const Tensor& latent) {
  const int64_t frames = latent.dim(1);
  const int64_t pixels = latent.dim(2) * latent.dim(3) * 64 * 4;
  const int64_t step =
      std::clamp<int64_t>(kPixelsPerCall / std::max<int64_t>(pixels, 1), 1, frames);
  std::vector<Tensor> parts;
  int64_t count = 0;
  for (int64_t first = 0; first < frames; first += step) {
    if (limit_ > 0 && delivered_ + count >= limit_) break;
    const int64_t end = std::min(first + step, frames);
    Tensor part = latent;
    if (end - first != frames) {
      part = ops_.empty(latent.dtype(), latent.shape().with(1, end - first));
      ops_.copy(part, latent.slice(1, first, end));
    }
    Tensor pictures = decode(part);
    const int64_t dropped = std::min(to_drop_, pictures.dim(1));
    to_drop_ -= dropped;
    const int64_t room = limit_ > 0 ? limit_ - delivered_ - count : pictures.dim(1);
    const int64_t kept = std::min(pictures.dim(1) - dropped, room);
    if (kept <= 0) continue;
    pictures = pictures.slice(1, dropped, dropped + kept);
    count += kept;
    parts.push_back(std::move(pictures));
  }
  if (count == 0) return {};
  delivered_ += count;
  const Shape& one = parts[0].shape();
  if (parts.size() == 1 && parts[0].contiguous())
    return parts[0].reshape({count, one[2], one[3], 3});
  Tensor all = ops_.empty(DType::kU8, {1, count, one[2], one[3], 3});
  int64_t at = 0;
  for (const Tensor& part : parts) {
    ops_.copy(all.slice(1, at, at + part.dim(1)), part);
    at += part.dim(1);
  }
  return all.reshape({count, one[2], one[3], 3});
}

}  // namespace ultraflash
