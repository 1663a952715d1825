// From q, k and v side by side to what attention reads: RMS norm of q and k over all heads, rotary
// embedding, k and v written to their place in the cache; in e4m3 with v transposed where attention
// wants that. One pass over qkv; bound by bytes.
//
// Angles of height and width come from a table; those of time are worked out in f64 once per CTA,
// since their positions have no bound. A CTA takes two tokens, a thread 16 bytes of each of q, k
// and v, all loaded before anything waits. Where a row or a head does not divide like that, one CTA
// per token, a pair of elements per thread and step.
//
// In e4m3 other CTAs of the launch take v, a head of some groups of 16 rows of the cache each, and
// transpose it in shared memory: 16 tokens are the 16 bytes that e4m3 has next to each other.
#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxPairs = 512;  // of a head
constexpr int kColumns = 8;     // of a thread
constexpr int kGroup = 16;      // tokens of a warp that takes v in e4m3
constexpr int kMostGroups = 8;  // of such a CTA
constexpr int kHeadColumns = 128;
constexpr int kTokens = 2;  // of any other
static_assert(kTokens == 2, "the factors of a first and a second token");
constexpr int kMaxWarps = 32;

__device__ const PlaceNumbers& numbers(const void* place) {
  return *static_cast<const PlaceNumbers*>(place);
}

// Cosine and sine of frame * frequency: reduced in f64, so that late frames are as exact as early
// ones.
__device__ float2 time_factor(int64_t frame, double frequency) {
  constexpr double kPerRadian = 0.15915494309189535;  // turns
  const double turns = static_cast<double>(frame) * frequency * kPerRadian;
  float s;
  float c;
  sincospif(static_cast<float>(2.0 * (turns - rint(turns))), &s, &c);
  return {c, s};
}

