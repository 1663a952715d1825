// Attention, dense and block-sparse, with the query and key preparation before it.
#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_impl.h"
#include "ops/cuda/dense_sm90.h"

namespace ultraflash::cuda {
namespace {

const float* floats(const Tensor& x) { return reinterpret_cast<const float*>(x.raw()); }

Tensor axis_table(int64_t positions, int64_t pairs) {
  const Tensor table = Tensor::allocate(DType::kF32, {positions, pairs, 2});
  float* out = table.mutable_data<float>();
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t j = 0; j < pairs; ++j) {
      const double angle = static_cast<double>(p) *
                           std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(pairs));
      *out++ = static_cast<float>(std::cos(angle));
      *out++ = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

const void* place_of(const Tensor& device) {
  UF_CHECK(device.defined(), "a place that update_place has not seen");
  return device.raw();
}

void require_fp8_heads(int64_t dim, int64_t heads) {
  if (dim == heads * 128) return;
  throw_error(StatusCode::kUnsupported,
              "attention in fp8 takes heads of 128; this model has {} of {}", heads, dim / heads);
}

}  // namespace

kernels::RotaryTable CudaExecutor::rotary(const TokenGrid& grid, int64_t head_dim) {
  const int64_t space = head_dim / 6;
  const int64_t time = head_dim / 2 - 2 * space;
  const auto known = [&](const Rotary& r) {
    return r.rows == grid.height && r.columns == grid.width && r.head_dim == head_dim;
  };
  auto found = std::find_if(rotary_.begin(), rotary_.end(), known);
  if (found == rotary_.end()) {
    const Tensor frequency = Tensor::allocate(DType::kF64, {time});
    for (int64_t j = 0; j < time; ++j) {
      frequency.mutable_data<double>()[j] =
          std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(time));
    }
    rotary_.push_back({grid.height, grid.width, static_cast<int>(head_dim),
                       upload(axis_table(grid.height, space), DType::kF32),
                       upload(axis_table(grid.width, space), DType::kF32),
                       upload(frequency, DType::kF64)});
    found = rotary_.end() - 1;
  }
  kernels::RotaryTable table;
  table.height = floats(found->height);
  table.width = floats(found->width);
  table.frequency = reinterpret_cast<const double*>(found->frequency.raw());
  table.pairs_time = static_cast<int>(time);
  table.pairs_space = static_cast<int>(space);
  return table;
}

kernels::QkvArgs CudaExecutor::qkv_args(const Tensor& qkv, const Tensor& norm_q,
                                        const Tensor& norm_k, float eps, const TokenGrid& grid,
                                        int64_t heads) {
  kernels::QkvArgs args;
  args.dtype = qkv.dtype();
  args.qkv = qkv.raw();
  args.norm_q = floats(norm_q);
  args.norm_k = floats(norm_k);
  args.eps = eps;
  args.batch = qkv.dim(0);
  args.dim = qkv.dim(2) / 3;
  args.heads = static_cast<int>(heads);
  args.head_dim = static_cast<int>(args.dim / heads);
  args.grid = grid;
  args.rotary = rotary(grid, args.head_dim);
  return args;
}

Tensor CudaExecutor::do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                                     float eps, const TokenGrid& grid, int64_t heads,
                                     const ChunkPlace& place, KvCache& cache) {
  kernels::QkvArgs args = qkv_args(qkv, norm_q, norm_k, eps, grid, heads);
  const bool fp8 = cache.k.dtype() == DType::kF8E4M3;
  Tensor q = do_empty(fp8 ? DType::kF8E4M3 : qkv.dtype(), {args.batch, grid.tokens(), args.dim});
  if (fp8) args.scales = reinterpret_cast<float*>(cache.scales.mutable_raw());
  args.place = place_of(place.device);
  args.q = q.mutable_raw();
  args.k = cache.k.mutable_raw();
  args.v = cache.v.mutable_raw();
  kernels::qkv_to_cache(args, cache.k.dim(1), stream_);
  return q;
}

void CudaExecutor::run_attention(const kernels::AttentionArgs& args) {
  if (hopper_ && sm90::dense_supports(args) &&
      sm90::dense_workspace_bytes(multiprocessors_) <= workspace_.size_bytes()) {
    UF_CUDA_TRY(sm90::dense_attention(args, multiprocessors_, workspace_.mutable_raw(), stream_));
    return;
  }
  const bool takes = cudnn_ != nullptr && args.dtype == DType::kBF16 && args.bias == nullptr &&
                     args.key_lengths == nullptr && args.keys > 0 && args.head_dim % 8 == 0 &&
                     args.head_dim >= 16 && args.head_dim <= 256 && args.k_batch != 0 &&
                     args.v_batch != 0 && args.q_row % 8 == 0 && args.k_row % 8 == 0 &&
                     args.v_row % 8 == 0;
  if (takes) {
    const int64_t needed = cudnn_->plan_attention(args);
    if (needed >= 0) {
      const Tensor larger =
          needed > workspace_.numel() ? do_empty(DType::kU8, {needed}) : workspace_;
      cudnn_->attention(args, larger.mutable_raw(), stream_);
      return;
    }
  }
  kernels::attention(args, stream_);
}

KvCache CudaExecutor::do_kv_cache(DType dtype, int64_t batch, int64_t tokens, int64_t dim,
                                  int64_t heads) {
  if (!fp8_attention_ || dtype != DType::kBF16) {
    return Executor::do_kv_cache(dtype, batch, tokens, dim, heads);
  }
  require_fp8_heads(dim, heads);
  // What was never written weighs nothing, but must be a number.
  return {do_empty(DType::kF8E4M3, {batch, tokens, dim}),
          zeros(DType::kF8E4M3, {batch, (tokens + 127) / 128, dim, 128}),
          do_empty(DType::kF32, {heads})};
}

