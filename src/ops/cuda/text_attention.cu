// Cross-attention to the keys of a text, with the RMS norm of the queries before it and, for a
// product in e4m3 after it, the quantisation behind it: softmax(norm(q) k^T scale) v of a head of
// 128 in one pass over q. mma.sync in bf16, sums in f32, sm_80 and later.
//
// A text is padded to 512 rows, and what stands for padding is equal in all of them. So the kernel
// reads the first of those rows alone and counts it as often as it is there: log2(count) is added
// to its score. A prompt of a few dozen tokens leaves one block of 64 keys out of 512.
//
// A warp takes 16 rows and some heads: 4 of 12 with the three CTAs of a cluster, which have the
// same rows and exchange each row's sum of squares and largest result; all heads before sm_90. Its
// rows of q come into shared memory and stay there, multiplied by the weights of the norm; the root
// mean square is a factor of scores, so that its exchange runs beside the first product. Results
// take the place of the queries of their head, and leave in whole rows, in e4m3 once their scale is
// known. Keys and values of a head pass through three slots of 64 rows, which all warps share, two
// of them under way while one is read.
//
// Of 12 heads with 64 rows: 115 KB of shared memory, two CTAs to a multiprocessor, so that 4680
// rows are 222 CTAs at 264 places. Bound by shared memory (each warp reads the keys and values of
// its heads for 16 rows) and by the instructions of norm and softmax, near the bytes: q once,
// results once, 27 MB of k and v from L2 for 61 keys.
#include <algorithm>
#include <array>
#include <mutex>

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/cluster.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/quantise.cuh"
#include "ops/cuda/text_attention.h"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kHeadDim = 128;
constexpr int kRowBytes = 2 * kHeadDim;
constexpr int kChunks = kRowBytes / 16;
constexpr int kRows = 16;  // of a warp
constexpr int kHeadBytes = kRows * kRowBytes;
constexpr int kKeys = 64;  // of a block
constexpr int kSlotBytes = kKeys * kRowBytes;
constexpr int kSlots = 3;
constexpr int kMostWarps = 4;
constexpr int kMostParts = 8;  // a cluster that every device has
constexpr int kPartHeads = 4;  // of a CTA of a cluster

__device__ __forceinline__ uint32_t packed(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000U);
}
__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// Over the four threads that share a row of a product.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 2));
}

/// Where 16 bytes of a row of a head lie in shared memory: eight rows in a column, as ldmatrix
/// reads them, and a row are both free of bank conflicts. Steps of two chunks are an exclusive-or
/// with multiples of 32.
__device__ __forceinline__ int place_of(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ row % 8) * 16);
}

/// Scores of the first 16 GROUPS keys of a slot, [8 keys][element of a fragment]. `keys`: the slot
/// and this lane's place in it.
template <int GROUPS>
__device__ __forceinline__ void add_scores(const uint32_t (&q)[8][4], uint32_t keys,
                                           float (&s)[8][4]) {
#pragma unroll
  for (int step = 0; step < 8; ++step) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      uint32_t k[4];
      load_squares(k, (keys ^ static_cast<uint32_t>(32 * step)) + 16 * kRowBytes * group);
      multiply_add(s[2 * group], q[step][0], q[step][1], q[step][2], q[step][3], k[0], k[1]);
      multiply_add(s[2 * group + 1], q[step][0], q[step][1], q[step][2], q[step][3], k[2], k[3]);
    }
  }
}

/// Weights of 16 GROUPS keys times their values, [8 columns][element of a fragment].
template <int GROUPS>
__device__ __forceinline__ void add_values(const uint32_t (&w)[4][4], uint32_t values,
                                           float (&o)[16][4]) {
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      uint32_t v[4];
      load_squares_transposed(v,
                              (values ^ static_cast<uint32_t>(32 * step)) + 16 * kRowBytes * group);
      multiply_add(o[2 * step], w[group][0], w[group][1], w[group][2], w[group][3], v[0], v[1]);
      multiply_add(o[2 * step + 1], w[group][0], w[group][1], w[group][2], w[group][3], v[2], v[3]);
    }
  }
}

/// Largest score and sum of weights so far of the rows `group` and `group` + 8 of a thread.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this thread's keys
};

