// From q, k and v side by side to what attention reads: RMS norm of q and k over all heads, rotary
// embedding, k and v written to their place in the cache. One pass over qkv; bound by bytes.
//
// One CTA per token, a pair of elements per thread and step. Angles of height and width come from a
// table; those of time are worked out in f64 once per CTA, since their positions have no bound.
#include "ops/cuda/device.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxPairs = 512;  // of a head

__device__ const PlaceNumbers& numbers(const void* place) {
  return *static_cast<const PlaceNumbers*>(place);
}

// Cosine and sine of every pair of a head at one position.
__device__ void fill_factors(const RotaryTable& r, int64_t frame, int64_t row, int64_t column,
                             float2* factors) {
  const int pairs = r.pairs_time + 2 * r.pairs_space;
  for (int j = static_cast<int>(threadIdx.x); j < pairs; j += static_cast<int>(blockDim.x)) {
    if (j < r.pairs_time) {
      double s;
      double c;
      sincos(static_cast<double>(frame) * r.frequency[j], &s, &c);
      factors[j] = {static_cast<float>(c), static_cast<float>(s)};
    } else if (j < r.pairs_time + r.pairs_space) {
      factors[j] =
          reinterpret_cast<const float2*>(r.height)[row * r.pairs_space + j - r.pairs_time];
    } else {
      factors[j] = reinterpret_cast<const float2*>(
          r.width)[column * r.pairs_space + j - r.pairs_time - r.pairs_space];
    }
  }
}

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T a, b;
};

// q, k and v of one token to their rows.
template <typename T>
__device__ void write_token(const QkvArgs& a, const float2* factors, const T* qkv, T* q, T* k,
                            T* v) {
  __shared__ float scratch[32];
  const auto* q_in = reinterpret_cast<const Pair<T>*>(qkv);
  const auto* k_in = reinterpret_cast<const Pair<T>*>(qkv + a.dim);
  const auto* v_in = reinterpret_cast<const Pair<T>*>(qkv + 2 * a.dim);
  const int pairs = static_cast<int>(a.dim / 2);
  const int head_pairs = a.head_dim / 2;
  float sum_q = 0.0F;
  float sum_k = 0.0F;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads) {
    const float qa = as_float(q_in[i].a);
    const float qb = as_float(q_in[i].b);
    const float ka = as_float(k_in[i].a);
    const float kb = as_float(k_in[i].b);
    sum_q += qa * qa + qb * qb;
    sum_k += ka * ka + kb * kb;
  }
  const auto size = static_cast<float>(a.dim);
  const float inverse_q = 1.0F / sqrtf(block_sum(sum_q, scratch) / size + a.eps);
  const float inverse_k = 1.0F / sqrtf(block_sum(sum_k, scratch) / size + a.eps);
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads) {
    const float2 f = factors[i % head_pairs];
    const auto rotate = [&](const Pair<T>& in, float inverse, const float* weight) {
      const float x = as_float(in.a) * inverse * weight[2 * i];
      const float y = as_float(in.b) * inverse * weight[2 * i + 1];
      return Pair<T>{as<T>(x * f.x - y * f.y), as<T>(y * f.x + x * f.y)};
    };
    reinterpret_cast<Pair<T>*>(q)[i] = rotate(q_in[i], inverse_q, a.norm_q);
    reinterpret_cast<Pair<T>*>(k)[i] = rotate(k_in[i], inverse_k, a.norm_k);
    reinterpret_cast<Pair<T>*>(v)[i] = v_in[i];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) to_cache_kernel(QkvArgs a, int64_t cache_tokens) {
  __shared__ float2 factors[kMaxPairs];
  const PlaceNumbers& place = numbers(a.place);
  const int64_t tokens = a.grid.frames * a.grid.height * a.grid.width;
  const int64_t per_frame = a.grid.height * a.grid.width;
  const int64_t t = blockIdx.x;
  const int64_t sample = t / tokens;
  const int64_t frame = t % tokens / per_frame;
  const int64_t in_frame = t % per_frame;
  const int64_t position =
      place.first_frame + (place.position_period > 0 ? frame % place.position_period : frame);
  fill_factors(a.rotary, position, in_frame / a.grid.width, in_frame % a.grid.width, factors);
  __syncthreads();
  int64_t slot = place.first_slot + frame;
  if (slot >= place.ring_end) slot = place.ring_begin + (slot - place.ring_end);
  const int64_t row = sample * cache_tokens + slot * per_frame + in_frame;
  write_token(a, factors, static_cast<const T*>(a.qkv) + t * 3 * a.dim,
              static_cast<T*>(a.q) + t * a.dim, static_cast<T*>(a.k) + row * a.dim,
              static_cast<T*>(a.v) + row * a.dim);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) to_windows_kernel(QkvArgs a, WindowGrid g) {
  __shared__ float2 factors[kMaxPairs];
  const PlaceNumbers& place = numbers(a.place);
  const int64_t window = g.window.frames * g.window.height * g.window.width;
  const int64_t columns = (g.grid.width + g.window.width - 1) / g.window.width;
  const int64_t rows = (g.grid.height + g.window.height - 1) / g.window.height;
  const int64_t spatial = rows * columns;
  const int64_t temporal = (g.grid.frames + g.window.frames - 1) / g.window.frames;
  const int64_t i = blockIdx.x % window;
  const int64_t block = blockIdx.x / window;  // over samples too
  const int64_t sample = block / (temporal * spatial);
  const int64_t time_block = block / spatial % temporal;
  const int64_t space_block = block % spatial;
  const int64_t in_frame = g.window.height * g.window.width;
  const int64_t frame = time_block * g.window.frames + i / in_frame;
  const int64_t row = space_block / columns * g.window.height + i % in_frame / g.window.width;
  const int64_t column = space_block % columns * g.window.width + i % g.window.width;
  const int64_t slot =
      (place.first_slot + place.cached_blocks + time_block) % place.capacity_blocks;
  const int64_t cache_block = (sample * place.capacity_blocks + slot) * spatial + space_block;
  T* q = static_cast<T*>(a.q) + (block * window + i) * a.dim;
  T* k = static_cast<T*>(a.k) + (cache_block * window + i) * a.dim;
  T* v = static_cast<T*>(a.v) + (cache_block * window + i) * a.dim;
  if (frame >= g.grid.frames || row >= g.grid.height || column >= g.grid.width) {
    for (int64_t d = threadIdx.x; d < a.dim; d += kThreads) q[d] = k[d] = v[d] = as<T>(0.0F);
    return;
  }
  fill_factors(a.rotary, place.first_frame + frame, row, column, factors);
  __syncthreads();
  const int64_t token =
      ((sample * g.grid.frames + frame) * g.grid.height + row) * g.grid.width + column;
  write_token(a, factors, static_cast<const T*>(a.qkv) + token * 3 * a.dim, q, k, v);
}

