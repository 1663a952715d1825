// Attention to a text of at most 128 distinct rows, with the norm before it and quantisation behind
// it, as text_attention.cu has it for any number. mma.sync in bf16, sums in f32.
//
// One CTA of 15 warps to a multiprocessor, four of them a cluster that shares 12 heads. Keys and
// values of a CTA's three heads fill 192 KB of shared memory once; then each warp takes 16 rows of
// one head after the other without a barrier of the CTA. Its queries come from memory into the
// registers that the matrix instructions want, 16 bytes a thread at a time: the next ones are on
// their way from the end of the first product on. Of a row the warps of all heads exchange the sum
// of squares, and in e4m3 the largest result, by stores into each other's shared memory that count
// on a transaction barrier. All scores of a row are there at once, so nothing is rescaled.
//
// Columns lie in shared memory so that a thread's registers are 16 bytes of q and of the results:
// word 4 c + t of 64 bytes is at 4 t + c. Keys are multiplied by the weights of the norm there; the
// root mean square of a query is a factor of its scores.
//
// Bound by bytes, q once and the results once: 29 MB at 4680 rows, 230 MB at 37440. Shared memory
// (32 KB for 64 keys, 16 rows and a head) is busy for half that time with 64 keys, for all of it
// with 128.
#include <algorithm>
#include <array>
#include <mutex>
#include <type_traits>

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/quantise.cuh"
#include "ops/cuda/sm90/ptx.cuh"
#include "ops/cuda/text_attention.cuh"
#include "ops/cuda/text_few_sm90.h"

namespace ultraflash::cuda::sm90 {
namespace {

using kernels::TextAttentionArgs;
using namespace kernels;  // of text_attention.cuh

constexpr int kPartHeads = 3;  // of a CTA
constexpr int kGroups = 5;     // of 16 rows, each with a warp a head
constexpr int kThreads = 32 * kPartHeads * kGroups;
constexpr int kMostParts = 8;                                  // a cluster that every device has
constexpr int kSideBytes = kPartHeads * kFewKeys * kRowBytes;  // of keys, and of values
constexpr int kSlots = 4 * kGroups;  // of exchanges: sums and largest results, two rounds of each

/// Two neighbouring floats in the shared memory of CTA `part`, 8 bytes of what its barrier expects.
__device__ __forceinline__ void send(uint32_t place, float x, float y, uint32_t barrier, int part) {
  asm volatile(
      "{\n"
      ".reg .b32 to, count;\n"
      "mapa.shared::cluster.u32 to, %0, %4;\n"
      "mapa.shared::cluster.u32 count, %3, %4;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [to], {%1, %2}, [count];\n"
      "}\n" ::"r"(place),
      "f"(x), "f"(y), "r"(barrier), "r"(part)
      : "memory");
}

/// Where it stands, so that it is on its way while what follows runs.
__device__ __forceinline__ uint4 load_quad(const bf16* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}

/// Eight rows of a head, 64 bytes a thread, into shared memory.
template <bool WEIGHTED>
__device__ __forceinline__ void place_columns(unsigned char* head, int row, int piece,
                                              uint4 (&x)[4], const float* norm) {
  if constexpr (WEIGHTED) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float4 low = __ldg(reinterpret_cast<const float4*>(norm) + 2 * c);
      const float4 high = __ldg(reinterpret_cast<const float4*>(norm) + 2 * c + 1);
      x[c].x = packed(low_of(x[c].x) * low.x, high_of(x[c].x) * low.y);
      x[c].y = packed(low_of(x[c].y) * low.z, high_of(x[c].y) * low.w);
      x[c].z = packed(low_of(x[c].z) * high.x, high_of(x[c].z) * high.y);
      x[c].w = packed(low_of(x[c].w) * high.z, high_of(x[c].w) * high.w);
    }
  }
  const auto put = [&](int t, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    *reinterpret_cast<uint4*>(head + place_of(row, 4 * piece + t)) = make_uint4(a, b, c, d);
  };
  put(0, x[0].x, x[1].x, x[2].x, x[3].x);
  put(1, x[0].y, x[1].y, x[2].y, x[3].y);
  put(2, x[0].z, x[1].z, x[2].z, x[3].z);
  put(3, x[0].w, x[1].w, x[2].w, x[3].w);
}

