#include "stream/generator_stage.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {
namespace {

// The vectors of one timestep in a row, so that one copy changes all of them: per layer [6, dim],
// then the head's shift and scale.
Tensor joined(Executor& ops, const TimeModulation& time) {
  const int64_t dim = time.head_shift.dim(-1);
  const auto layers = static_cast<int64_t>(time.blocks.size());
  Tensor numbers = ops.empty(DType::kF32, {6 * layers + 2, dim});
  int64_t row = 0;
  for (const Tensor& block : time.blocks) {
    ops.copy(numbers.slice(0, row, row + 6), block.reshape({6, dim}));
    row += 6;
  }
  ops.copy(numbers.slice(0, row, row + 1), time.head_shift.reshape({1, dim}));
  ops.copy(numbers.slice(0, row + 1, row + 2), time.head_scale.reshape({1, dim}));
  return numbers;
}

TimeModulation views_of(const Tensor& numbers, const WanDitConfig& config) {
  TimeModulation time;
  const int64_t dim = config.dim;
  int64_t row = 0;
  for (int64_t i = 0; i < config.num_layers; ++i, row += 6) {
    time.blocks.push_back(numbers.slice(0, row, row + 6).reshape({1, 1, 6, dim}));
  }
  time.head_shift = numbers.slice(0, row, row + 1).reshape({1, 1, dim});
  time.head_scale = numbers.slice(0, row + 1, row + 2).reshape({1, 1, dim});
  return time;
}

}  // namespace

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
    modulations_.push_back(joined(ops, network.time(ops, {&timestep, 1})));
  }
  modulations_.push_back(joined(ops, network.time(ops, {&spec_.context_timestep, 1})));
  modulation_numbers_ = ops.empty(DType::kF32, modulations_[0].shape());
  modulation_ = views_of(modulation_numbers_, network.config());
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

Tensor GeneratorStage::run(const Tensor& latent, size_t modulation, const ChunkPlace& place,
                           bool cache_only) {
  Passes& passes = passes_by_frames_[latent.dim(1)];
  if (!passes.latent.defined()) {
    passes.latent = ops_.empty(latent.dtype(), latent.shape());
    passes.flow = ops_.empty(latent.dtype(), latent.shape().with(4, spec_.network.out_dim));
  }
  ops_.copy(passes.latent, latent);
  ops_.copy(modulation_numbers_, modulations_[modulation]);
  ops_.repeat(passes.recordings[{place.visible_frames, cache_only}], [&] {
    CausalPass pass;
    pass.time = &modulation_;
    pass.text = &text_;
    pass.place = place;
    pass.cache_only = cache_only;
    const Tensor flow = run_causal(ops_, network_, passes.latent, cache_, pass);
    if (flow.defined()) ops_.copy(passes.flow, flow);
  });
  ++passes_;
  return passes.flow;
}

Result<ChunkPlace> GeneratorStage::append(int64_t frames, int64_t first_frame) {
  UF_ASSIGN(ChunkPlace place, ring_.append(frames, first_frame));
  place.device = place_numbers_;
  ops_.update_place(place);
  place_numbers_ = place.device;
  return place;
}

void GeneratorStage::warm_up(bool independent_first_frame, int times) {
  const Shape one{1, 1, spec_.latent_height, spec_.latent_width, spec_.network.in_dim};
  int64_t frame = 0;
  for (int64_t visible = -1;;) {
    const int64_t frames = frame == 0 && independent_first_frame ? 1 : spec_.frames_per_chunk;
    const Result<ChunkPlace> place = append(frames, frame);
    // A cache that is full, or that holds as many frames as before, has no other kind of pass.
    if (!place.ok() || place->visible_frames == visible) break;
    visible = place->visible_frames;
    frame += frames;
    const Tensor latent = ops_.zeros(network_.compute(), one.with(1, frames));
    for (int i = 0; i < times; ++i) {
      run(latent, 0, *place, /*cache_only=*/false);
      run(latent, modulations_.size() - 1, *place, /*cache_only=*/true);
    }
  }
  reset(seed_);
}

Tensor GeneratorStage::next_chunk(int64_t frames, std::span<const int64_t> steps,
                                  const std::function<void()>& check) {
  UF_CHECK(!steps.empty(), "a chunk without denoising steps");
  Result<ChunkPlace> place = append(frames, frame_index_);
  if (!place.ok()) throw Error(place.status());
  place_ = *std::move(place);
  const Shape shape{1, frames, spec_.latent_height, spec_.latent_width, spec_.network.in_dim};
  const auto chunk = static_cast<uint64_t>(chunk_index_);
  const DType dtype = network_.compute();
  Tensor z =
      ops_.normal(make_random_stream(seed_, RandomPurpose::kInitialNoise, chunk), shape, dtype);
  Tensor x0;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (check) check();
    const auto step = static_cast<size_t>(steps[i]);
    const Tensor flow = run(z, step, place_, /*cache_only=*/false);
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
  run(chunk, modulations_.size() - 1, place_, /*cache_only=*/true);
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
    const Result<ChunkPlace> place = append(end - begin, chunk.first_frame + begin);
    if (!place.ok()) throw Error(place.status());
    run(part, modulations_.size() - 1, *place, /*cache_only=*/true);
  }
}

}  // namespace ultraflash
