// Dense attention, and the query/key preparation that comes before it.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "ops/cpu/cpu_executor.h"

namespace ultraflash::cpu {

void CpuExecutor::fill_axis(RotaryAxis& axis, int64_t first, int64_t count, int64_t width) {
  if (axis.first == first && axis.count >= count && axis.width == width) return;
  axis.first = first;
  axis.count = count;
  axis.width = width;
  axis.cosine.resize(static_cast<size_t>(count * width));
  axis.sine.resize(static_cast<size_t>(count * width));
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < width / 2; ++j) {
      const double angle =
          static_cast<double>(first + i) *
          std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(width));
      const auto at = static_cast<size_t>(i * width + 2 * j);
      axis.cosine[at] = axis.cosine[at + 1] = static_cast<float>(std::cos(angle));
      axis.sine[at + 1] = static_cast<float>(std::sin(angle));
      axis.sine[at] = -axis.sine[at + 1];
    }
  }
}

void CpuExecutor::update_rotary(const TokenGrid& grid, int64_t head_dim, int64_t first_frame) {
  const int64_t spatial = 2 * (head_dim / 6);
  fill_axis(rotary_time_, first_frame, grid.frames, head_dim - 2 * spatial);
  fill_axis(rotary_height_, 0, grid.height, spatial);
  fill_axis(rotary_width_, 0, grid.width, spatial);
}

void CpuExecutor::rotary_row(int64_t frame, int64_t row, int64_t column, float* cosine,
                             float* sine) const {
  const auto take = [&](const RotaryAxis& axis, int64_t index) {
    const auto bytes = static_cast<size_t>(axis.width) * sizeof(float);
    std::memcpy(cosine, axis.cosine.data() + index * axis.width, bytes);
    std::memcpy(sine, axis.sine.data() + index * axis.width, bytes);
    cosine += axis.width;
    sine += axis.width;
  };
  take(rotary_time_, frame);
  take(rotary_height_, row);
  take(rotary_width_, column);
}

Tensor CpuExecutor::do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                                    float eps, const TokenGrid& grid, int64_t heads,
                                    const ChunkPlace& place, KvCache& cache) {
  const int64_t batch = qkv.dim(0);
  const int64_t dim = qkv.dim(2) / 3;
  const int64_t head_dim = dim / heads;
  const int64_t per_frame = grid.tokens_per_frame();
  const int64_t tokens = grid.tokens();
  const int64_t capacity = cache.k.dim(1);
  const auto element = static_cast<int64_t>(dtype_size(qkv.dtype()));
  update_rotary(grid, head_dim, place.first_frame);
  Tensor q = arena_.allocate(qkv.dtype(), {batch, tokens, dim});
  prepare_thread_scratch(2 * head_dim);
  parallel_for(batch * tokens, 16, [&](int64_t begin, int64_t end) {
    float* cosine = thread_scratch(static_cast<size_t>(omp_get_thread_num()), 2 * head_dim);
    float* sine = cosine + head_dim;
    QkvTokenArgs args;
    args.dtype = qkv.dtype();
    args.dim = dim;
    args.head_dim = head_dim;
    args.eps = eps;
    args.norm_q = norm_q.data<float>();
    args.norm_k = norm_k.data<float>();
    args.cosine = cosine;
    args.sine = sine;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t sample = t / tokens;
      const int64_t token = t % tokens;
      const int64_t frame = token / per_frame;
      const int64_t in_frame = token % per_frame;
      rotary_row(place.position_of(frame) - place.first_frame, in_frame / grid.width,
                 in_frame % grid.width, cosine, sine);
      const int64_t row = sample * capacity + place.slot_of(frame) * per_frame + in_frame;
      args.qkv = qkv.raw() + t * 3 * dim * element;
      args.q_out = q.mutable_raw() + t * dim * element;
      args.k_out = cache.k.mutable_raw() + row * dim * element;
      args.v_out = cache.v.mutable_raw() + row * dim * element;
      kernels_->qkv_token(args);
    }
  });
  return q;
}

