#include "stream/cache_policy.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"

namespace ultraflash {

Status CachePolicy::validate(int64_t frames_per_chunk) const {
  if (capacity_frames < 1 || capacity_frames > 1 << 20 || sink_frames < 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "KV cache of {} latent frames with {} sink frames", capacity_frames,
                       sink_frames);
  }
  if (kind == CacheKind::kGrow && sink_frames != 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "a growing KV cache keeps every frame; {} sink frames only make sense with "
                       "a window",
                       sink_frames);
  }
  if (capacity_frames - sink_frames < frames_per_chunk) {
    return make_status(StatusCode::kInvalidArgument,
                       "a KV cache of {} latent frames with {} sink frames has no room for a chunk "
                       "of {}",
                       capacity_frames, sink_frames, frames_per_chunk);
  }
  return {};
}

Result<ChunkPlace> CacheRing::append(int64_t frames, int64_t first_frame) {
  const int64_t capacity = policy_.capacity_frames;
  const auto filled = static_cast<int64_t>(frame_of_slot_.size());
  if (policy_.kind == CacheKind::kGrow && filled + frames > capacity) {
    return make_status(StatusCode::kInvalidArgument,
                       "the KV cache holds {} latent frames and is full at frame {}; a longer "
                       "stream needs a recipe with a window",
                       capacity, first_frame);
  }
  UF_CHECK(frames > 0 && frames <= capacity - policy_.sink_frames, "{} frames into a cache of {}",
           frames, capacity);
  ChunkPlace place;
  place.first_frame = first_frame;
  place.first_slot = next_slot_;
  place.ring_begin = policy_.sink_frames;
  place.ring_end = capacity;
  for (int64_t i = 0; i < frames; ++i) {
    const int64_t slot = place.slot_of(i);
    if (slot == static_cast<int64_t>(frame_of_slot_.size())) {
      frame_of_slot_.push_back(first_frame + i);
    } else {
      frame_of_slot_[static_cast<size_t>(slot)] = first_frame + i;
    }
    next_slot_ = slot + 1 < capacity ? slot + 1 : policy_.sink_frames;
  }
  place.visible_frames = static_cast<int64_t>(frame_of_slot_.size());
  return place;
}

void CacheRing::reset() {
  next_slot_ = 0;
  frame_of_slot_.clear();
}

std::vector<int64_t> CacheRing::slots() const {
  std::vector<int64_t> order(frame_of_slot_.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return frame_of_slot_[static_cast<size_t>(a)] < frame_of_slot_[static_cast<size_t>(b)];
  });
  return order;
}

std::vector<int64_t> CacheRing::frames() const {
  std::vector<int64_t> sorted = frame_of_slot_;
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

}  // namespace ultraflash
