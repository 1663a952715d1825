#include "models/memory_net.h"

#include <string>
#include <utility>

#include "core/check.h"

namespace ultraflash {
namespace {

// Random weights: a ReLU halves the variance, and a memory block adds its branch to its input.
constexpr float kReluGain = 1.4142135F;
constexpr float kBranchGain = 0.5F;

// Output pixels from which on frames go through the last layers one by one: a picture of 960x1664
// with 64 channels in bf16 takes 0.2 GB.
constexpr int64_t kTailPixels = int64_t{1} << 20;

}  // namespace

void MemoryNet::soft_clamp(float limit) { layers_.emplace_back(SoftClamp{limit}); }

void MemoryNet::conv(Loader& loader, std::string_view name, int64_t in, int64_t out, bool bias,
                     Activation activation, int64_t stride, float gain) {
  layers_.emplace_back(
      Convolution{loader.conv(name, {out, in, 3, 3}, bias, gain), activation, stride});
}

void MemoryNet::memory_block(Loader& loader, std::string_view name, int64_t in, int64_t out,
                             Activation activation) {
  const std::string base(name);
  MemoryBlock block;
  block.conv_0 = loader.conv(base + ".conv.0", {out, 2 * in, 3, 3}, true, kReluGain);
  block.conv_2 = loader.conv(base + ".conv.2", {out, out, 3, 3}, true, kReluGain);
  block.conv_4 = loader.conv(base + ".conv.4", {out, out, 3, 3}, true, kBranchGain);
  if (in != out) block.skip = loader.pointwise(base + ".skip", in, out, false);
  block.activation = activation;
  block.state = memory_count_++;
  layers_.emplace_back(std::move(block));
}

void MemoryNet::upsample(int64_t factor) { layers_.emplace_back(Upsample{factor}); }

void MemoryNet::pixel_shuffle(Loader& loader, std::string_view name, int64_t in, int64_t out,
                              int64_t factor, Activation activation) {
  layers_.emplace_back(PixelShuffle{
      loader.conv(name, {out * factor * factor, in, 3, 3}, true, kReluGain), factor, activation});
}

void MemoryNet::temporal_grow(Loader& loader, std::string_view name, int64_t channels,
                              int64_t frames, int64_t stored_frames) {
  layers_.emplace_back(TemporalGrow{
      loader.pointwise_last_rows(name, channels, channels * frames, channels * stored_frames),
      frames});
}

void MemoryNet::temporal_pool(Loader& loader, std::string_view name, int64_t channels,
                              int64_t frames) {
  layers_.emplace_back(TemporalPool{loader.pointwise(name, channels * frames, channels, false),
                                    frames, pool_count_++});
}

void MemoryNet::activate(Activation activation) { layers_.emplace_back(Activate{activation}); }

Tensor MemoryNet::run_memory_block(Executor& ops, const MemoryBlock& block, Tensor x,
                                   MemoryState& state) const {
  if (x.dim(1) == 0) return x;
  Tensor& memory = state.memories[block.state];
  Tensor& kept = state.kept[block.state];
  const Tensor& before = kept.defined() ? kept : memory;
  const Shape one_frame = x.shape().with(1, 1);
  Conv2dOptions first;
  first.with_memory = true;
  first.activation = block.activation;
  if (state.started && before.defined() && before.shape() == one_frame) {
    first.memory = before;
  } else if (init_ == MemoryInit::kReplicate) {
    first.memory = ops.empty(x.dtype(), one_frame);
    ops.copy(first.memory, x.slice(1, 0, 1));
  }
  Tensor y = ops.conv2d(x, block.conv_0, first);  // [batch, frames, h, w, out]
  Conv2dOptions second;
  second.activation = block.activation;
  y = ops.conv2d(y, block.conv_2, second);
  const Tensor last = x.slice(1, x.dim(1) - 1, x.dim(1));
  if (state.more_follows) {
    kept = last;
  } else {
    kept = Tensor();
    if (!memory.defined() || memory.shape() != one_frame || memory.dtype() != x.dtype()) {
      memory = ops.empty(x.dtype(), one_frame);
    }
    ops.copy(memory, last);
  }
  Conv2dOptions third;
  third.activation = block.activation;
  third.residual = block.skip.prepared ? ops.linear(x, block.skip) : std::move(x);
  return ops.conv2d(y, block.conv_4, std::move(third));
}

Tensor MemoryNet::run_temporal_pool(Executor& ops, const TemporalPool& pool, const Tensor& x,
                                    MemoryState& state) {
  Tensor& pending = state.pending[pool.state];
  const int64_t waiting = state.started && pending.defined() ? pending.dim(1) : 0;
  Tensor all = x;
  if (waiting > 0) {
    all = ops.empty(x.dtype(), x.shape().with(1, waiting + x.dim(1)));
    ops.copy(all.slice(1, 0, waiting), pending);
    ops.copy(all.slice(1, waiting, all.dim(1)), x);
  }
  const int64_t whole = all.dim(1) / pool.frames * pool.frames;
  const int64_t rest = all.dim(1) - whole;
  pending = Tensor();
  if (rest > 0) {
    pending = ops.empty(x.dtype(), x.shape().with(1, rest));
    ops.copy(pending, all.slice(1, whole, all.dim(1)));
    Tensor front = ops.empty(x.dtype(), x.shape().with(1, whole));
    ops.copy(front, all.slice(1, 0, whole));
    all = front;
  }
  return ops.temporal_pool(all, pool.weight, pool.frames);
}

Tensor MemoryNet::run_layers(Executor& ops, size_t begin, size_t end, Tensor x, int64_t& upsample,
                             MemoryState& state) const {
  for (size_t i = begin; i < end; ++i) {
    const Layer& layer = layers_[i];
    if (const auto* clamp = std::get_if<SoftClamp>(&layer)) {
      x = ops.soft_clamp(x, clamp->limit);
    } else if (const auto* conv = std::get_if<Convolution>(&layer)) {
      Conv2dOptions options;
      options.activation = conv->activation;
      options.stride = conv->stride;
      options.upsample = std::exchange(upsample, 1);
      x = ops.conv2d(x, conv->weight, options);
    } else if (const auto* block = std::get_if<MemoryBlock>(&layer)) {
      UF_CHECK(upsample == 1, "a memory block right after an upsampling");
      x = run_memory_block(ops, *block, std::move(x), state);
    } else if (const auto* up = std::get_if<Upsample>(&layer)) {
      upsample *= up->factor;
    } else if (const auto* shuffle = std::get_if<PixelShuffle>(&layer)) {
      x = ops.pixel_shuffle(ops.conv2d(x, shuffle->weight, {}), shuffle->factor,
                            shuffle->activation);
    } else if (const auto* grow = std::get_if<TemporalGrow>(&layer)) {
      x = ops.temporal_grow(x, grow->weight, grow->frames);
    } else if (const auto* pool = std::get_if<TemporalPool>(&layer)) {
      x = run_temporal_pool(ops, *pool, x, state);
    } else if (const auto* act = std::get_if<Activate>(&layer)) {
      x = ops.activate(x, act->activation);
    }
  }
  return x;
}

size_t MemoryNet::tail() const {
  size_t begin = layers_.size();
  for (; begin > 0; --begin) {
    const Layer& layer = layers_[begin - 1];
    if (std::holds_alternative<MemoryBlock>(layer) || std::holds_alternative<TemporalGrow>(layer) ||
        std::holds_alternative<TemporalPool>(layer)) {
      break;
    }
  }
  return begin;
}

Tensor MemoryNet::run(Executor& ops, Tensor x, MemoryState& state) const {
  UF_CHECK(x.rank() == 5, "pictures {}", x.to_string());
  state.memories.resize(memory_count_);
  state.kept.resize(memory_count_);
  state.pending.resize(pool_count_);
  int64_t upsample = 1;  // still to be done by the next 3x3 convolution
  const size_t last = tail();
  x = run_layers(ops, 0, last, std::move(x), upsample, state);
  const int64_t frames = x.dim(1);
  if (frames > 1 && x.dim(0) == 1 &&
      frames * x.dim(2) * x.dim(3) * upsample * upsample > kTailPixels) {
    // Every frame for itself from here on, so that the largest pictures exist one at a time.
    Tensor all;
    int64_t rest = 1;
    for (int64_t t = 0; t < frames; ++t) {
      rest = upsample;
      const Tensor one = run_layers(ops, last, layers_.size(), x.slice(1, t, t + 1), rest, state);
      if (!all.defined()) all = ops.empty(one.dtype(), one.shape().with(1, frames));
      ops.copy(all.slice(1, t, t + 1), one);
    }
    upsample = rest;
    x = std::move(all);
  } else {
    x = run_layers(ops, last, layers_.size(), std::move(x), upsample, state);
  }
  UF_CHECK(upsample == 1, "an upsampling that no convolution follows");
  state.started = true;
  return x;
}

}  // namespace ultraflash
