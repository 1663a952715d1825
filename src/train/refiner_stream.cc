#include "train/refiner_stream.h"

#include <algorithm>

namespace ultraflash {

int64_t kv_len_of(KvSchedule schedule, int64_t group, int64_t full) {
  constexpr int64_t kWarmupGroups = 2;
  switch (schedule) {
    case KvSchedule::kFull:
      return full;
    case KvSchedule::kDecaying:
      return group < kWarmupGroups ? full : std::max<int64_t>(1, full - (group - kWarmupGroups));
    case KvSchedule::kOne:
      return 1;
  }
  return full;
}

RefinerStream::RefinerStream(const TrainContext& context, const RefinerNetwork& network,
                             const TextKv& text, const at::Tensor& like, int64_t group_frames,
                             int64_t full_kv_len)
    : context_(context),
      network_(network),
      text_(text),
      full_kv_len_(full_kv_len),
      state_(network.make_state(context, like, group_frames, full_kv_len)) {}

at::Tensor RefinerStream::next(const at::Tensor& noise, const at::Tensor& y, int64_t kv_len) {
  const std::vector<double> ones(static_cast<size_t>(noise.size(0)), 1.0);
  return noise - network_.sparse(context_, noise, y, ones, text_, state_, {kv_len, 1.0});
}

at::Tensor RefinerStream::flow(const at::Tensor& x, const at::Tensor& y,
                               const std::vector<double>& sigmas) const {
  SparseSrState state = state_;  // handles: what a pass writes is new
  return network_.sparse(context_, x, y, sigmas, text_, state, {full_kv_len_, 1.0});
}

at::Tensor refine_stream(const TrainContext& context, const RefinerNetwork& network,
                         const TextKv& text, const at::Tensor& noise, const at::Tensor& y,
                         int64_t group_frames, int64_t full_kv_len, KvSchedule schedule) {
  RefinerStream stream(context, network, text, y, group_frames, full_kv_len);
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < y.size(1); first += group_frames) {
    const int64_t count = std::min(group_frames, y.size(1) - first);
    parts.push_back(stream.next(noise.narrow(1, first, count), y.narrow(1, first, count),
                                kv_len_of(schedule, first / group_frames, full_kv_len)));
  }
  return at::cat(parts, 1);
}

}  // namespace ultraflash