/// Scores become weights in the form of left operands, [16 keys][register]; `factor` is what sums
/// of earlier blocks are worth now. In the last block `last_key` counts from this thread's first
/// key.
__device__ __forceinline__ void weigh(float (&s)[8][4], const float (&scale_log2)[2], bool last,
                                      int last_key, float last_bias, Softmax& rows,
                                      float (&factor)[2], uint32_t (&w)[4][4]) {
  float scale[2] = {scale_log2[0], scale_log2[1]};
  if (last) {
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = 8 * t + i % 2;
        float x = s[t][i] * scale[i / 2];
        if (key == last_key) x += last_bias;
        s[t][i] = key > last_key ? -INFINITY : x;
      }
    }
    scale[0] = scale[1] = 1.0F;
  }
  float top[2] = {s[0][0], s[0][2]};
#pragma unroll
  for (int t = 0; t < 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], s[t][i]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float now = fmaxf(rows.largest[r], quad_max(top[r]) * scale[r]);
    factor[r] = exp2_of(rows.largest[r] - now);  // 0 for the first block
    rows.largest[r] = now;
    rows.sum[r] *= factor[r];
  }
#pragma unroll
  for (int t = 0; t < 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[t][i] = exp2_of(s[t][i] * scale[i / 2] - rows.largest[i / 2]);
      rows.sum[i / 2] += s[t][i];
    }
    w[t / 2][t % 2 * 2] = packed(s[t][0], s[t][1]);
    w[t / 2][t % 2 * 2 + 1] = packed(s[t][2], s[t][3]);
  }
}

/// Sums of 8 values over each half of the warp, each with its like: lane l has that of value
/// l % 16 / 2.
__device__ __forceinline__ float half_warp_sums(float (&x)[8]) {
  const auto lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 4, step = 8; half >= 1; half /= 2, step /= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float mine = upper ? x[i + half] : x[i];
      const float other = upper ? x[i] : x[i + half];
      x[i] = mine + __shfl_xor_sync(0xFFFFFFFFU, other, step);
    }
  }
  return x[0] + __shfl_xor_sync(0xFFFFFFFFU, x[0], 1);
}

/// The queries of a head times the weights of the norm, in place, and their squares. A lane has 16
/// bytes of rows 2 i + lane / 16.
__device__ __forceinline__ void weight_queries(unsigned char* head, const float* norm,
                                               float (&squares)[kRows / 2]) {
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const float4 low = __ldg(reinterpret_cast<const float4*>(norm));
  const float4 high = __ldg(reinterpret_cast<const float4*>(norm) + 1);
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) {
    auto* at = reinterpret_cast<uint4*>(head + place_of(2 * i + lane / kChunks, lane % kChunks));
    uint4 x = *at;
    const auto take = [&](uint32_t& pair, float a, float b) {
      const float first = low_of(pair);
      const float second = high_of(pair);
      squares[i] = fmaf(first, first, squares[i]);
      squares[i] = fmaf(second, second, squares[i]);
      pair = packed(first * a, second * b);
    };
    take(x.x, low.x, low.y);
    take(x.y, low.z, low.w);
    take(x.z, high.x, high.y);
    take(x.w, high.z, high.w);
    *at = x;
  }
}

/// To every CTA of the cluster.
__device__ __forceinline__ void share(float* place, float value, int parts) {
  if (parts == 1) {
    *place = value;
    return;
  }
#pragma unroll 1
  for (int part = 0; part < parts; ++part) *cluster_part(place, part) = value;
}

