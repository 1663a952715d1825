#include "stream/cascade_stage.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {

CascadeStage::CascadeStage(Executor& ops, const CascadeSpec& spec, const GeneratorSpec& generator,
                           const LatentUpsampler* upsampler, const SparseSrDit* refiner,
                           int64_t group_frames)
    : ops_(ops), upsampler_(upsampler), refiner_(refiner) {
  if (refiner_ == nullptr) return;
  const double timestep = spec.refiner->timestep;
  modulation_ = refiner_->transformer().time(ops, {&timestep, 1});
  refiner_state_ = refiner_->make_state(ops, 1, generator.latent_height * spec.scale / 2,
                                        generator.latent_width * spec.scale / 2, group_frames,
                                        spec.refiner->kv_len);
}

void CascadeStage::reset(uint64_t seed, double condition_noise_scale) {
  seed_ = seed;
  condition_noise_ = static_cast<float>(condition_noise_scale);
  group_index_ = 0;
  upsampler_state_.reset();
  refiner_state_.reset();
}

int64_t CascadeStage::groups_until_full() const {
  const int64_t missing = refiner_state_.kv_len - refiner_state_.group_blocks;
  return 1 + std::max<int64_t>(missing, 0);
}

Tensor CascadeStage::upsample(const Tensor& latent) {
  UF_CHECK(upsampler_ != nullptr, "a cascade without upsampler");
  const LatentUpsamplerConfig& config = upsampler_->config();
  Upsampling& u = upsampling_[latent.dim(1)];
  if (!u.latent.defined()) {
    u.latent = ops_.empty(latent.dtype(), latent.shape());
    u.upsampled = ops_.empty(latent.dtype(), {latent.dim(0), latent.dim(1) * config.temporal_scale,
                                              latent.dim(2) * config.scale,
                                              latent.dim(3) * config.scale, config.out_channels});
  }
  ops_.copy(u.latent, latent);
  const bool started = upsampler_state_.net.started;
  ops_.repeat(u.recordings[started ? 1 : 0],
              [&] { ops_.copy(u.upsampled, upsampler_->run(ops_, u.latent, upsampler_state_)); });
  upsampler_state_.net.started = true;
  return u.upsampled;
}

Tensor CascadeStage::refine(const Tensor& upsampled, int64_t kv_len) {
  UF_CHECK(refiner_ != nullptr, "a cascade without refiner");
  const auto group = static_cast<uint64_t>(group_index_++);
  Tensor condition = upsampled;
  if (condition_noise_ > 0.0F) {
    const Tensor eta = ops_.normal(make_random_stream(seed_, RandomPurpose::kConditionNoise, group),
                                   upsampled.shape(), upsampled.dtype());
    condition = ops_.axpby(1.0F - condition_noise_, upsampled, condition_noise_, eta);
  }
  const Tensor noise = ops_.normal(make_random_stream(seed_, RandomPurpose::kRefinerNoise, group),
                                   upsampled.shape(), upsampled.dtype());
  const int64_t frames = noise.dim(1);
  Refining& r = refining_[frames];
  if (!r.noise.defined()) {
    for (Tensor* x : {&r.noise, &r.condition, &r.flow}) {
      *x = ops_.empty(noise.dtype(), noise.shape());
    }
  }
  ops_.copy(r.noise, noise);
  ops_.copy(r.condition, condition);
  refiner_->begin(ops_, frames, refiner_state_);
  ops_.repeat(r.recordings[refiner_state_.cached_blocks], [&] {
    SparseSrPass pass;
    pass.time = &modulation_;
    pass.text = &text_;
    ops_.copy(r.flow, refiner_->forward(ops_, r.noise, r.condition, refiner_state_, pass));
  });
  refiner_->commit(frames, kv_len, refiner_state_);
  return ops_.axpby(1.0F, noise, -1.0F, r.flow);  // x0 at sigma 1
}

}  // namespace ultraflash
