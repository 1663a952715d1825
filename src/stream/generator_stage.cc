#include "stream/generator_stage.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {

GeneratorStage::GeneratorStage(Executor& ops, const WanDit& network, const GeneratorSpec& spec,
                               const CachePolicy& policy)
    : ops_(ops),
      network_(network),
      spec_(spec),
      schedule_(static_cast<float>(spec.timestep_shift)),
      ring_(policy) {
  Result<std::vector<float>> warped = schedule_.warp(spec.denoising_steps);
  if (!warped.ok()) throw Error(warped.status());
  timesteps_ = *std::move(warped);
  for (const float t : timesteps_) {
    const auto timestep = static_cast<double>(t);
    modulations_.push_back(network.time(ops, {&timestep, 1}));
  }
  modulations_.push_back(network.time(ops, {&spec.context_timestep, 1}));
  cache_ = make_kv_state(ops, network, 1, policy.capacity_frames,
                         spec.latent_height / 2 * (spec.latent_width / 2));
}

void GeneratorStage::reset(uint64_t seed) {
  seed_ = seed;
  chunk_index_ = 0;
  frame_index_ = 0;
  passes_ = 0;
  ring_.reset();
  kept_.clear();
}

void GeneratorStage::run(const Tensor& latent, size_t modulation, const ChunkPlace& place,
                         bool cache_only, Tensor* flow) {
  CausalPass pass;
  pass.time = &modulations_[modulation];
  pass.text = &text_;
  pass.place = place;
  pass.cache_only = cache_only;
  Tensor result = run_causal(ops_, network_, latent, cache_, pass);
  ++passes_;
  if (flow != nullptr) *flow = std::move(result);
}

Tensor GeneratorStage::next_chunk(int64_t frames, std::span<const int64_t> steps,
                                  const std::function<void()>& check) {
  UF_CHECK(!steps.empty(), "a chunk without denoising steps");
  Result<ChunkPlace> place = ring_.append(frames, frame_index_);
  if (!place.ok()) throw Error(place.status());
  place_ = *std::move(place);
  ops_.update_place(place_);
  const Shape shape{1, frames, spec_.latent_height, spec_.latent_width, spec_.network.in_dim};
  const auto chunk = static_cast<uint64_t>(chunk_index_);
  const DType dtype = network_.compute();
  Tensor z =
      ops_.normal(make_random_stream(seed_, RandomPurpose::kInitialNoise, chunk), shape, dtype);
  Tensor x0;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (check) check();
    const auto step = static_cast<size_t>(steps[i]);
    Tensor flow;
    run(z, step, place_, /*cache_only=*/false, &flow);
    x0 = ops_.flow_to_x0(z, flow, static_cast<double>(schedule_.sigma_at(timesteps_[step])));
    if (i + 1 == steps.size()) break;
    // Renoise to the level of the next step with fresh noise.
    const float sigma = schedule_.sigma_at(timesteps_[static_cast<size_t>(steps[i + 1])]);
    const Tensor noise = ops_.normal(
        make_random_stream(seed_, RandomPurpose::kRenoise, chunk, static_cast<uint32_t>(i)), shape,
        dtype);
    z = ops_.axpby(1.0F - sigma, x0, sigma, noise);
  }
  kept_.push_back({frame_index_, x0});
  const std::vector<int64_t> held = ring_.frames();
  while (!kept_.empty()) {
    const KeptChunk& oldest = kept_.front();
    const int64_t end = oldest.first_frame + oldest.latent.dim(1);
    const auto first = std::lower_bound(held.begin(), held.end(), oldest.first_frame);
    if (first != held.end() && *first < end) break;
    kept_.pop_front();
  }
  // Chunks between sink and window hold no cached frame any more.
  std::erase_if(kept_, [&](const KeptChunk& chunk_kept) {
    const int64_t end = chunk_kept.first_frame + chunk_kept.latent.dim(1);
    const auto first = std::lower_bound(held.begin(), held.end(), chunk_kept.first_frame);
    return first == held.end() || *first >= end;
  });
  frame_index_ += frames;
  ++chunk_index_;
  return x0;
}

void GeneratorStage::refresh(const Tensor& chunk) {
  run(chunk, modulations_.size() - 1, place_, /*cache_only=*/true, nullptr);
}

void GeneratorStage::recache() {
  const std::vector<int64_t> held = ring_.frames();
  ring_.reset();
  for (const KeptChunk& chunk : kept_) {
    // The frames of this chunk that the cache held: a run, since frames leave from the old end.
    int64_t begin = -1;
    int64_t end = -1;
    for (int64_t i = 0; i < chunk.latent.dim(1); ++i) {
      if (!std::binary_search(held.begin(), held.end(), chunk.first_frame + i)) continue;
      if (begin < 0) begin = i;
      end = i + 1;
    }
    if (begin < 0) continue;
    Tensor part = chunk.latent;
    if (end - begin != part.dim(1)) {
      part = ops_.empty(part.dtype(), part.shape().with(1, end - begin));
      ops_.copy(part, chunk.latent.slice(1, begin, end));
    }
    Result<ChunkPlace> place = ring_.append(end - begin, chunk.first_frame + begin);
    if (!place.ok()) throw Error(place.status());
    ops_.update_place(*place);
    run(part, modulations_.size() - 1, *place, /*cache_only=*/true, nullptr);
  }
}

}  // namespace ultraflash