/// Sums of squares of rows `group` and `group` + 8: the diagonal of q q^T.
__device__ __forceinline__ float2 squares_of(const uint32_t (&q)[8][4], int group) {
  float low[4] = {};
  float high[4] = {};
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    multiply_add(low, q[step][0], q[step][1], q[step][2], q[step][3], q[step][0], q[step][2]);
    multiply_add(high, q[step][0], q[step][1], q[step][2], q[step][3], q[step][1], q[step][3]);
  }
  const bool odd = group % 2 != 0;
  const int owner = 4 * group + group / 2;
  return make_float2(__shfl_sync(0xFFFFFFFFU, odd ? low[1] : low[0], owner),
                     __shfl_sync(0xFFFFFFFFU, odd ? high[3] : high[2], owner));
}

/// Scores of 16 STEPS keys, all there are, become weights in the form of left operands.
template <int STEPS>
__device__ __forceinline__ void weigh_once(float (&s)[2 * STEPS][4], const float (&scale_log2)[2],
                                           int keys, int quarter, float last_bias,
                                           float (&over_sum)[2], uint32_t (&w)[STEPS][4]) {
  const int last_key = keys - 1 - 2 * quarter;
  const float bias[2] = {last_bias / scale_log2[0], last_bias / scale_log2[1]};
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int t = 0; t < 2 * STEPS; ++t) {
    if (8 * t + 7 >= keys - 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = 8 * t + i % 2;
        if (key == last_key) s[t][i] += bias[i / 2];
        if (key > last_key) s[t][i] = -INFINITY;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], s[t][i]);
  }
  float sum[2] = {};
  const float largest[2] = {quad_max(top[0]) * scale_log2[0], quad_max(top[1]) * scale_log2[1]};
#pragma unroll
  for (int t = 0; t < 2 * STEPS; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[t][i] = exp2_of(fmaf(s[t][i], scale_log2[i / 2], -largest[i / 2]));
      sum[i / 2] += s[t][i];
    }
    w[t / 2][t % 2 * 2] = packed(s[t][0], s[t][1]);
    w[t / 2][t % 2 * 2 + 1] = packed(s[t][2], s[t][3]);
  }
  over_sum[0] = 1.0F / quad_sum(sum[0]);
  over_sum[1] = 1.0F / quad_sum(sum[1]);
}

/// Weights times 32 columns of the values of 16 STEPS keys.
template <int STEPS>
__device__ __forceinline__ void multiply_piece(const uint32_t (&w)[STEPS][4], uint32_t values,
                                               int piece, float (&o)[4][4]) {
#pragma unroll
  for (int group = 0; group < STEPS; ++group) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t v[4];
      load_squares_transposed(
          v, (values ^ static_cast<uint32_t>(32 * (2 * piece + half))) + 16 * kRowBytes * group);
      multiply_add(o[2 * half], w[group][0], w[group][1], w[group][2], w[group][3], v[0], v[1]);
      multiply_add(o[2 * half + 1], w[group][0], w[group][1], w[group][2], w[group][3], v[2], v[3]);
    }
  }
}