template <bool FP8>
__global__ void __launch_bounds__(32 * kMostWarps, 2)
    text_attention_kernel(const __grid_constant__ TextAttentionArgs a, int parts, int part_heads) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int part = static_cast<int>(blockIdx.x) % parts;
  const int first_head = part * part_heads;
  const int heads = min(part_heads, a.heads - first_head);
  const int64_t dim = int64_t{a.heads} * kHeadDim;
  const int rows = kRows * warps;
  const int first_row = static_cast<int>(blockIdx.x) / parts * rows + kRows * warp;
  const auto queries = static_cast<int>(a.queries);
  const int64_t sample_row = int64_t{blockIdx.y} * queries;

  unsigned char* own = memory + warp * part_heads * kHeadBytes;  // [head][row][column]
  const uint32_t own_address = shared_address(own);
  const uint32_t ring = shared_address(memory) + warps * part_heads * kHeadBytes;
  // [part][row]: sums of squares, then largest results.
  auto* exchange =
      reinterpret_cast<float*>(memory + warps * part_heads * kHeadBytes + kSlots * kSlotBytes) +
      kRows * warp;

  const auto all_keys = static_cast<int>(a.keys);
  const int64_t distinct = a.distinct == nullptr ? all_keys : *a.distinct;
  const int chunk = lane % kChunks;
  {
    const bf16* q = static_cast<const bf16*>(a.q) + first_head * kHeadDim + 8 * chunk;
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int row = 2 * i + lane / kChunks;
      const bf16* from = q + (sample_row + min(first_row + row, queries - 1)) * dim;
      const uint32_t to = own_address + place_of(row, chunk);
      for (int h = 0; h < heads; ++h) copy_async(to + h * kHeadBytes, from + h * kHeadDim);
    }
    commit_copies();
  }
  const bf16* k =
      static_cast<const bf16*>(a.k) + blockIdx.y * a.k_batch + first_head * kHeadDim + 8 * chunk;
  const bf16* v =
      static_cast<const bf16*>(a.v) + blockIdx.y * a.v_batch + first_head * kHeadDim + 8 * chunk;
  // Rows past the last key have no weight, but a NaN there would count.
  const auto load = [&](const bf16* from, int64_t stride, int first, int count, int slot) {
    for (int row = thread / kChunks; row < count; row += 2 * warps) {
      copy_async(ring + slot * kSlotBytes + place_of(row, chunk),
                 from + min(first + row, all_keys - 1) * static_cast<int>(stride));
    }
    commit_copies();
  };
  load(k, a.k_row, 0, kKeys, 0);
  load(v, a.v_row, 0, kKeys, 1);
  const int keys = static_cast<int>(min(max(distinct, int64_t{1}), int64_t{all_keys}));
  const float last_bias = log2f(static_cast<float>(all_keys - keys + 1));
  // What comes next into the ring: keys, then values, of a block; blocks of a head; heads.
  int next_head = kKeys < keys ? 0 : 1;
  int next_first = kKeys < keys ? kKeys : 0;
  bool next_is_values = false;
  int next_slot = 2;
  const auto load_next = [&] {
    if (next_head == heads) {
      commit_copies();
      return;
    }
    const int count = keys - next_first > kKeys / 2 ? kKeys : kKeys / 2;
    load((next_is_values ? v : k) + next_head * kHeadDim, next_is_values ? a.v_row : a.k_row,
         next_first, count, next_slot);
    next_slot = next_slot == kSlots - 1 ? 0 : next_slot + 1;
    if (next_is_values) {
      next_first += kKeys;
      if (next_first >= keys) {
        next_first = 0;
        ++next_head;
      }
    }
    next_is_values = !next_is_values;
  };

  wait_for_copies<2>();
  __syncwarp();  // a row came by several lanes
  {
    float squares[kRows / 2] = {};
#pragma unroll 1
    for (int h = 0; h < heads; ++h) {
      weight_queries(own + h * kHeadBytes, a.norm_q + (first_head + h) * kHeadDim + 8 * chunk,
                     squares);
    }
    const float sum = half_warp_sums(squares);
    if (lane % 2 == 0) share(exchange + part * rows + lane % 16 + lane / 16, sum, parts);
  }
  __syncwarp();
  if (parts > 1) cluster_arrive();

  const int group = lane / 4;
  const int quarter = lane % 4;
  // Squares of left operands and of values: 16 rows of a chunk, then of the one beside it; of keys:
  // 8 rows of both.
  const uint32_t down = place_of(lane % 16, lane / 16);
  const uint32_t across = place_of(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  float scale_log2[2] = {};
  float top[2] = {};
  int slot = 0;
  // A slot's copies, of all threads, have arrived, and the slot before it may be written again.
  const auto enter_slot = [&] {
    wait_for_copies<1>();
    __syncthreads();
    load_next();
  };
  const auto leave_slot = [&] { slot = slot == kSlots - 1 ? 0 : slot + 1; };
#pragma unroll 1
  for (int h = 0; h < heads; ++h) {
    uint32_t q[8][4];
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      load_squares(q[step],
                   own_address + h * kHeadBytes + (down ^ static_cast<uint32_t>(32 * step)));
    }
    float o[16][4] = {};
    Softmax softmax;
#pragma unroll 1
    for (int first = 0; first < keys; first += kKeys) {
      const bool wide = keys - first > kKeys / 2;
      const bool last = keys - first <= kKeys;
      float s[8][4] = {};
      enter_slot();
      if (wide) {
        add_scores<4>(q, ring + slot * kSlotBytes + across, s);
      } else {
        add_scores<2>(q, ring + slot * kSlotBytes + across, s);
      }
      leave_slot();
      if (h == 0 && first == 0) {  // the norm: a factor of scores
        if (parts > 1) cluster_wait();
        float square = 0.0F;
#pragma unroll 1
        for (int p = 0; p < parts; ++p) square += exchange[p * rows + lane % kRows];
        const float inverse = 1.0F / sqrtf(square / static_cast<float>(dim) + a.eps);
        const float factor = inverse * a.scale * 1.44269504F;
        scale_log2[0] = __shfl_sync(0xFFFFFFFFU, factor, group);
        scale_log2[1] = __shfl_sync(0xFFFFFFFFU, factor, group + 8);
        // The sums have been read, so that the exchange may take the largest results.
        if (FP8 && parts > 1) cluster_arrive();
      }
      float factor[2];
      uint32_t w[4][4];
      weigh(s, scale_log2, last, keys - 1 - first - 2 * quarter, last_bias, softmax, factor, w);
      if (first > 0) {
#pragma unroll
        for (int t = 0; t < 16; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) o[t][i] *= factor[i / 2];
        }
      }
      enter_slot();
      if (wide) {
        add_values<4>(w, ring + slot * kSlotBytes + down, o);
      } else {
        add_values<2>(w, ring + slot * kSlotBytes + down, o);
      }
      leave_slot();
    }
    float over_sum[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) over_sum[r] = 1.0F / quad_sum(softmax.sum[r]);
    unsigned char* results = own + h * kHeadBytes;
