#include "stream/cascade_stage.h"

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

Tensor CascadeStage::upsample(const Tensor& latent) {
  UF_CHECK(upsampler_ != nullptr, "a cascade without upsampler");
  return upsampler_->run(ops_, latent, upsampler_state_);
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
  SparseSrPass pass;
  pass.time = &modulation_;
  pass.text = &text_;
  pass.kv_len = kv_len;
  const Tensor flow = refiner_->run(ops_, noise, condition, refiner_state_, pass);
  return ops_.axpby(1.0F, noise, -1.0F, flow);  // x0 at sigma 1
}

}  // namespace ultraflash
