// MemoryNet: a causal convolutional network whose only memory is each memory block's last input.
// The tiny decoder and encoder (madebyollin/taehv), the ultra decoder and the latent upsamplers of
// Ultra Flash are all lists of these layers; their files build the list, this one runs it.
//
// Pictures are [batch, frames, height, width, channels]. Running a clip in pieces with the state
// carried over gives the same frames as running it whole.
#pragma once

#include <cstdint>
#include <string_view>
#include <variant>
#include <vector>

#include "models/loader.h"
#include "ops/executor.h"

namespace ultraflash {

/// What a memory block sees before the first frame of a stream.
enum class MemoryInit : uint8_t {
  kZero,       // zeros
  kReplicate,  // its own first input
};

/// Last inputs of the memory blocks and frames that a temporal pool still waits for, in layer
/// order. A default state is the beginning of a stream.
struct MemoryState {
  std::vector<Tensor> memories;
  std::vector<Tensor> pending;
  bool started = false;
  /// Set by a caller whose next call follows this one's and finds its results still in place: last
  /// inputs are then kept as they stand instead of being copied to `memories`, which stay where
  /// they are. Reset for the last call of such a row.
  bool more_follows = false;
  std::vector<Tensor> kept;  // in layer order, undefined: in `memories`

  /// A new stream; the memory stays.
  void reset() {
    started = false;
    more_follows = false;
    kept.clear();
  }
};

class MemoryNet {
 public:
  explicit MemoryNet(MemoryInit init = MemoryInit::kZero) : init_(init) {}

  // Layers, in the order they run. Names are those of the checkpoint below the loader's prefix.

  /// limit * tanh(x / limit).
  void soft_clamp(float limit);
  /// 3x3 convolution `name`.weight [out, in, 3, 3].
  void conv(Loader& loader, std::string_view name, int64_t in, int64_t out, bool bias,
            Activation activation = Activation::kNone, int64_t stride = 1, float gain = 1.0F);
  /// `name`.conv.{0,2,4} on (current, memory), and `name`.skip where the widths differ:
  /// y = act(conv4(act(conv2(act(conv0(x, memory))))) + skip(x)); the memory is then x.
  void memory_block(Loader& loader, std::string_view name, int64_t in, int64_t out,
                    Activation activation = Activation::kRelu);
  /// Pixel repetition. Runs inside the next 3x3 convolution: a 1x1 layer in between commutes with
  /// it and runs at the smaller size.
  void upsample(int64_t factor);
  /// `name` [out * factor^2, in, 3, 3] and a pixel shuffle.
  void pixel_shuffle(Loader& loader, std::string_view name, int64_t in, int64_t out, int64_t factor,
                     Activation activation = Activation::kNone);
  /// 1x1 `name`.weight [channels * stored_frames, channels, 1, 1]; each frame becomes `frames`. A
  /// network that grows less than its checkpoint uses the last rows of the weight.
  void temporal_grow(Loader& loader, std::string_view name, int64_t channels, int64_t frames,
                     int64_t stored_frames);
  /// 1x1 `name`.weight [channels, channels * frames, 1, 1]; `frames` frames become one.
  void temporal_pool(Loader& loader, std::string_view name, int64_t channels, int64_t frames);
  void activate(Activation activation);

  /// Frames out for `frames` frames in, from the state on (temporal pools keep a rest back).
  [[nodiscard]] Tensor run(Executor& ops, Tensor x, MemoryState& state) const;

 private:
  struct SoftClamp {
    float limit;
  };
  struct Convolution {
    Conv weight;
    Activation activation;
    int64_t stride;
  };
  struct MemoryBlock {
    Conv conv_0, conv_2, conv_4;
    Linear skip;  // unprepared: identity
    Activation activation;
    size_t state;
  };
  struct Upsample {
    int64_t factor;
  };
  struct PixelShuffle {
    Conv weight;
    int64_t factor;
    Activation activation;
  };
  struct TemporalGrow {
    Linear weight;
    int64_t frames;
  };
  struct TemporalPool {
    Linear weight;
    int64_t frames;
    size_t state;
  };
  struct Activate {
    Activation activation;
  };
  using Layer = std::variant<SoftClamp, Convolution, MemoryBlock, Upsample, PixelShuffle,
                             TemporalGrow, TemporalPool, Activate>;

  // Layers [begin, end). `upsample` is what pixel repetition is still to be done.
  Tensor run_layers(Executor& ops, size_t begin, size_t end, Tensor x, int64_t& upsample,
                    MemoryState& state) const;
  // The first of the layers at the end that treat every frame for itself.
  [[nodiscard]] size_t tail() const;
  Tensor run_memory_block(Executor& ops, const MemoryBlock& block, Tensor x,
                          MemoryState& state) const;
  static Tensor run_temporal_pool(Executor& ops, const TemporalPool& pool, const Tensor& x,
                                  MemoryState& state);

  MemoryInit init_;
  std::vector<Layer> layers_;
  size_t memory_count_ = 0;
  size_t pool_count_ = 0;
};

}  // namespace ultraflash
