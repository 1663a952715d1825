// Block-sparse attention without tensor cores: softmax(q k^T / sqrt(head_dim)) v in true f32, from
// f32 or bf16 tensors. The exact mode, and what GPUs other than Hopper run.
//
// A CTA of 4 warps takes 32 queries of a window block and one head, 8 queries per warp, and goes
// through the listed blocks in runs of 32 keys. Scores: a lane per key. Output: a lane per
// head_dim / 32 columns. Bound by shared memory, about a third of the f32 rate.
#include <cuda_bf16.h>

#include <cmath>

#include "ops/cuda/sparse/plain_attention.h"

namespace ultraflash::cuda {
namespace {

constexpr int kQueries = 32;  // of a CTA
constexpr int kPerWarp = 8;
constexpr int kKeys = 32;  // of a run
constexpr int kThreads = 128;

struct PlainParams {
  const void *q, *k, *v;
  void* out;
  const int32_t* indices;
  const int32_t* counts;
  const int32_t* order;
  const int64_t* first_slot;
  float scale_log2;
  int heads, head_dim, dim, strips;
  int query_blocks, key_blocks, spatial_blocks, block_columns, capacity_blocks;
  int frames, height, width;
  int window_frames, window_height, window_width, window_tokens;
};

__device__ __forceinline__ float load(const float* from) { return *from; }
__device__ __forceinline__ float load(const __nv_bfloat16* from) { return __bfloat162float(*from); }
__device__ __forceinline__ void store(float* to, float x) { *to = x; }
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16(x); }

/// HEAD_DIM: 64 or 128, the head size rounded up; what is above it counts as zeros.
template <typename T, int HEAD_DIM>
__global__ void __launch_bounds__(kThreads)
    plain_attention_kernel(const __grid_constant__ PlainParams p) {
  constexpr int kPitch = HEAD_DIM + 4;  // keeps the rows of the lanes in different banks
  constexpr int kColumns = HEAD_DIM / 32;
  extern __shared__ float4 plain_memory[];
  auto* q_tile = reinterpret_cast<float*>(plain_memory);  // [kQueries][kPitch]
  float* k_tile = q_tile + kQueries * kPitch;             // [kKeys][kPitch]
  float* v_tile = k_tile + kKeys * kPitch;                // [kKeys][kPitch]
  float* weights = v_tile + kKeys * kPitch;               // [kQueries][kKeys]
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int first_row = thread / 32 * kPerWarp;
  const int tile = p.order[blockIdx.x / p.strips];
  const int strip = static_cast<int>(blockIdx.x % p.strips) * kQueries;
  const int block = tile % p.query_blocks;
  const int head = tile / p.query_blocks % p.heads;
  const int sample = tile / (p.query_blocks * p.heads);
  const int count = p.counts[tile];
  const int32_t* list = p.indices + static_cast<int64_t>(tile) * p.key_blocks;
  const auto first_slot = static_cast<int>(*p.first_slot);
  const auto fill = [&](float* to, const T* from, int rows, int limit) {
    for (int i = thread; i < rows * HEAD_DIM; i += kThreads) {
      const int row = i / HEAD_DIM;
      const int d = i % HEAD_DIM;
      to[row * kPitch + d] =
          row < limit && d < p.head_dim ? load(from + static_cast<int64_t>(row) * p.dim + d) : 0.0F;
    }
  };
  const int64_t query =
      (static_cast<int64_t>(sample) * p.query_blocks + block) * p.window_tokens + strip;
  fill(q_tile, static_cast<const T*>(p.q) + query * p.dim + head * p.head_dim, kQueries,
       p.window_tokens - strip);

  float maximum[kPerWarp];
  float sum[kPerWarp];
  float out[kPerWarp][kColumns];
#pragma unroll
  for (int r = 0; r < kPerWarp; ++r) {
    maximum[r] = -INFINITY;
    sum[r] = 0.0F;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) out[r][c] = 0.0F;
  }
  for (int i = 0; i < count; ++i) {
    const int key = list[i];
    int slot = first_slot + key / p.spatial_blocks;
    if (slot >= p.capacity_blocks) slot -= p.capacity_blocks;
    const int64_t row =
        ((static_cast<int64_t>(sample) * p.capacity_blocks + slot) * p.spatial_blocks +
         key % p.spatial_blocks) *
        p.window_tokens;
    for (int start = 0; start < p.window_tokens; start += kKeys) {
      const int64_t at = (row + start) * p.dim + head * p.head_dim;
      const int keys = min(kKeys, p.window_tokens - start);
      __syncthreads();  // the run before has been read
      fill(k_tile, static_cast<const T*>(p.k) + at, kKeys, keys);
      fill(v_tile, static_cast<const T*>(p.v) + at, kKeys, keys);
      __syncthreads();
      float s[kPerWarp] = {};
#pragma unroll 4
      for (int d = 0; d < HEAD_DIM; d += 4) {
        const float4 k = *reinterpret_cast<const float4*>(k_tile + lane * kPitch + d);
#pragma unroll
        for (int r = 0; r < kPerWarp; ++r) {
          const float4 q = *reinterpret_cast<const float4*>(q_tile + (first_row + r) * kPitch + d);
          s[r] = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, fmaf(q.w, k.w, s[r]))));
        }
      }
