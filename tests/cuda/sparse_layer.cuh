// What the tests and the benchmark of the block-sparse kernels share: guarded device memory, random
// numbers, the buffers of one layer.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "ops/cuda/sparse/block_sparse.h"

namespace ultraflash::cuda {

inline int failures = 0;

inline void fail(const std::string& what) {
  std::printf("FAIL %s\n", what.c_str());
  ++failures;
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// --- device memory ------------------------------------------------------------------------------

constexpr size_t kGuard = 4096;
constexpr uint8_t kGuardByte = 0xA5;

/// Device memory between two guard zones.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0) : bytes_((bytes + 255) / 256 * 256), asked_(bytes) {
    check(cudaMalloc(&memory_, bytes_ + 2 * kGuard), "cudaMalloc");
    check(cudaMemset(memory_, kGuardByte, bytes_ + 2 * kGuard), "cudaMemset");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(memory_); }
  [[nodiscard]] uint8_t* data() const { return memory_ + kGuard; }
  template <typename T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data());
  }
  [[nodiscard]] size_t bytes() const { return asked_; }
  void zero() const { check(cudaMemset(data(), 0, asked_), "cudaMemset"); }
  template <typename T>
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> values(asked_ / sizeof(T));
    check(cudaMemcpy(values.data(), data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost),
          "copy to host");
    return values;
  }
  template <typename T>
  void set(const std::vector<T>& values) const {
    check(cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "copy to device");
  }
  /// False when a byte outside the memory that was asked for has changed.
  [[nodiscard]] bool intact() const {
    std::vector<uint8_t> low(kGuard);
    std::vector<uint8_t> high(bytes_ - asked_ + kGuard);
    check(cudaMemcpy(low.data(), memory_, low.size(), cudaMemcpyDeviceToHost), "guard");
    check(cudaMemcpy(high.data(), data() + asked_, high.size(), cudaMemcpyDeviceToHost), "guard");
    const auto same = [](uint8_t byte) { return byte == kGuardByte; };
    return std::all_of(low.begin(), low.end(), same) && std::all_of(high.begin(), high.end(), same);
  }

 private:
  uint8_t* memory_ = nullptr;
  size_t bytes_;
  size_t asked_;
};

__host__ __device__ inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// Near-normal numbers: the sum of four uniforms, deviation `scale`.
template <typename T>
__global__ void fill_kernel(T* out, int64_t count, uint64_t seed, float scale) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const uint64_t bits = mix(mix(seed) + static_cast<uint64_t>(i));
    float sum = -2.0F;
    for (int n = 0; n < 4; ++n) {
      sum += static_cast<float>(bits >> 16 * n & 0xFFFF) * (1.0F / 65536.0F);
    }
    out[i] = static_cast<T>(sum * 1.7320508F * scale);
  }
}

inline void fill(const Buffer& buffer, SparseType type, uint64_t seed, float scale) {
  if (type == SparseType::kBF16) {
    fill_kernel<<<1024, 256>>>(buffer.as<__nv_bfloat16>(), static_cast<int64_t>(buffer.bytes() / 2),
                               seed, scale);
  } else {
    fill_kernel<<<1024, 256>>>(buffer.as<float>(), static_cast<int64_t>(buffer.bytes() / 4), seed,
                               scale);
  }
  check(cudaGetLastError(), "fill");
}

/// Host values of a bf16 or f32 buffer.
inline std::vector<float> floats(const Buffer& buffer, SparseType type) {
  if (type == SparseType::kF32) return buffer.host<float>();
  const auto bits = buffer.host<uint16_t>();
  std::vector<float> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    const uint32_t word = static_cast<uint32_t>(bits[i]) << 16;
    std::memcpy(&values[i], &word, 4);
  }
  return values;
}

inline float round_to(SparseType type, float x) {
  return type == SparseType::kBF16 ? __bfloat162float(__float2bfloat16(x)) : x;
}

