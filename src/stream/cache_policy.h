// Which slot of a KV cache a latent frame goes to, and what falls out.
//
// The reference keeps the cache in time order and shifts it left when it is full. Attention does
// not depend on the order of keys, so this overwrites the oldest frames in place instead: same
// result, no copies, fixed addresses. Source: Self-Forcing wan/modules/causal_model.py.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/types.h"
#include "ultraflash/status.h"

namespace ultraflash {

enum class CacheKind : uint8_t {
  kGrow,    // keeps everything, refuses more than its capacity
  kWindow,  // keeps the first `sink` frames for ever and the most recent ones beside them
};

struct CachePolicy {
  CacheKind kind = CacheKind::kGrow;
  int64_t capacity_frames = 21;  // sink and window together
  int64_t sink_frames = 0;

  /// kInvalidArgument when a chunk of `frames_per_chunk` does not fit beside the sink.
  [[nodiscard]] Status validate(int64_t frames_per_chunk) const;
};

/// The slots of one stream. Counts frames only; the memory belongs to the network's KvState.
class CacheRing {
 public:
  explicit CacheRing(const CachePolicy& policy) : policy_(policy) {}

  [[nodiscard]] const CachePolicy& policy() const { return policy_; }
  /// Slots for the next `frames` frames of the stream, the first of which is latent frame
  /// `first_frame`. Every pass of a chunk uses the place that its first pass was given.
  /// kInvalidArgument when a growing cache is full.
  Result<ChunkPlace> append(int64_t frames, int64_t first_frame);
  /// Forgets everything; the next chunk goes to slot 0.
  void reset();

  /// Absolute latent frame of every filled slot, oldest first.
  [[nodiscard]] std::vector<int64_t> frames() const;
  /// The slots of frames(), in the same order.
  [[nodiscard]] std::vector<int64_t> slots() const;

 private:
  CachePolicy policy_;
  int64_t next_slot_ = 0;
  std::vector<int64_t> frame_of_slot_;  // as many as are filled
};

}  // namespace ultraflash
