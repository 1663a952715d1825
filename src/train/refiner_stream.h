// RefinerStream: the super-resolution transformer as streams run it, for training: group after
// group of latent frames, one step from noise each, with the keys and values of groups before.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "train/cascade.h"
#include "train/objective.h"

namespace ultraflash {

/// Temporal blocks that stay for the group after group `group`.
enum class KvSchedule : uint8_t {
  kFull,      // as many as the recipe says
  kDecaying,  // from the third group on one less each, to 1 (ultra-flash 5.1 (iii))
  kOne,
};
int64_t kv_len_of(KvSchedule schedule, int64_t group, int64_t full);

class RefinerStream {
 public:
  /// Streams of groups of `group_frames` frames, of the size of `like` [batch, f, h, w, c]. What is
  /// referred to outlives the stream.
  RefinerStream(const TrainContext& context, const RefinerNetwork& network, const TextKv& text,
                const at::Tensor& like, int64_t group_frames, int64_t full_kv_len);

  /// What the network makes of `noise` under the condition `y` in its one step; `kv_len` blocks
  /// stay for the next group.
  at::Tensor next(const at::Tensor& noise, const at::Tensor& y, int64_t kv_len);
  /// The flow prediction that the next group would have at `sigmas`; the stream does not move.
  [[nodiscard]] at::Tensor flow(const at::Tensor& x, const at::Tensor& y,
                                const std::vector<double>& sigmas) const;

 private:
  const TrainContext& context_;
  const RefinerNetwork& network_;
  const TextKv& text_;
  int64_t full_kv_len_;
  SparseSrState state_;
};

/// A whole clip in groups: f32 [batch, frames, h, w, c] of noise and condition -> latents.
at::Tensor refine_stream(const TrainContext& context, const RefinerNetwork& network,
                         const TextKv& text, const at::Tensor& noise, const at::Tensor& y,
                         int64_t group_frames, int64_t full_kv_len, KvSchedule schedule);

}  // namespace ultraflash
