// Choosing the blocks of block-sparse attention: scores of pooled queries and keys, softmax, the
// threshold of the largest, mask and lists. See Executor::select_blocks for what is computed.
//
// Plain kernels for every architecture: probabilities go through memory once (26 MB at 1K), the
// threshold is found by four passes over the bits of the values, most significant byte first, which
// order non-negative floats as integers.
#include "ops/cuda/device.cuh"

namespace ultraflash::cuda::kernels {
namespace {

struct Geometry {
  int64_t spatial, columns, temporal, visible, cached;
};
__device__ Geometry geometry(const SelectArgs& a, int64_t i) {
  const auto& place = *static_cast<const PlaceNumbers*>(a.place);
  const WindowGrid& g = a.grid;
  Geometry r;
  r.columns = (g.grid.width + g.window.width - 1) / g.window.width;
  r.spatial = (g.grid.height + g.window.height - 1) / g.window.height * r.columns;
  r.temporal = (g.grid.frames + g.window.frames - 1) / g.window.frames;
  r.cached = place.cached_blocks;
  const int64_t chunk = a.selection.blocks_per_chunk;
  r.visible = ((place.cached_blocks + i) / chunk + 1) * chunk;
  return r;
}
__device__ bool allowed(const SelectArgs& a, const Geometry& g, int64_t query, int64_t key) {
  if (key / g.spatial >= g.visible) return false;
  const int64_t at = key % g.spatial;
  const int64_t half = a.selection.local_range / 2;
  const int64_t row = at / g.columns - (query / g.columns - half);
  const int64_t column = at % g.columns - (query % g.columns - half);
  return row >= 0 && row < a.selection.local_range && column >= 0 &&
         column < a.selection.local_range;
}

template <typename T>
__device__ float round_to(float x) {
  return as_float(as<T>(x));
}

// One CTA per (sample, head, query block): its row of probabilities.
template <typename T>
__global__ void __launch_bounds__(256) probability_kernel(SelectArgs a) {
  extern __shared__ float query[];  // [head_dim]
  __shared__ float scratch[32];
  const int64_t block = blockIdx.x;
  const int64_t head = blockIdx.y;
  const int64_t sample = blockIdx.z;
  const auto& place = *static_cast<const PlaceNumbers*>(a.place);
  Geometry g = geometry(a, 0);
  const int64_t i = block / g.spatial;
  g = geometry(a, i);
  const int64_t blocks = g.temporal * g.spatial;
  const int64_t dim = int64_t{a.heads} * a.head_dim;
  const auto* pooled_q = static_cast<const T*>(a.pooled_q);
  const auto* pooled_k = static_cast<const T*>(a.pooled_k);
  for (int d = static_cast<int>(threadIdx.x); d < a.head_dim; d += 256) {
    query[d] = as_float(pooled_q[(sample * blocks + block) * dim + head * a.head_dim + d]);
  }
  __syncthreads();
  float* row = a.probabilities + ((sample * a.heads + head) * blocks + block) * a.key_blocks;
  const float inverse_root = 1.0F / sqrtf(static_cast<float>(a.head_dim));
  const int64_t warp = threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float top = -INFINITY;
  for (int64_t key = warp; key < a.key_blocks; key += 8) {
    float s = -INFINITY;
    if (allowed(a, g, block % g.spatial, key)) {
      const int64_t slot = (place.first_slot + key / g.spatial) % place.capacity_blocks;
      const int64_t at = (sample * place.capacity_blocks + slot) * g.spatial + key % g.spatial;
      s = 0.0F;
      for (int d = lane; d < a.head_dim; d += 32) {
        s += query[d] * as_float(pooled_k[at * dim + head * a.head_dim + d]);
      }
      s = round_to<T>(round_to<T>(warp_sum(s)) * inverse_root);
    }
    if (lane == 0) row[key] = s;
    top = fmaxf(top, s);
  }
  top = block_max(top, scratch);  // its barriers also publish the row to the CTA
  float total = 0.0F;
  for (int64_t key = threadIdx.x; key < a.key_blocks; key += 256) {
    const float e = row[key] == -INFINITY ? 0.0F : expf(row[key] - top);
    row[key] = e;
    total += e;
  }
  total = block_sum(total, scratch);
  for (int64_t key = threadIdx.x; key < a.key_blocks; key += 256) {
    row[key] = total > 0.0F ? round_to<T>(row[key] / total) : 0.0F;
  }
}

// One CTA per (sample, head, query temporal block): the (top_k + 1)-th largest probability.
__global__ void __launch_bounds__(1024)
    threshold_kernel(const float* probabilities, int64_t matrix, int64_t rank, float* thresholds) {
  __shared__ unsigned histogram[256];
  __shared__ unsigned chosen;
  __shared__ int64_t left;
  const auto* values =
      reinterpret_cast<const unsigned*>(probabilities) + int64_t{blockIdx.x} * matrix;
  if (threadIdx.x == 0) left = rank < matrix - 1 ? rank : matrix - 1;
  unsigned prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    const unsigned high = shift == 24 ? 0 : ~0U << (shift + 8);
    for (int64_t i = threadIdx.x; i < matrix; i += blockDim.x) {
      const unsigned value = values[i];
      if ((value & high) == prefix) atomicAdd(&histogram[value >> shift & 255U], 1U);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int64_t wanted = left;
      unsigned byte = 255;
      while (byte > 0 && wanted >= histogram[byte]) wanted -= histogram[byte--];
      chosen = byte;
      left = wanted;
    }
    __syncthreads();
    prefix |= chosen << shift;
  }
  if (threadIdx.x == 0) thresholds[blockIdx.x] = __uint_as_float(prefix);
}

// One warp per (sample, head, query block).
__global__ void mask_kernel(SelectArgs a, int64_t rows) {
  const int64_t r = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (r >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Geometry g = geometry(a, 0);
  const int64_t block = r % (g.temporal * g.spatial);
  const int64_t i = block / g.spatial;
  g = geometry(a, i);
  const float theta = a.thresholds[r / g.spatial];
  const float* p = a.probabilities + r * a.key_blocks;
  uint8_t* mask = a.mask + r * a.key_blocks;
  int64_t first = a.key_blocks;
  bool any = false;
  for (int64_t key = lane; key < a.key_blocks; key += 32) {
    const bool may = allowed(a, g, block % g.spatial, key);
    const bool take = may && p[key] >= theta;
    mask[key] = take ? 1 : 0;
    any = any || take;
    if (may && key < first) first = key;
  }
  any = __any_sync(0xffffffffU, any);
  for (int offset = 16; offset > 0; offset /= 2) {
    const int64_t other = __shfl_xor_sync(0xffffffffU, first, offset);
    first = other < first ? other : first;
  }
  __syncwarp();
  if (lane != 0) return;
  if (!any && first < a.key_blocks) mask[first] = 1;
  if (g.cached == 0) mask[block] = 1;
}

__global__ void list_kernel(const uint8_t* mask, int64_t rows, int64_t key_blocks, int32_t* indices,
                            int32_t* counts) {
  const int64_t r = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (r >= rows) return;
  const unsigned lane = threadIdx.x % 32;
  int32_t count = 0;
  for (int64_t first = 0; first < key_blocks; first += 32) {
    const int64_t key = first + lane;
    const bool set = key < key_blocks && mask[r * key_blocks + key] != 0;
    const unsigned bits = __ballot_sync(0xffffffffU, set);
    if (set) {
      const int before = __popc(bits & ((1U << lane) - 1U));
      indices[r * key_blocks + count + before] = static_cast<int32_t>(key);
    }
    count += __popc(bits);
  }
  // What no list holds is a valid index all the same.
  for (int64_t i = count + lane; i < key_blocks; i += 32) indices[r * key_blocks + i] = 0;
  if (lane == 0) counts[r] = count;
}

}  // namespace

void select_blocks(const SelectArgs& args, cudaStream_t stream) {
  const int64_t blocks = args.grid.blocks();
  const int64_t rows = args.batch * args.heads * blocks;
  if (rows * args.key_blocks == 0) return;
  const auto bytes = static_cast<size_t>(args.head_dim) * sizeof(float);
  with_type(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.heads),
                    static_cast<unsigned>(args.batch));
    probability_kernel<T><<<grid, 256, bytes, stream>>>(args);
  });
  UF_CUDA_LAUNCHED();
  const int64_t spatial = args.grid.spatial_blocks();
  threshold_kernel<<<static_cast<unsigned>(rows / spatial), 1024, 0, stream>>>(
      args.probabilities, spatial * args.key_blocks, args.selection.top_k, args.thresholds);
  UF_CUDA_LAUNCHED();
  mask_kernel<<<ceil_div(rows, 8), 256, 0, stream>>>(args, rows);
  UF_CUDA_LAUNCHED();
}

void list_blocks(const uint8_t* mask, int64_t rows, int64_t key_blocks, int32_t* indices,
                 int32_t* counts, cudaStream_t stream) {
  if (rows * key_blocks == 0) return;
  list_kernel<<<ceil_div(rows, 8), 256, 0, stream>>>(mask, rows, key_blocks, indices, counts);
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