template <bool FP8>
__global__ void __launch_bounds__(kThreads, 1)
    text_few_kernel(const __grid_constant__ TextAttentionArgs a, int parts, int part_heads) {
  const auto all_keys = static_cast<int>(a.keys);
  const int64_t distinct = a.distinct == nullptr ? all_keys : *a.distinct;
  const int keys = static_cast<int>(min(max(distinct, int64_t{1}), int64_t{all_keys}));
  if (keys > kFewKeys) return;

  // Keys, values [head][key][column], exchanges [slot][head][8 rows][row, row + 8], barriers.
  extern __shared__ __align__(1024) unsigned char few_memory[];
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int h = warp % kPartHeads;
  const int row_group = warp / kPartHeads;
  const int group = lane / 4;
  const int quarter = lane % 4;
  const int part = static_cast<int>(blockIdx.x) % parts;
  const int clusters = static_cast<int>(gridDim.x) / parts;
  const int first_head = part * part_heads;
  const int heads = min(part_heads, a.heads - first_head);
  const int head = first_head + h;
  const auto dim = static_cast<int64_t>(a.heads) * kHeadDim;
  const auto queries = static_cast<int>(a.queries);
  const int64_t sample_row = int64_t{blockIdx.y} * queries;
  const int tiles = (queries + kRows - 1) / kRows;
  const auto exchange = reinterpret_cast<float*>(few_memory + 2 * kSideBytes);
  const int slot_floats = a.heads * kRows;
  const uint32_t barriers = shared_address(exchange + kSlots * slot_floats);

  // Register j of step i: rows group, group + 8 for j = 0, 1, then the next columns of both.
  uint32_t q[8][4];
  const auto load_queries = [&](int tile) {
    const auto* from = static_cast<const bf16*>(a.q) + head * kHeadDim + 8 * quarter;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(kRows * tile + group + 8 * r, queries - 1);
      const bf16* line = from + (sample_row + row) * dim;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 x = load_quad(line + 32 * i);
        q[2 * i][r] = x.x;
        q[2 * i][2 + r] = x.y;
        q[2 * i + 1][r] = x.z;
        q[2 * i + 1][2 + r] = x.w;
      }
    }
  };
  int tile = row_group * clusters + static_cast<int>(blockIdx.x) / parts;
  const bool works = h < heads;
  if (works && tile < tiles) load_queries(tile);

  if (thread == 0) {
    for (int i = 0; i < kSlots; ++i) barrier_init(barriers + 8 * i, 1);
    fence_barrier_init();
  }
  const int needed = (keys + 31) / 32 * 32;