#pragma unroll
    for (int t = 0; t < 16; ++t) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t word = packed(o[t][2 * r] * over_sum[r], o[t][2 * r + 1] * over_sum[r]);
        if constexpr (FP8) {
          top[r] = fmaxf(top[r], fmaxf(fabsf(low_of(word)), fabsf(high_of(word))));
        }
        *reinterpret_cast<uint32_t*>(results + place_of(group + 8 * r, t) + 4 * quarter) = word;
      }
    }
    if constexpr (!FP8) {
      __syncwarp();
      bf16* out = static_cast<bf16*>(a.out) + (first_head + h) * kHeadDim + 8 * chunk;
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        const int row = 2 * i + lane / kChunks;
        if (first_row + row < queries) {
          *reinterpret_cast<uint4*>(out + (sample_row + first_row + row) * dim) =
              *reinterpret_cast<const uint4*>(results + place_of(row, chunk));
        }
      }
    }
  }
  if constexpr (FP8) {
    const float of_rows[2] = {quad_max(top[0]), quad_max(top[1])};
    if (parts > 1) cluster_wait();  // for the sums to have been read
    if (quarter == 0) {
      share(exchange + part * rows + group, of_rows[0], parts);
      share(exchange + part * rows + group + 8, of_rows[1], parts);
    }
    __syncwarp();
    if (parts > 1) {
      cluster_arrive();
      cluster_wait();
    }
    float largest = 0.0F;
#pragma unroll 1
    for (int p = 0; p < parts; ++p) {
      largest = fmaxf(largest, exchange[p * rows + lane % kRows]);
    }
    const Fp8Scale scale = fp8_scale(largest);
    if (part == 0 && lane < kRows && first_row + lane < queries) {
      a.out_scales[sample_row + first_row + lane] = scale.scale;
    }
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int row = 2 * i + lane / kChunks;
      const float factor = __shfl_sync(0xFFFFFFFFU, scale.factor, row);
      if (first_row + row >= queries) continue;
      auto* out = static_cast<uint8_t*>(a.out) + (sample_row + first_row + row) * dim +
                  first_head * kHeadDim + 8 * chunk;
      for (int h = 0; h < heads; ++h) {
        const uint4 words =
            *reinterpret_cast<const uint4*>(own + h * kHeadBytes + place_of(row, chunk));
        const float x[8] = {low_of(words.x), high_of(words.x), low_of(words.y), high_of(words.y),
                            low_of(words.z), high_of(words.z), low_of(words.w), high_of(words.w)};
        *reinterpret_cast<Pack<uint8_t, 8>*>(out + h * kHeadDim) = to_fp8(x, factor);
      }
    }
  }
}