Tensor CudaExecutor::attention_fp8(const Tensor& q, const KvCache& cache, int64_t heads,
                                   int64_t keys) {
  Tensor out = do_empty(DType::kBF16, q.shape());
  sm90::DenseFp8Args args;
  args.scales = floats(cache.scales);
  args.queries = q.dim(1);
  args.keys = keys;
  args.heads = static_cast<int>(heads);
  args.scale = 1.0F / std::sqrt(128.0F);
  for (int64_t b = 0; b < q.dim(0) && out.numel() > 0; ++b) {
    args.q = q.select(0, b).raw();
    args.k = cache.k.select(0, b).raw();
    args.v = cache.v.select(0, b).raw();
    args.out = out.select(0, b).mutable_raw();
    UF_CUDA_TRY(
        sm90::dense_attention_fp8(args, multiprocessors_, workspace_.mutable_raw(), stream_));
  }
  return out;
}

Tensor CudaExecutor::do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                                         int64_t tokens_per_frame, const ChunkPlace& place) {
  if (q.dtype() == DType::kF8E4M3) {
    return attention_fp8(q, cache, heads, place.visible_frames * tokens_per_frame);
  }
  AttentionOptions options;
  options.keys = place.visible_frames * tokens_per_frame;
  return do_attention(q, cache.k, cache.v, heads, options);
}

Tensor CudaExecutor::do_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                                  const AttentionOptions& options) {
  kernels::AttentionArgs args;
  args.dtype = q.dtype();
  args.q = q.raw();
  args.k = k.raw();
  args.v = v.raw();
  args.batch = q.dim(0);
  args.queries = q.dim(1);
  args.keys = options.keys < 0 ? k.dim(1) : options.keys;
  args.heads = static_cast<int>(heads);
  args.head_dim = static_cast<int>(q.dim(2) / heads);
  args.scale =
      options.scale != 0.0F ? options.scale : 1.0F / std::sqrt(static_cast<float>(args.head_dim));
  args.q_batch = q.stride(0);
  args.q_row = q.stride(1);
  const bool shared = args.batch > 1;
  args.k_batch = shared && k.dim(0) == 1 ? 0 : k.stride(0);
  args.k_row = k.stride(1);
  args.v_batch = shared && v.dim(0) == 1 ? 0 : v.stride(0);
  args.v_row = v.stride(1);
  Tensor lengths;
  if (options.key_lengths.defined()) {
    lengths = upload(options.key_lengths.device().type == DeviceType::kCpu
                         ? Tensor(options.key_lengths)
                         : do_to_host(options.key_lengths),
                     DType::kI64);
    args.key_lengths = reinterpret_cast<const int64_t*>(lengths.raw());
  }
  if (options.relative_bias.defined()) {
    args.bias = floats(options.relative_bias);
    args.bias_head = options.relative_bias.stride(0);
  }
  Tensor out = do_empty(q.dtype(), {args.batch, args.queries, q.dim(2)});
  args.out = out.mutable_raw();
  args.out_batch = out.stride(0);
  args.out_row = out.stride(1);
  if (out.numel() > 0) run_attention(args);
  return out;
}

Tensor CudaExecutor::do_cross_attention(const Tensor& x, const Linear& q, const Tensor& norm_q,
                                        float eps, const CrossKeys& keys, int64_t heads,
                                        const Linear& o) {
  const auto& weight = static_cast<const CudaLinear&>(*o.prepared);
  const int64_t dim = q.out_features;
  kernels::TextAttentionArgs args;
  args.norm_q = floats(norm_q);
  args.eps = eps;
  args.k = keys.k.raw();
  args.v = keys.v.raw();
  args.batch = x.dim(0);
  args.queries = x.dim(1);
  args.keys = keys.k.dim(1);
  args.k_batch = keys.k.dim(0) == 1 ? 0 : keys.k.stride(0);
  args.k_row = keys.k.stride(1);
  args.v_batch = keys.v.dim(0) == 1 ? 0 : keys.v.stride(0);
  args.v_row = keys.v.stride(1);
  args.heads = static_cast<int>(heads);
  args.scale = 1.0F / std::sqrt(128.0F);
  const auto is_bf16 = [](const Tensor& t) { return t.dtype() == DType::kBF16; };
  // Without `distinct` keys are many, and a kernel whose queries share tiles of them is faster.
  const bool few = !plain_ && keys.distinct.defined() && dim == heads * 128 && is_bf16(keys.k) &&
                   is_bf16(keys.v) && weight.compute == DType::kBF16 && args.keys > 0 &&
                   static_cast<const CudaLinear&>(*q.prepared).compute == DType::kBF16 &&
                   x.numel() > 0 && kernels::text_attention_takes(args);
  if (!few) return Executor::do_cross_attention(x, q, norm_q, eps, keys, heads, o);
  const Tensor y = do_linear(x, q, Activation::kNone);
  args.distinct = reinterpret_cast<const int64_t*>(keys.distinct.raw());
  args.q = y.raw();
  if (!weight.weight8.defined()) {
    const Tensor attended = do_empty(DType::kBF16, y.shape());
    args.out = attended.mutable_raw();
    kernels::text_attention(args, stream_);
    return do_linear(attended, o, Activation::kNone);
  }
  const int64_t rows = args.batch * args.queries;
  const Tensor attended = empty_fp8({rows, dim});
  args.out = attended.mutable_raw();
  args.out_scales = scales_of(attended);
  kernels::text_attention(args, stream_);
  Tensor out = do_empty(DType::kBF16, x.shape().with(2, o.out_features));
  product_in_fp8(fp8_rows(attended, rows, dim), weight, Activation::kNone, out);
  return out;
}

}  // namespace ultraflash::cuda