#pragma unroll 1
  for (int item = warp; item < heads * (kFewKeys / 8); item += kThreads / 32) {
    const int of = item / (kFewKeys / 8);
    const int row = item % (kFewKeys / 8) * 8 + lane % 8;
    if (row >= needed) continue;
    const int piece = lane / 8;
    const int column = (first_head + of) * kHeadDim + 32 * piece;
    const int64_t key = min(row, keys - 1);  // without weight past the last, but no NaN
    const auto* k = static_cast<const bf16*>(a.k) + blockIdx.y * a.k_batch + key * a.k_row + column;
    const auto* v = static_cast<const bf16*>(a.v) + blockIdx.y * a.v_batch + key * a.v_row + column;
    uint4 of_k[4];
    uint4 of_v[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) of_k[c] = __ldg(reinterpret_cast<const uint4*>(k) + c);
#pragma unroll
    for (int c = 0; c < 4; ++c) of_v[c] = __ldg(reinterpret_cast<const uint4*>(v) + c);
    unsigned char* at = few_memory + of * kFewKeys * kRowBytes;
    place_columns<true>(at, row, piece, of_k, a.norm_q + column);
    place_columns<false>(at + kSideBytes, row, piece, of_v, nullptr);
  }
  cluster_arrive();
  cluster_wait();

  // Squares of values: 16 rows of a chunk, then of the one beside it; of keys: 8 rows of both.
  const uint32_t own = shared_address(few_memory) + h * kFewKeys * kRowBytes;
  const uint32_t of_keys = own + place_of(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const uint32_t of_values = own + kSideBytes + place_of(lane % 16, lane / 16);
  const float last_bias = log2f(static_cast<float>(all_keys - keys + 1));

  int round = 0;
  const auto slot_of = [&](int kind) { return (row_group * 2 + kind) * 2 + round % 2; };
  // Two rounds of slots: a warp sends in round i + 2 what overwrites round i only after it has
  // what all warps sent in round i + 1, which they did after they had read that of round i.
  const auto tell = [&](int kind, float low, float high) {
    const int slot = slot_of(kind);
    const uint32_t barrier = barriers + 8 * slot;
    if (h == 0 && lane == 0) {
      barrier_arrive_expect(barrier, static_cast<uint32_t>(slot_floats) * sizeof(float));
    }
    const uint32_t place = shared_address(exchange + slot * slot_floats + head * kRows + 2 * group);
    for (int to = quarter; to < parts; to += 4) send(place, low, high, barrier, to);
  };
  const auto hear = [&](int kind, auto combine) {
    const int slot = slot_of(kind);
    barrier_wait(barriers + 8 * slot, round / 2 % 2);
    float2 all = make_float2(0.0F, 0.0F);
#pragma unroll 1
    for (int from = quarter; from < a.heads; from += 4) {
      const float2 x = *reinterpret_cast<const float2*>(exchange + slot * slot_floats +
                                                        from * kRows + 2 * group);
      all.x = combine(all.x, x.x);
      all.y = combine(all.y, x.y);
    }
    return all;
  };

  const auto attend = [&](auto thirties) {
    constexpr int kSteps = 2 * thirties.value;  // of 16 keys
    for (; works && tile < tiles; ++round) {
      const int first_row = kRows * tile + group;
      tile += kGroups * clusters;
      const float2 squares = squares_of(q, group);
      tell(0, squares.x, squares.y);
      float s[2 * kSteps][4] = {};
      add_scores<kSteps>(q, of_keys, s);
      // The next queries, as soon as there are registers for them.
      if (kSteps <= 4 && tile < tiles) load_queries(tile);
      const float2 square = hear(0, [](float x, float y) { return x + y; });
      const float of_dim = 1.0F / static_cast<float>(dim);
      const float factor = a.scale * 1.44269504F;
      const float scale_log2[2] = {rsqrtf(quad_sum(square.x) * of_dim + a.eps) * factor,
                                   rsqrtf(quad_sum(square.y) * of_dim + a.eps) * factor};
      float over_sum[2];
      uint32_t w[kSteps][4];
      weigh_once<kSteps>(s, scale_log2, keys, quarter, last_bias, over_sum, w);
      if (kSteps > 4 && tile < tiles) load_queries(tile);

      [[maybe_unused]] uint4 kept[2][4];  // e4m3: until the scale of the row is known
      [[maybe_unused]] float top[2] = {};
      const int64_t row0 = sample_row + first_row;
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) {
        float o[4][4] = {};
        multiply_piece<kSteps>(w, of_values, piece, o);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          uint32_t words[4];
#pragma unroll
          for (int t = 0; t < 4; ++t) {
            words[t] = packed(o[t][2 * r] * over_sum[r], o[t][2 * r + 1] * over_sum[r]);
          }
          const uint4 result = make_uint4(words[0], words[1], words[2], words[3]);
          if constexpr (FP8) {
#pragma unroll
            for (const uint32_t word : words) {
              top[r] = fmaxf(top[r], fmaxf(fabsf(low_of(word)), fabsf(high_of(word))));
            }
            kept[r][piece] = result;
          } else if (first_row + 8 * r < queries) {
            *reinterpret_cast<uint4*>(static_cast<bf16*>(a.out) + (row0 + 8 * r) * dim +
                                      head * kHeadDim + 32 * piece + 8 * quarter) = result;
          }
        }
      }
      if constexpr (FP8) {
        tell(1, quad_max(top[0]), quad_max(top[1]));
        const float2 largest = hear(1, [](float x, float y) { return fmaxf(x, y); });
        const float of_rows[2] = {quad_max(largest.x), quad_max(largest.y)};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (first_row + 8 * r >= queries) continue;
          const Fp8Scale scale = fp8_scale(of_rows[r]);
          if (head == 0 && quarter == 0) a.out_scales[row0 + 8 * r] = scale.scale;
          auto* out =
              static_cast<uint8_t*>(a.out) + (row0 + 8 * r) * dim + head * kHeadDim + 8 * quarter;
#pragma unroll
          for (int piece = 0; piece < 4; ++piece) {
            const uint4& x = kept[r][piece];
            const float values[8] = {low_of(x.x), high_of(x.x), low_of(x.y), high_of(x.y),
                                     low_of(x.z), high_of(x.z), low_of(x.w), high_of(x.w)};
            *reinterpret_cast<Pack<uint8_t, 8>*>(out + 32 * piece) = to_fp8(values, scale.factor);
          }
        }
      }
    }
  };
  if (needed <= 32) {
    attend(std::integral_constant<int, 1>());
  } else if (needed <= 64) {
    attend(std::integral_constant<int, 2>());
  } else if (needed <= 96) {
    attend(std::integral_constant<int, 3>());
  } else {
    attend(std::integral_constant<int, 4>());
  }
  // Nobody leaves before all that is sent to it has come.
  cluster_arrive();
  cluster_wait();
}