/// What of a device decides the shape; its kernels are made ready when it is first asked for.
struct Device {
  std::once_flag once;
  int most_bytes = 0;  // of shared memory, for a CTA
  int all_bytes = 0;   // of a multiprocessor
  int reserved = 0;    // of each CTA
  bool clusters = false;
};
const Device& device() {
  static std::array<Device, 64> devices;
  int index = 0;
  UF_CUDA_TRY(cudaGetDevice(&index));
  require(index < static_cast<int>(devices.size()), "text_attention: a device past the 64th");
  Device& found = devices[static_cast<size_t>(index)];
  std::call_once(found.once, [&] {
    const auto get = [&](cudaDeviceAttr which) {
      int value = 0;
      UF_CUDA_TRY(cudaDeviceGetAttribute(&value, which, index));
      return value;
    };
    found.most_bytes = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    found.all_bytes = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    found.reserved = get(cudaDevAttrReservedSharedMemoryPerBlock);
    found.clusters = get(cudaDevAttrComputeCapabilityMajor) >= 9;
    for (auto* kernel : {text_attention_kernel<false>, text_attention_kernel<true>}) {
      UF_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       found.most_bytes));
      UF_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
    }
  });
  return found;
}

int heads_of_part(int heads, int parts) { return static_cast<int>(ceil_div(heads, parts)); }
int shared_bytes(int heads, const TextShape& shape) {
  return shape.warps * heads_of_part(heads, shape.parts) * kHeadBytes + kSlots * kSlotBytes +
         shape.parts * shape.warps * kRows * static_cast<int>(sizeof(float));
}

}  // namespace

TextShape text_shape(const TextAttentionArgs& a) {
  const Device& on = device();
  TextShape shape;
  shape.parts = 1;
  if (on.clusters) {  // as few as leave none without heads
    const int parts = std::min(static_cast<int>(ceil_div(a.heads, kPartHeads)), kMostParts);
    shape.parts = static_cast<int>(ceil_div(a.heads, heads_of_part(a.heads, parts)));
  }
  // Two CTAs to a multiprocessor where that leaves each a warp.
  for (const int bytes : {on.all_bytes / 2 - on.reserved, on.most_bytes}) {
    for (shape.warps = kMostWarps; shape.warps > 0; --shape.warps) {
      if (shared_bytes(a.heads, shape) <= std::min(bytes, on.most_bytes)) return shape;
    }
  }
  return shape;
}

bool text_attention_takes(const TextAttentionArgs& a) {
  return a.heads >= 1 && a.heads <= 1024 && text_shape(a).warps > 0 && a.keys >= 1 &&
         a.keys < 1 << 20 && a.keys * std::max(a.k_row, a.v_row) < int64_t{1} << 31 &&
         a.queries * a.batch < int64_t{1} << 31 && a.batch < 1 << 16 && a.k_row % 8 == 0 &&
         a.v_row % 8 == 0 && a.k_batch % 8 == 0 && a.v_batch % 8 == 0 && packable(a.q) &&
         packable(a.k) && packable(a.v) && packable(a.out) && packable(a.norm_q);
}

void text_attention(const TextAttentionArgs& a, const TextShape& shape, cudaStream_t stream) {
  if (a.batch * a.queries == 0) return;
  const int part_heads = heads_of_part(a.heads, shape.parts);
  require(text_attention_takes(a), "text_attention: heads of 128 and rows of 16 bytes");
  require(shape.parts >= 1 && shape.parts <= (device().clusters ? kMostParts : 1) &&
              shape.warps >= 1 && shape.warps <= kMostWarps &&
              (shape.parts - 1) * part_heads < a.heads &&
              shared_bytes(a.heads, shape) <= device().most_bytes,
          "text_attention: a shape that the device has not");
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(ceil_div(a.queries, int64_t{kRows} * shape.warps) * static_cast<unsigned>(shape.parts),
           static_cast<unsigned>(a.batch));
  config.blockDim = dim3(static_cast<unsigned>(32 * shape.warps));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes(a.heads, shape));
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.parts), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = shape.parts > 1 ? 1 : 0;
  auto* kernel =
      a.out_scales != nullptr ? text_attention_kernel<true> : text_attention_kernel<false>;
  UF_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, a, shape.parts, part_heads));
}

void text_attention(const TextAttentionArgs& a, cudaStream_t stream) {
  text_attention(a, text_shape(a), stream);
}

}  // namespace ultraflash::cuda::kernels
