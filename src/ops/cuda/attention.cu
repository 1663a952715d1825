// Softmax attention in plain f32 arithmetic: the exact mode, and shapes that cuDNN refuses.
//
// A CTA of 256 threads makes 64 queries of one head; keys come 64 at a time, K transposed and then
// V through the same shared memory; each thread keeps 4 x 4 scores, and 4 rows of the result by D /
// 16 columns. Softmax is running: sums are rescaled when the maximum of a row grows. 87 KB of
// shared memory at D = 128; bound by f32 arithmetic.
#include "ops/cuda/device.cuh"

namespace ultraflash::cuda::kernels {
namespace {

constexpr int kTile = 64;
constexpr int kStride = kTile + 4;  // floats; keeps float4 reads aligned and spreads the banks

__device__ int64_t keys_of(const AttentionArgs& a, int64_t sample) {
  int64_t keys = a.keys;
  if (a.place != nullptr) {
    keys = static_cast<const PlaceNumbers*>(a.place)->visible_frames * a.tokens_per_frame;
  }
  if (a.key_lengths != nullptr) {
    const int64_t length = a.key_lengths[sample];
    keys = length < 0 ? 0 : length < keys ? length : keys;
  }
  return keys;
}

// What a CTA reads and writes, dense.
struct Dense {
  AttentionArgs a;
  int64_t sample, head, first, keys;
  __device__ Dense(const AttentionArgs& args) : a(args) {
    sample = blockIdx.z;
    head = blockIdx.y;
    first = int64_t{blockIdx.x} * kTile;
    keys = keys_of(a, sample);
  }
  __device__ int queries() const {
    const int64_t left = a.queries - first;
    return static_cast<int>(left < kTile ? left : kTile);
  }
  __device__ int64_t q_at(int i) const {
    return sample * a.q_batch + (first + i) * a.q_row + head * a.head_dim;
  }
  __device__ int64_t tiles() const { return (keys + kTile - 1) / kTile; }
  __device__ void tile(int64_t t, int64_t& k_at, int64_t& v_at, int& count) const {
    k_at = sample * a.k_batch + t * kTile * a.k_row + head * a.head_dim;
    v_at = sample * a.v_batch + t * kTile * a.v_row + head * a.head_dim;
    const int64_t left = keys - t * kTile;
    count = static_cast<int>(left < kTile ? left : kTile);
  }
  __device__ int64_t k_row() const { return a.k_row; }
  __device__ int64_t v_row() const { return a.v_row; }
  __device__ float bias(int row, int64_t key) const {
    if (a.bias == nullptr) return 0.0F;
    return a.bias[head * a.bias_head + first + row - key + a.keys - 1];
  }
  __device__ int64_t out_at(int i) const {
    return sample * a.out_batch + (first + i) * a.out_row + head * a.head_dim;
  }
};

template <typename T, int D>
__global__ void __launch_bounds__(256) attention_kernel(AttentionArgs args) {
  extern __shared__ float shared[];
  float* qs = shared;            // [D][kStride], transposed
  float* kv = qs + D * kStride;  // K: [D][kStride], transposed; V: [kTile][D]
  float* ps = kv + D * kStride;  // [kTile keys][kStride], transposed
  const Dense source(args);
  const auto* q = static_cast<const T*>(args.q);
  const auto* k = static_cast<const T*>(args.k);
  const auto* v = static_cast<const T*>(args.v);
  const int head_dim = args.head_dim;
  const int queries = source.queries();
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kTile * D; i += 256) {
    const int row = i / D;
    const int d = i % D;
    qs[d * kStride + row] =
        row < queries && d < head_dim ? as_float(q[source.q_at(row) + d]) * args.scale : 0.0F;
  }
  constexpr int kColumns = D / 16;
  float out[4][kColumns] = {};
  float largest[4];
  float total[4] = {};
#pragma unroll
  for (int m = 0; m < 4; ++m) largest[m] = -INFINITY;
  const int row = thread / 16 * 4;
  const int column = thread % 16 * 4;

  const int64_t tiles = source.tiles();
  for (int64_t t = 0; t < tiles; ++t) {
    int64_t k_at;
    int64_t v_at;
    int count;
    source.tile(t, k_at, v_at, count);
    __syncthreads();  // the tile before has been read
    for (int i = thread; i < kTile * D; i += 256) {
      const int key = i / D;
      const int d = i % D;
      kv[d * kStride + key] =
          key < count && d < head_dim ? as_float(k[k_at + key * source.k_row() + d]) : 0.0F;
    }
    __syncthreads();
    float s[4][4] = {};
#pragma unroll 8
    for (int d = 0; d < D; ++d) {
      const float4 a = *reinterpret_cast<const float4*>(qs + d * kStride + row);
      const float4 b = *reinterpret_cast<const float4*>(kv + d * kStride + column);
      const float x[4] = {a.x, a.y, a.z, a.w};
      const float y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) s[m][n] = fmaf(x[m], y[n], s[m][n]);
      }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        s[m][n] =
            column + n < count ? s[m][n] + source.bias(row + m, t * kTile + column + n) : -INFINITY;
        top = fmaxf(top, s[m][n]);
      }
      // The 16 threads of a row are half a warp.
#pragma unroll
      for (int offset = 8; offset > 0; offset /= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, offset));
      }
      const float now = fmaxf(largest[m], top);
      const float factor = expf(largest[m] - now);  // 0 for the first tile
      float sum = 0.0F;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        s[m][n] = expf(s[m][n] - now);
        sum += s[m][n];
      }