int heads_of_part(int heads, int parts) { return static_cast<int>(ceil_div(heads, parts)); }
int parts_of(int heads) {
  const int parts = static_cast<int>(ceil_div(heads, kPartHeads));
  return static_cast<int>(ceil_div(heads, heads_of_part(heads, parts)));  // none without heads
}
int shared_bytes(int heads) {
  return 2 * kSideBytes + kSlots * (heads * kRows * static_cast<int>(sizeof(float)) + 8);
}

cudaLaunchConfig_t config_of(int heads, unsigned clusters, unsigned batch,
                             cudaLaunchAttribute& cluster) {
  const auto parts = static_cast<unsigned>(parts_of(heads));
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {parts, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(clusters * parts, batch);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes(heads));
  config.attrs = &cluster;
  config.numAttrs = 1;
  return config;
}

/// Clusters that run at once, by the number of their CTAs; 0: not Hopper.
struct Device {
  std::once_flag once;
  std::array<int, kMostParts + 1> clusters{};
};
const Device& device() {
  static std::array<Device, 64> devices;
  int index = 0;
  UF_CUDA_TRY(cudaGetDevice(&index));
  require(index < static_cast<int>(devices.size()), "text_few: a device past the 64th");
  Device& found = devices[static_cast<size_t>(index)];
  std::call_once(found.once, [&] {
    int major = 0;
    UF_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    if (major != 9) return;
    const int most_heads = kMostParts * kPartHeads;
    for (auto* kernel : {text_few_kernel<false>, text_few_kernel<true>}) {
      UF_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       shared_bytes(most_heads)));
    }
    for (int parts = 1; parts <= kMostParts; ++parts) {
      cudaLaunchAttribute cluster{};
      const cudaLaunchConfig_t config = config_of(parts * kPartHeads, 1, 1, cluster);
      UF_CUDA_TRY(cudaOccupancyMaxActiveClusters(&found.clusters[static_cast<size_t>(parts)],
                                                 text_few_kernel<true>, &config));
    }
  });
  return found;
}

int most_clusters(int heads) {
  return heads < 1 || heads > kMostParts * kPartHeads
             ? 0
             : device().clusters[static_cast<size_t>(parts_of(heads))];
}

}  // namespace

bool text_few_takes(const TextAttentionArgs& a) { return most_clusters(a.heads) > 0; }

void text_few(const TextAttentionArgs& a, cudaStream_t stream) {
  if (a.batch * a.queries == 0) return;
  const int most = most_clusters(a.heads);
  require(most > 0, "text_few: a device or heads that it does not take");
  const int64_t needed = ceil_div(a.queries, int64_t{kRows} * kGroups);
  const int64_t share = std::max<int64_t>(most / a.batch, 1);
  cudaLaunchAttribute cluster{};
  cudaLaunchConfig_t config = config_of(a.heads, static_cast<unsigned>(std::min(needed, share)),
                                        static_cast<unsigned>(a.batch), cluster);
  config.stream = stream;
  auto* kernel = a.out_scales != nullptr ? text_few_kernel<true> : text_few_kernel<false>;
  const int parts = parts_of(a.heads);
  UF_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, a, parts, heads_of_part(a.heads, parts)));
}

}  // namespace ultraflash::cuda::sm90