inline void parallel(int64_t count, const std::function<void(int64_t)>& body) {
  const auto workers = static_cast<int64_t>(std::max(1U, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int64_t w = 0; w < workers; ++w) {
    threads.emplace_back([&, w] {
      for (int64_t i = w; i < count; i += workers) body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// --- one layer's worth of buffers ---------------------------------------------------------------

struct Case {
  const char* name;
  SparseShape shape;
  SparseSelection selection;
  SparsePlace place;
  double density;  // of injected masks; above 1: everything; 0: nothing
};

struct Layer {
  explicit Layer(const Case& c)
      : shape(c.shape),
        selection(c.selection),
        element(shape.type == SparseType::kBF16 ? 2 : 4),
        qkv(static_cast<size_t>(shape.batch * shape.tokens() * 3 * shape.dim()) * element),
        norm_q(static_cast<size_t>(shape.dim()) * 4),
        norm_k(static_cast<size_t>(shape.dim()) * 4),
        rotary(rotary_table_bytes(shape)),
        place(sizeof(SparsePlace)),
        q(static_cast<size_t>(shape.batch * shape.query_blocks() * shape.window_tokens() *
                              shape.dim()) *
          element),
        pooled_q(static_cast<size_t>(shape.batch * shape.query_blocks() * shape.dim()) * element),
        k(static_cast<size_t>(cache_blocks() * shape.window_tokens() * shape.dim()) * element),
        v(k.bytes()),
        pooled_k(static_cast<size_t>(cache_blocks() * shape.dim()) * element),
        mask(static_cast<size_t>(tiles() * shape.key_blocks())),
        indices(mask.bytes() * 4),
        counts(static_cast<size_t>(tiles()) * 4),
        order(counts.bytes()),
        scratch(select_blocks_scratch_bytes(shape, selection)),
        ticket(8),
        out(static_cast<size_t>(shape.batch * shape.tokens() * shape.dim()) * element) {
    place.set(std::vector<SparsePlace>{c.place});
    ticket.zero();
    fill(qkv, shape.type, 1, 1.0F);
    fill(k, shape.type, 2, 1.0F);
    fill(v, shape.type, 3, 1.0F);
    fill(pooled_k, shape.type, 4, 0.6F);
    std::vector<float> weights(static_cast<size_t>(shape.dim()));
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] = 0.5F + 0.01F * static_cast<float>(i % 97);
    norm_q.set(weights);
    std::reverse(weights.begin(), weights.end());
    norm_k.set(weights);
  }
  [[nodiscard]] int64_t cache_blocks() const {
    return shape.batch * shape.capacity_blocks * shape.spatial_blocks();
  }
  [[nodiscard]] int64_t tiles() const { return shape.batch * shape.heads * shape.query_blocks(); }
  [[nodiscard]] SparseLists lists() const {
    return {mask.as<uint8_t>(), indices.as<int32_t>(), counts.as<int32_t>(), order.as<int32_t>()};
  }
  [[nodiscard]] WindowScatterArgs scatter_args() const {
    WindowScatterArgs args;
    args.qkv = qkv.data();
    args.norm_q = norm_q.as<float>();
    args.norm_k = norm_k.as<float>();
    args.rotary = rotary.as<float>();
    args.place = place.as<SparsePlace>();
    args.q = q.data();
    args.pooled_q = pooled_q.data();
    args.k = k.data();
    args.v = v.data();
    args.pooled_k = pooled_k.data();
    return args;
  }
  [[nodiscard]] BlockSparseArgs attention_args() const {
    BlockSparseArgs args;
    args.q = q.data();
    args.k = k.data();
    args.v = v.data();
    args.lists = lists();
    args.place = place.as<SparsePlace>();
    args.out = out.data();
    args.ticket = ticket.as<uint32_t>();
    return args;
  }
  [[nodiscard]] bool intact() const {
    const Buffer* all[] = {&qkv,      &norm_q, &norm_k,  &rotary,   &place, &q,
                           &pooled_q, &k,      &v,       &pooled_k, &mask,  &indices,
                           &counts,   &order,  &scratch, &ticket,   &out};
    return std::all_of(std::begin(all), std::end(all), [](const Buffer* b) { return b->intact(); });
  }

  SparseShape shape;
  SparseSelection selection;
  size_t element;
  Buffer qkv, norm_q, norm_k, rotary, place, q, pooled_q, k, v, pooled_k;
  Buffer mask, indices, counts, order, scratch, ticket, out;
};

inline SparseShape shape_of(SparseType type, int64_t batch, int64_t heads, int64_t head_dim,
                            int64_t frames, int64_t height, int64_t width, int64_t cached,
                            int64_t capacity) {
  SparseShape s;
  s.type = type;
  s.batch = batch;
  s.heads = heads;
  s.head_dim = head_dim;
  s.frames = frames;
  s.height = height;
  s.width = width;
  s.cached_blocks = cached;
  s.capacity_blocks = capacity;
  return s;
}

/// block_sparse_bench.cu: prints one line of JSON per figure.
void bench_sparse();
/// Every kernel once at the 2K shape, for a profiler.
void profile_sparse();

}  // namespace ultraflash::cuda