#pragma unroll
      for (int offset = 8; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(0xffffffffU, sum, offset);
      }
      largest[m] = now;
      total[m] = total[m] * factor + sum;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[m][c] *= factor;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      *reinterpret_cast<float4*>(ps + (column + n) * kStride + row) =
          make_float4(s[0][n], s[1][n], s[2][n], s[3][n]);
    }
    __syncthreads();  // K has been read, P is written
    for (int i = thread; i < kTile * D; i += 256) {
      const int key = i / D;
      const int d = i % D;
      kv[key * D + d] =
          key < count && d < head_dim ? as_float(v[v_at + key * source.v_row() + d]) : 0.0F;
    }
    __syncthreads();
#pragma unroll 4
    for (int key = 0; key < kTile; ++key) {
      const float4 p = *reinterpret_cast<const float4*>(ps + key * kStride + row);
      const float x[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
      for (int c = 0; c < kColumns; c += 4) {
        const float4 y = *reinterpret_cast<const float4*>(kv + key * D + column + c * 16);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          out[m][c] = fmaf(x[m], y.x, out[m][c]);
          out[m][c + 1] = fmaf(x[m], y.y, out[m][c + 1]);
          out[m][c + 2] = fmaf(x[m], y.z, out[m][c + 2]);
          out[m][c + 3] = fmaf(x[m], y.w, out[m][c + 3]);
        }
      }
    }
  }

  auto* result = static_cast<T*>(args.out);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    if (row + m >= queries) continue;
    const int64_t at = source.out_at(row + m);
    const float inverse = total[m] > 0.0F ? 1.0F / total[m] : 0.0F;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int d = column + c / 4 * 64 + c % 4;
      if (d < head_dim) result[at + d] = as<T>(out[m][c] * inverse);
    }
  }
}

// Heads wider than 128: a warp per query, keys one after the other.
constexpr int kWideSteps = 16;  // heads of up to 512

template <typename T>
__global__ void __launch_bounds__(256) wide_kernel(AttentionArgs args) {
  const Dense source(args);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* q = static_cast<const T*>(args.q);
  const auto* k = static_cast<const T*>(args.k);
  const auto* v = static_cast<const T*>(args.v);
  auto* result = static_cast<T*>(args.out);
  for (int row = static_cast<int>(threadIdx.x) / 32; row < source.queries(); row += 8) {
    float x[kWideSteps];
    float out[kWideSteps] = {};
#pragma unroll
    for (int i = 0; i < kWideSteps; ++i) {
      const int d = lane + 32 * i;
      x[i] = d < args.head_dim ? as_float(q[source.q_at(row) + d]) * args.scale : 0.0F;
    }
    float largest = -INFINITY;
    float total = 0.0F;
    for (int64_t t = 0; t < source.tiles(); ++t) {
      int64_t k_at;
      int64_t v_at;
      int count;
      source.tile(t, k_at, v_at, count);
      for (int key = 0; key < count; ++key) {
        float s = 0.0F;
#pragma unroll
        for (int i = 0; i < kWideSteps; ++i) {
          const int d = lane + 32 * i;
          if (d < args.head_dim) s += x[i] * as_float(k[k_at + key * source.k_row() + d]);
        }
        s = warp_sum(s) + source.bias(row, t * kTile + key);
        const float now = fmaxf(largest, s);
        const float factor = expf(largest - now);
        const float p = expf(s - now);
        largest = now;
        total = total * factor + p;
#pragma unroll
        for (int i = 0; i < kWideSteps; ++i) {
          const int d = lane + 32 * i;
          if (d < args.head_dim) {
            out[i] = out[i] * factor + p * as_float(v[v_at + key * source.v_row() + d]);
          }
        }
      }
    }
    const int64_t at = source.out_at(row);
    const float inverse = total > 0.0F ? 1.0F / total : 0.0F;
#pragma unroll
    for (int i = 0; i < kWideSteps; ++i) {
      const int d = lane + 32 * i;
      if (d < args.head_dim) result[at + d] = as<T>(out[i] * inverse);
    }
  }
}

template <typename T, int D>
void launch_tiles(const AttentionArgs& args, dim3 grid, cudaStream_t stream) {
  constexpr int kBytes = (2 * D + kTile) * kStride * static_cast<int>(sizeof(float));
  const auto kernel = attention_kernel<T, D>;
  UF_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<grid, 256, kBytes, stream>>>(args);
}

void launch(const AttentionArgs& args, dim3 grid, cudaStream_t stream) {
  require(args.head_dim <= 32 * kWideSteps, "attention: heads of at most 512");
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (args.head_dim <= 64) {
      launch_tiles<T, 64>(args, grid, stream);
    } else if (args.head_dim <= 128) {
      launch_tiles<T, 128>(args, grid, stream);
    } else {
      wide_kernel<T><<<grid, 256, 0, stream>>>(args);
    }
  });
  UF_CUDA_LAUNCHED();
}

}  // namespace

void attention(const AttentionArgs& args, cudaStream_t stream) {
  if (args.batch * args.queries * args.heads * args.head_dim == 0) return;
  const dim3 grid(ceil_div(args.queries, kTile), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.batch));
  launch(args, grid, stream);
}

}  // namespace ultraflash::cuda::kernels