// blockIdx.x: window block over samples; blockIdx.y: 0 queries, 1 keys.
template <typename T>
__global__ void pool_kernel(QkvArgs a, int64_t window, int64_t spatial, int64_t temporal,
                            T* pooled_q, T* pooled_k) {
  const PlaceNumbers& place = numbers(a.place);
  const int64_t block = blockIdx.x;
  int64_t at = block;
  if (blockIdx.y == 1) {
    const int64_t sample = block / (temporal * spatial);
    const int64_t slot = (place.first_slot + place.cached_blocks + block / spatial % temporal) %
                         place.capacity_blocks;
    at = (sample * place.capacity_blocks + slot) * spatial + block % spatial;
  }
  const T* in = static_cast<const T*>(blockIdx.y == 0 ? a.q : a.k) + at * window * a.dim;
  T* out = (blockIdx.y == 0 ? pooled_q : pooled_k) + at * a.dim;
  const float inverse = 1.0F / static_cast<float>(window);
  for (int64_t d = threadIdx.x; d < a.dim; d += blockDim.x) {
    float sum = 0.0F;
    for (int64_t i = 0; i < window; ++i) sum += as_float(in[i * a.dim + d]);
    out[d] = as<T>(sum * inverse);
  }
}

__global__ void store_place_kernel(PlaceNumbers numbers, PlaceNumbers* device) {
  *device = numbers;
}

void check(const QkvArgs& a) {
  require(a.head_dim / 2 <= kMaxPairs && a.place != nullptr,
          "rotary embedding: heads of at most 1024 and a place in device memory");
}

}  // namespace

void store_place(const PlaceNumbers& numbers, void* device, cudaStream_t stream) {
  store_place_kernel<<<1, 1, 0, stream>>>(numbers, static_cast<PlaceNumbers*>(device));
  UF_CUDA_LAUNCHED();
}

void qkv_to_cache(const QkvArgs& args, int64_t cache_tokens, cudaStream_t stream) {
  const int64_t tokens = args.batch * args.grid.tokens();
  if (tokens * args.dim == 0) return;
  check(args);
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    to_cache_kernel<T><<<static_cast<unsigned>(tokens), kThreads, 0, stream>>>(args, cache_tokens);
  });
  UF_CUDA_LAUNCHED();
}

void qkv_to_windows(const QkvArgs& args, const WindowGrid& grid, cudaStream_t stream) {
  const int64_t rows = args.batch * grid.blocks() * grid.window.tokens();
  if (rows * args.dim == 0) return;
  check(args);
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    to_windows_kernel<T><<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(args, grid);
  });
  UF_CUDA_LAUNCHED();
}

void pool_windows(const QkvArgs& args, const WindowGrid& grid, void* pooled_q, void* pooled_k,
                  cudaStream_t stream) {
  const int64_t blocks = args.batch * grid.blocks();
  if (blocks * args.dim == 0) return;
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    const dim3 ctas(static_cast<unsigned>(blocks), 2);
    pool_kernel<T><<<ctas, kThreads, 0, stream>>>(args, grid.window.tokens(), grid.spatial_blocks(),
                                                  grid.temporal_blocks(), static_cast<T*>(pooled_q),
                                                  static_cast<T*>(pooled_k));
  });
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