Tensor CpuExecutor::do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                                        int64_t tokens_per_frame, const ChunkPlace& place) {
  AttentionOptions options;
  options.keys = place.visible_frames * tokens_per_frame;
  return do_attention(q, cache.k, cache.v, heads, options);
}

Tensor CpuExecutor::do_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                                 const AttentionOptions& options) {
  if (q.dtype() != DType::kF32 && q.dtype() != DType::kBF16) {
    throw_error(StatusCode::kUnsupported, "attention: the CPU computes in f32 and bf16, not in {}",
                dtype_name(q.dtype()));
  }
  const int64_t batch = q.dim(0);
  const int64_t queries = q.dim(1);
  const int64_t head_dim = q.dim(2) / heads;
  const int64_t keys = options.keys < 0 ? k.dim(1) : options.keys;
  const auto element = static_cast<int64_t>(dtype_size(q.dtype()));
  Tensor out = arena_.allocate(q.dtype(), {batch, queries, q.dim(2)});
  if (out.numel() == 0) return out;

  // Query tiles: as large as a task takes, unless that leaves threads idle.
  int64_t per_task = std::min(kMaxTaskQueries, queries);
  const auto tasks_for = [&](int64_t size) {
    return batch * heads * ((queries + size - 1) / size);
  };
  while (per_task > 32 &&
         (tasks_for(per_task) < 4 * threads_ || tasks_for(per_task) % threads_ != 0)) {
    per_task = (per_task / 2 + 15) / 16 * 16;
  }
  const int64_t tiles = (queries + per_task - 1) / per_task;
  const int64_t max_runs = (keys + kMaxKeyRun - 1) / kMaxKeyRun;
  const int64_t scratch = kernels_->attention_scratch(head_dim);
  const int64_t run_floats =
      (max_runs * static_cast<int64_t>(sizeof(KeyRun)) + 63) / 64 * 16;  // runs, in floats
  prepare_thread_scratch(scratch + run_floats);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
  for (int64_t index = 0; index < batch * heads * tiles; ++index) {
    const int64_t tile = index % tiles;
    const int64_t head = index / tiles % heads;
    const int64_t sample = index / (tiles * heads);
    float* memory = thread_scratch(static_cast<size_t>(omp_get_thread_num()), scratch + run_floats);
    auto* runs = reinterpret_cast<KeyRun*>(memory);
    const int64_t visible =
        options.key_lengths.defined()
            ? std::clamp<int64_t>(options.key_lengths.data<int64_t>()[sample], 0, keys)
            : keys;
    const std::byte* k_base =
        k.raw() + ((k.dim(0) == 1 ? 0 : sample) * k.stride(0) + head * head_dim) * element;
    const std::byte* v_base =
        v.raw() + ((v.dim(0) == 1 ? 0 : sample) * v.stride(0) + head * head_dim) * element;
    int64_t run_count = 0;
    for (int64_t first = 0; first < visible; first += kMaxKeyRun) {
      runs[run_count++] = {k_base + first * k.stride(1) * element,
                           v_base + first * v.stride(1) * element,
                           std::min(kMaxKeyRun, visible - first)};
    }
    const int64_t first_query = tile * per_task;
    AttentionTask task;
    task.dtype = q.dtype();
    task.head_dim = head_dim;
    task.scale =
        options.scale != 0.0F ? options.scale : 1.0F / std::sqrt(static_cast<float>(head_dim));
    task.q =
        q.raw() + (sample * q.stride(0) + first_query * q.stride(1) + head * head_dim) * element;
    task.q_stride = q.stride(1);
    task.queries = std::min(per_task, queries - first_query);
    task.runs = runs;
    task.run_count = run_count;
    task.k_stride = k.stride(1);
    task.v_stride = v.stride(1);
    if (options.relative_bias.defined()) {
      const Tensor& bias = options.relative_bias;
      task.bias = bias.data<float>() + head * bias.stride(0) + first_query + keys - 1;
    }
    task.out =
        out.mutable_raw() + ((sample * queries + first_query) * heads + head) * head_dim * element;
    task.out_stride = heads * head_dim;
    task.scratch = memory + run_floats;
    kernels_->attention(task);
  }
  return out;
}

}  // namespace ultraflash::cpu