// Cosine and sine of every pair of a head at one position.
__device__ void fill_factors(const RotaryTable& r, int64_t frame, int64_t row, int64_t column,
                             float2* factors) {
  const int pairs = r.pairs_time + 2 * r.pairs_space;
  for (int j = static_cast<int>(threadIdx.x); j < pairs; j += static_cast<int>(blockDim.x)) {
    if (j < r.pairs_time) {
      factors[j] = time_factor(frame, r.frequency[j]);
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

/// Tiles of v that cover a frame wherever it begins in the cache, `groups` groups of 16 rows each.
__host__ __device__ constexpr int value_tiles(int64_t per_frame, int groups) {
  return (static_cast<int>(per_frame / kGroup) + 2 + groups - 1) / groups;
}
/// Groups of a tile: a warp each.
__host__ __device__ constexpr int value_groups(int threads) {
  return threads / 32 < kMostGroups ? threads / 32 : kMostGroups;
}

// v of a head and some groups of 16 rows of the cache, transposed: a warp loads 16 tokens, 4 of
// them and 8 columns of each half of the head a thread, and leaves words of 4 keys in shared
// memory, where `transposed` is [128 columns][8 groups][4 words] with groups of column c at their
// place exclusive-or c / 8, so that neither side has bank conflicts. Rows then leave in runs of 16
// bytes a group.
__device__ __forceinline__ void write_values(const QkvArgs& a, int64_t cache_tokens,
                                             uint32_t* transposed) {
  const PlaceNumbers& place = numbers(a.place);
  const auto thread = static_cast<int>(threadIdx.x);
  const auto threads = static_cast<int>(blockDim.x);
  const auto per_frame = static_cast<int>(a.grid.height * a.grid.width);
  const auto frames = static_cast<uint32_t>(a.grid.frames);
  const auto heads = static_cast<uint32_t>(a.heads);
  const int groups = value_groups(threads);
  const auto tiles = static_cast<uint32_t>(value_tiles(per_frame, groups));
  uint32_t index = blockIdx.x;
  const uint32_t head = index % heads;
  index /= heads;
  const uint32_t tile = index % tiles;
  index /= tiles;
  const uint32_t sample = index / frames;
  const uint32_t frame = index - sample * frames;
  int64_t slot = place.first_slot + frame;
  if (slot >= place.ring_end) slot = place.ring_begin + (slot - place.ring_end);
  const int64_t frame_row = slot * per_frame;
  const int64_t first_row = frame_row / kGroup * kGroup + int64_t{tile} * groups * kGroup;

  const int warp = thread / 32;
  if (warp < groups) {
    const int columns = thread % 8;    // 8 of each half
    const int word = thread % 32 / 8;  // of the group
    const auto in_frame = static_cast<int>(first_row - frame_row) + kGroup * warp;
    const auto* v = static_cast<const bf16*>(a.qkv) +
                    (int64_t{index} * per_frame + in_frame) * 3 * a.dim + 2 * a.dim +
                    head * kHeadColumns + columns * kColumns;
    Pack<bf16, kColumns> in[2][4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      // Keys 8 n + 2 w + {0, 1} are bytes 2 n + {0, 1} of word w: fp8_key_place.
      const int row = 2 * word + n % 2 + n / 2 * 8;
      const bool present = in_frame + row >= 0 && in_frame + row < per_frame;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (present) {
          in[half][n] = *reinterpret_cast<const Pack<bf16, kColumns>*>(
              v + int64_t{row} * 3 * a.dim + half * kHeadColumns / 2);
        } else {
#pragma unroll
          for (int i = 0; i < kColumns; ++i) in[half][n].x[i] = as<bf16>(0.0F);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const auto pair = [&](int n) -> uint32_t {
          return __nv_cvt_float2_to_fp8x2(
              make_float2(as_float(in[half][n].x[i]), as_float(in[half][n + 1].x[i])),
              __NV_SATFINITE, __NV_E4M3);
        };
        const int column = half * kHeadColumns / 2 + columns * kColumns + i;
        transposed[(column * kMostGroups + (warp ^ columns)) * 4 + word] = pair(0) | pair(2) << 16;
      }
    }
  }
  __syncthreads();
  const int64_t blocks = (cache_tokens + 127) / 128;
  auto* out = static_cast<uint8_t*>(a.v);
  for (int i = thread; i < kHeadColumns * kMostGroups; i += threads) {
    const int column = i / kMostGroups;
    const int group = i % kMostGroups;
    const int64_t row = first_row + group * kGroup;
    const auto in_frame = static_cast<int>(row - frame_row);
    if (group >= groups || in_frame >= per_frame) continue;
    const uint4 keys = *reinterpret_cast<const uint4*>(
        transposed + (column * kMostGroups + (group ^ column / kColumns % kMostGroups)) * 4);
    uint8_t* to = out +
                  ((sample * blocks + row / 128) * a.dim + head * kHeadColumns + column) * 128 +
                  row % 128;
    if (in_frame >= 0 && in_frame + kGroup <= per_frame) {
      *reinterpret_cast<uint4*>(to) = keys;
      continue;
    }
    // The other keys of the group belong to another frame.
    const uint32_t words[4] = {keys.x, keys.y, keys.z, keys.w};
#pragma unroll
    for (int place_of = 0; place_of < kGroup; ++place_of) {
      const int at = in_frame + fp8_key_at(place_of);
      if (at >= 0 && at < per_frame) {
        to[place_of] = static_cast<uint8_t>(words[place_of / 4] >> 8 * (place_of % 4));
      }
    }
  }
}

// The norm weights of 8 columns become what q and k are multiplied by so that e4m3 holds them.
__device__ __forceinline__ void to_fp8_weights(const QkvArgs& a, bool active, bool writes,
                                               float (&q)[kColumns], float (&k)[kColumns]) {
  const Fp8HeadScales scales = fp8_head_scales(q, k, static_cast<float>(a.dim));
  // The same for every CTA; thousands of them writing one address would queue up there.
  if (writes && active && threadIdx.x % 16 == 0) a.scales[threadIdx.x / 16] = scales.q * scales.k;
  const float factor_q = __fdividef(1.0F, scales.q);
  const float factor_k = __fdividef(1.0F, scales.k);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    q[i] *= factor_q;
    k[i] *= factor_k;
  }
}

template <typename T, bool FP8, int MAX_THREADS, int CTAS>
__global__ void __launch_bounds__(MAX_THREADS, CTAS)
    packed_kernel(const __grid_constant__ QkvArgs a, int64_t cache_tokens, int value_ctas) {
  constexpr int N = 16 / static_cast<int>(sizeof(T));
  __shared__ __align__(16) float2 factors[kTokens][kMaxPairs / kTokens];
  __shared__ __align__(16) float partial[2 * kTokens][kMaxWarps];
  const auto thread = static_cast<int>(threadIdx.x);
  const int column = thread * N;
  const auto dim = static_cast<int>(a.dim);
  const bool active = column < dim;
  // Divisions of 64 bits would be most of this kernel's instructions.
  const auto per_frame = static_cast<int>(a.grid.height * a.grid.width);
  const int tokens = static_cast<int>(a.grid.frames) * per_frame;
  const int all_tokens = static_cast<int>(a.batch) * tokens;
  const auto* qkv = static_cast<const T*>(a.qkv);
  if constexpr (FP8) {
    if (static_cast<int>(blockIdx.x) < value_ctas) {
      __shared__ __align__(16) uint32_t transposed[kHeadColumns * kMostGroups * 4];
      write_values(a, cache_tokens, transposed);
      return;
    }
  }
  const int first = (static_cast<int>(blockIdx.x) - value_ctas) * kTokens;
  Pack<T, N> q[kTokens];
  Pack<T, N> k[kTokens];
  Pack<T, N> v[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (active && first + t < all_tokens) {
      const T* from = qkv + int64_t{first + t} * 3 * dim + column;
      q[t] = *reinterpret_cast<const Pack<T, N>*>(from);
      k[t] = *reinterpret_cast<const Pack<T, N>*>(from + dim);
      if constexpr (!FP8) v[t] = *reinterpret_cast<const Pack<T, N>*>(from + 2 * dim);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) q[t].x[i] = k[t].x[i] = as<T>(0.0F);
    }
  }
  // Where the tokens stand: sample, frame and place in the frame.
  int sample[kTokens];
  int frame[kTokens];
  int in_frame[kTokens];
  sample[0] = first / tokens;
  frame[0] = (first - sample[0] * tokens) / per_frame;
  in_frame[0] = first - sample[0] * tokens - frame[0] * per_frame;
#pragma unroll
  for (int t = 1; t < kTokens; ++t) {
    in_frame[t] = in_frame[t - 1] + 1;
    const bool frame_ends = in_frame[t] == per_frame;
    if (frame_ends) in_frame[t] = 0;
    frame[t] = frame[t - 1] + (frame_ends ? 1 : 0);
    const bool sample_ends = frame[t] == static_cast<int>(a.grid.frames);
    if (sample_ends) frame[t] = 0;
    sample[t] = sample[t - 1] + (sample_ends ? 1 : 0);
  }
  float weight_q[N] = {};
  float weight_k[N] = {};
  if (active) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 wq = __ldg(reinterpret_cast<const float4*>(a.norm_q + column + i));
      const float4 wk = __ldg(reinterpret_cast<const float4*>(a.norm_k + column + i));
      weight_q[i] = wq.x, weight_q[i + 1] = wq.y, weight_q[i + 2] = wq.z, weight_q[i + 3] = wq.w;
      weight_k[i] = wk.x, weight_k[i + 1] = wk.y, weight_k[i + 2] = wk.z, weight_k[i + 3] = wk.w;
    }
  }
  if constexpr (FP8) to_fp8_weights(a, active, first == 0, weight_q, weight_k);
  const PlaceNumbers& place = numbers(a.place);
  const RotaryTable& r = a.rotary;
  const auto width = static_cast<int>(a.grid.width);
  // All factors of a head, before anything waits: read pair by pair later on, they would be one
  // latency after the other.
  const int pairs = a.head_dim / 2;
  for (int i = thread; i < kTokens * pairs; i += static_cast<int>(blockDim.x)) {
    const bool second = i >= pairs;
    const int j = second ? i - pairs : i;
    const int in_space = j - r.pairs_time;
    if (in_space < 0) {
      int64_t position = second ? frame[1] : frame[0];
      if (place.position_period > 0) position %= place.position_period;
      factors[second ? 1 : 0][j] = time_factor(place.first_frame + position, r.frequency[j]);
      continue;
    }
    const int at = second ? in_frame[1] : in_frame[0];
    const int line = at / width;
    const float2* from =
        in_space < r.pairs_space
            ? reinterpret_cast<const float2*>(r.height) + line * r.pairs_space
            : reinterpret_cast<const float2*>(r.width) + (at - line * width - 1) * r.pairs_space;
    factors[second ? 1 : 0][j] = from[in_space];
  }
  const int warps = static_cast<int>(blockDim.x) / 32;
  for (int i = thread; i < 2 * kTokens * kMaxWarps; i += static_cast<int>(blockDim.x)) {
    if (i % kMaxWarps >= warps) partial[i / kMaxWarps][i % kMaxWarps] = 0.0F;
  }
  float squares[2 * kTokens] = {};
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      squares[t] += as_float(q[t].x[i]) * as_float(q[t].x[i]);
      squares[kTokens + t] += as_float(k[t].x[i]) * as_float(k[t].x[i]);
    }
  }
  constexpr int kLanes = 32 / (2 * kTokens);  // that end with the same total
  const float total = sum_each(squares);
  if (thread % kLanes == 0) partial[thread % 32 / kLanes][thread / 32] = total;
  __syncthreads();
  if (!active) return;
  const float per_column = 1.0F / static_cast<float>(dim);
  const auto inverse_of = [&](const float(&sums)[kMaxWarps]) {
    float square = 0.0F;
    for (int w = 0; w < warps; w += 4) {
      const float4 x = *reinterpret_cast<const float4*>(&sums[w]);
      square += (x.x + x.y) + (x.z + x.w);
    }
    return rsqrtf(square * per_column + a.eps);
  };
  const int pair = column % a.head_dim / 2;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const int token = first + t;
    if (token >= all_tokens) return;
    const float inverse_q = inverse_of(partial[t]);
    const float inverse_k = inverse_of(partial[kTokens + t]);
    float q_out[N];
    float k_out[N];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float2 f = factors[t][pair + i];
      const auto turn = [&](const Pack<T, N>& in, const float(&weight)[N], float inverse,
                            float(&out)[N]) {
        const float x = as_float(in.x[2 * i]) * inverse * weight[2 * i];
        const float y = as_float(in.x[2 * i + 1]) * inverse * weight[2 * i + 1];
        out[2 * i] = x * f.x - y * f.y;
        out[2 * i + 1] = y * f.x + x * f.y;
      };
      turn(q[t], weight_q, inverse_q, q_out);
      turn(k[t], weight_k, inverse_k, k_out);
    }
    int64_t slot = place.first_slot + frame[t];
    if (slot >= place.ring_end) slot = place.ring_begin + (slot - place.ring_end);
    const int64_t row = sample[t] * cache_tokens + slot * per_frame + in_frame[t];
    const int64_t q_at = int64_t{token} * dim + column;
    const int64_t k_at = row * dim + column;
    if constexpr (FP8) {
      using Out = Pack<uint8_t, N>;
      *reinterpret_cast<Out*>(static_cast<uint8_t*>(a.q) + q_at) = to_fp8(q_out, 1.0F);
      *reinterpret_cast<Out*>(static_cast<uint8_t*>(a.k) + k_at) = to_fp8(k_out, 1.0F);
    } else {
      Pack<T, N> q_pack;
      Pack<T, N> k_pack;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        q_pack.x[i] = as<T>(q_out[i]);
        k_pack.x[i] = as<T>(k_out[i]);
      }
      *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.q) + q_at) = q_pack;
      *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.k) + k_at) = k_pack;
      *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.v) + k_at) = v[t];
    }
  }
}

