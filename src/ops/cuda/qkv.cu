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

}  // namespace ultraflash::cuda::kernels