#pragma unroll
      for (int r = 0; r < kPerWarp; ++r) {
        const float score = lane < keys ? s[r] * p.scale_log2 : -INFINITY;
        float top = score;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
          top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, step));
        }
        top = fmaxf(top, maximum[r]);
        const float factor = exp2f(maximum[r] - top);
        maximum[r] = top;
        const float weight = exp2f(score - top);
        sum[r] = fmaf(sum[r], factor, weight);  // of this lane's keys
        weights[(first_row + r) * kKeys + lane] = weight;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) out[r][c] *= factor;
      }
      __syncwarp();
      for (int j = 0; j < kKeys; j += 4) {
        float value[4][kColumns];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            value[n][c] = v_tile[(j + n) * kPitch + lane + 32 * c];
          }
        }
#pragma unroll
        for (int r = 0; r < kPerWarp; ++r) {
          const float4 w = *reinterpret_cast<const float4*>(weights + (first_row + r) * kKeys + j);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            out[r][c] = fmaf(
                w.x, value[0][c],
                fmaf(w.y, value[1][c], fmaf(w.z, value[2][c], fmaf(w.w, value[3][c], out[r][c]))));
          }
        }
      }
      __syncwarp();
    }
  }
  const int in_frame = p.window_height * p.window_width;
#pragma unroll
  for (int r = 0; r < kPerWarp; ++r) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      sum[r] += __shfl_xor_sync(0xFFFFFFFFU, sum[r], step);
    }
    const float inverse = count > 0 ? 1.0F / sum[r] : 0.0F;
    const int i = strip + first_row + r;
    const int frame = block / p.spatial_blocks * p.window_frames + i / in_frame;
    const int space = block % p.spatial_blocks;
    const int y = space / p.block_columns * p.window_height + i % in_frame / p.window_width;
    const int x = space % p.block_columns * p.window_width + i % p.window_width;
    if (i >= p.window_tokens || frame >= p.frames || y >= p.height || x >= p.width) continue;
    const int64_t token =
        ((static_cast<int64_t>(sample) * p.frames + frame) * p.height + y) * p.width + x;
    T* line = static_cast<T*>(p.out) + token * p.dim + head * p.head_dim;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (lane + 32 * c < p.head_dim) store(line + lane + 32 * c, out[r][c] * inverse);
    }
  }
}

template <typename T, int HEAD_DIM>
cudaError_t launch(const PlainParams& params, int64_t ctas, cudaStream_t stream) {
  auto* kernel = plain_attention_kernel<T, HEAD_DIM>;
  constexpr int kBytes = ((kQueries + 2 * kKeys) * (HEAD_DIM + 4) + kQueries * kKeys) * 4;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(ctas), kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch(const PlainParams& params, int64_t ctas, cudaStream_t stream) {
  return params.head_dim <= 64 ? launch<T, 64>(params, ctas, stream)
                               : launch<T, 128>(params, ctas, stream);
}

}  // namespace

cudaError_t launch_plain_attention(const SparseShape& shape, const BlockSparseArgs& args,
                                   cudaStream_t stream) {
  const int64_t tiles = shape.batch * shape.heads * shape.query_blocks();
  const int64_t strips = (shape.window_tokens() + kQueries - 1) / kQueries;
  if (shape.head_dim > 128 || tiles * strips > 0x7FFFFFFF) return cudaErrorNotSupported;
  if (tiles == 0) return cudaSuccess;
  PlainParams p{};
  p.q = args.q;
  p.k = args.k;
  p.v = args.v;
  p.out = args.out;
  p.indices = args.lists.indices;
  p.counts = args.lists.counts;
  p.order = args.lists.order;
  p.first_slot = &args.place->first_slot;
  p.scale_log2 =
      static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(shape.head_dim)));
  p.heads = static_cast<int>(shape.heads);
  p.head_dim = static_cast<int>(shape.head_dim);
  p.dim = static_cast<int>(shape.dim());
  p.strips = static_cast<int>(strips);
  p.query_blocks = static_cast<int>(shape.query_blocks());
  p.key_blocks = static_cast<int>(shape.key_blocks());
  p.spatial_blocks = static_cast<int>(shape.spatial_blocks());
  p.block_columns = static_cast<int>(shape.block_columns());
  p.capacity_blocks = static_cast<int>(shape.capacity_blocks);
  p.frames = static_cast<int>(shape.frames);
  p.height = static_cast<int>(shape.height);
  p.width = static_cast<int>(shape.width);
  p.window_frames = static_cast<int>(shape.window_frames);
  p.window_height = static_cast<int>(shape.window_height);
  p.window_width = static_cast<int>(shape.window_width);
  p.window_tokens = static_cast<int>(shape.window_tokens());
  return shape.type == SparseType::kBF16 ? launch<__nv_bfloat16>(p, tiles * strips, stream)
                                         : launch<float>(p, tiles * strips, stream);
}

}  // namespace ultraflash::cuda