__global__ void store_place_kernel(PlaceNumbers numbers, PlaceNumbers* device) {
  *device = numbers;
}

void check(const QkvArgs& a) {
  require(a.head_dim / 2 <= kMaxPairs && a.place != nullptr,
          "rotary embedding: heads of at most 1024 and a place in device memory");
  require(a.batch * a.grid.tokens() < int64_t{1} << 31, "rotary embedding: 2^31 tokens");
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
  const auto token_ctas = static_cast<unsigned>((tokens + kTokens - 1) / kTokens);
  if (args.scales != nullptr) {
    require(args.dtype == DType::kBF16 && args.head_dim == 128 && args.dim <= 8192 &&
                packable(args.norm_q) && packable(args.norm_k),
            "attention in e4m3: bf16 before it and heads of 128, of at most 64");
    const int64_t threads = (args.dim / kColumns + 31) / 32 * 32;
    const int tiles =
        value_tiles(args.grid.tokens_per_frame(), value_groups(static_cast<int>(threads)));
    const auto value_ctas =
        static_cast<unsigned>(args.batch * args.grid.frames * tiles * args.heads);
    const auto go = [&](auto kernel) {
      kernel<<<value_ctas + token_ctas, static_cast<unsigned>(threads), 0, stream>>>(
          args, cache_tokens, static_cast<int>(value_ctas));
    };
    if (threads <= 192) {
      go(packed_kernel<bf16, true, 192, 4>);
    } else {
      go(packed_kernel<bf16, true, 1024, 1>);
    }
  } else {
    with_type(args.dtype, [&](auto tag) {
      using T = decltype(tag);
      constexpr int N = 16 / static_cast<int>(sizeof(T));
      const int64_t threads = (args.dim / N + 31) / 32 * 32;
      if (args.dim % N != 0 || args.head_dim % N != 0 || threads > 1024 ||
          args.head_dim / 2 > kMaxPairs / kTokens || !packable(args.qkv) ||
          !packable(args.norm_q) || !packable(args.norm_k) || !packable(args.q) ||
          !packable(args.k) || !packable(args.v)) {
        to_cache_kernel<T>
            <<<static_cast<unsigned>(tokens), kThreads, 0, stream>>>(args, cache_tokens);
        return;
      }
      const auto go = [&](auto kernel) {
        kernel<<<token_ctas, static_cast<unsigned>(threads), 0, stream>>>(args, cache_tokens,
                                                                          /*value_ctas=*/0);
      };
      if (threads <= 192) {
        go(packed_kernel<T, false, 192, 4>);
      } else {
        go(packed_kernel<T, false, 1024, 1>);
      }
    });
  }
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
