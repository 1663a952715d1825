// The block-sparse kernels against their scalar definition (ops/executor.h), and their speed.
//
//   test_block_sparse            tests on small shapes, needs a GPU (exit status 77 without one)
//   test_block_sparse --bench    then times the published 1K and 2K shapes
//
// Every device buffer stands between guard zones that are checked after each case; every kernel
// runs twice and must give the same bits.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "ops/cuda/sparse/block_sparse.h"
#include "ops/cuda/sparse/sm90_attention.h"

namespace ultraflash::cuda {
namespace {

int failures = 0;

void fail(const std::string& what) {
  std::printf("FAIL %s\n", what.c_str());
  ++failures;
}

void check(cudaError_t error, const char* what) {
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

void fill(const Buffer& buffer, SparseType type, uint64_t seed, float scale) {
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
std::vector<float> floats(const Buffer& buffer, SparseType type) {
  if (type == SparseType::kF32) return buffer.host<float>();
  const auto bits = buffer.host<uint16_t>();
  std::vector<float> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    const uint32_t word = static_cast<uint32_t>(bits[i]) << 16;
    std::memcpy(&values[i], &word, 4);
  }
  return values;
}

float round_to(SparseType type, float x) {
  return type == SparseType::kBF16 ? __bfloat162float(__float2bfloat16(x)) : x;
}

void parallel(int64_t count, const std::function<void(int64_t)>& body) {
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

/// Token of place i of a query block, or -1 for padding.
int64_t token_of(const SparseShape& s, int64_t block, int64_t i, int64_t* frame, int64_t* y,
                 int64_t* x) {
  const int64_t space = block % s.spatial_blocks();
  *frame = block / s.spatial_blocks() * s.window_frames + i / (s.window_height * s.window_width);
  *y = space / s.block_columns() * s.window_height + i / s.window_width % s.window_height;
  *x = space % s.block_columns() * s.window_width + i % s.window_width;
  if (*frame >= s.frames || *y >= s.height || *x >= s.width) return -1;
  return (*frame * s.height + *y) * s.width + *x;
}

int64_t ring_block(const SparseShape& s, const SparsePlace& place, int64_t sample, int64_t key) {
  const int64_t slot = (place.first_slot + key / s.spatial_blocks()) % s.capacity_blocks;
  return (sample * s.capacity_blocks + slot) * s.spatial_blocks() + key % s.spatial_blocks();
}

/// Compares with a bound per element and names the worst place.
void compare(const std::string& what, const std::vector<float>& got,
             const std::vector<double>& want, const std::vector<bool>& checked, double relative,
             double absolute) {
  double worst = 0;
  size_t at = 0;
  double error = 0;
  double norm = 0;
  size_t beyond = 0;
  size_t first = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!checked[i]) continue;
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    const double excess = difference / (std::abs(want[i]) * relative + absolute);
    if (!(excess <= worst)) worst = std::isfinite(excess) ? excess : 1e30, at = i;
    if (!(excess <= 1.0) && beyond++ == 0) first = i;
    error += difference * difference;
    norm += want[i] * want[i];
  }
  std::printf("  %-26s relative L2 %.2e, worst %.2f of the bound at %zu (%g, wanted %g)\n",
              what.c_str(), std::sqrt(error / std::max(norm, 1e-30)), worst, at,
              at < got.size() ? got[at] : 0.0F, at < want.size() ? want[at] : 0.0);
  if (!(worst <= 1.0)) {
    fail(what + ": " + std::to_string(beyond) + " beyond the bound, first at " +
         std::to_string(first) + ": " + std::to_string(got[first]) + ", wanted " +
         std::to_string(want[first]));
  }
}

// --- tests --------------------------------------------------------------------------------------

void test_windows(const Case& c, Layer& layer) {
  const SparseShape& s = layer.shape;
  check(fill_rotary_table(s, layer.place.as<SparsePlace>(), layer.rotary.as<float>(), nullptr),
        "fill_rotary_table");
  const auto k_before = layer.k.host<uint8_t>();
  check(qkv_to_windows(s, layer.scatter_args(), nullptr), "qkv_to_windows");
  check(cudaDeviceSynchronize(), "qkv_to_windows");
  const auto q_bits = layer.q.host<uint8_t>();
  const auto k_bits = layer.k.host<uint8_t>();
  const auto mean_bits = layer.pooled_k.host<uint8_t>();
  check(qkv_to_windows(s, layer.scatter_args(), nullptr), "qkv_to_windows");
  if (layer.q.host<uint8_t>() != q_bits || layer.k.host<uint8_t>() != k_bits ||
      layer.pooled_k.host<uint8_t>() != mean_bits) {
    fail("qkv_to_windows: a second run gave other bits");
  }
  const auto qkv = floats(layer.qkv, s.type);
  const std::vector<float> weights[2] = {layer.norm_q.host<float>(), layer.norm_k.host<float>()};
  const Buffer* tiles[2] = {&layer.q, &layer.k};
  const Buffer* means[2] = {&layer.pooled_q, &layer.pooled_k};
  const auto v = floats(layer.v, s.type);
  const int64_t dim = s.dim();
  const int64_t half = s.head_dim / 2;
  const int64_t spatial = s.head_dim / 6;
  const double tolerance = s.type == SparseType::kBF16 ? 1.0 / 256 : 2e-6;
  std::vector<bool> written(static_cast<size_t>(layer.cache_blocks()), false);
  for (int part = 0; part < 2; ++part) {
    const auto got = floats(*tiles[part], s.type);
    const auto mean = floats(*means[part], s.type);
    std::vector<double> want(got.size());
    std::vector<bool> checked(got.size(), false);
    std::vector<double> mean_want(mean.size());
    std::vector<bool> mean_checked(mean.size(), false);
    int64_t v_wrong = 0;
    for (int64_t n = 0; n < s.batch * s.query_blocks(); ++n) {
      const int64_t sample = n / s.query_blocks();
      const int64_t block = n % s.query_blocks();
      const int64_t home =
          part == 0 ? n
                    : ring_block(s, c.place, sample, block + s.cached_blocks * s.spatial_blocks());
      if (part == 1) written[static_cast<size_t>(home)] = true;
      for (int64_t i = 0; i < s.window_tokens(); ++i) {
        int64_t at[3];
        const int64_t token = token_of(s, block, i, &at[0], &at[1], &at[2]);
        const int64_t to = (home * s.window_tokens() + i) * dim;
        const float* row =
            token < 0 ? nullptr : qkv.data() + ((sample * s.tokens() + token) * 3 + part) * dim;
        double square = 0;
        for (int64_t d = 0; d < dim && row != nullptr; ++d) {
          square += static_cast<double>(row[d]) * row[d];
        }
        const double inverse = 1.0 / std::sqrt(square / static_cast<double>(dim) + 1e-6);
        for (int64_t d = 0; d < dim; d += 2) {
          const auto index = static_cast<size_t>(to + d);
          checked[index] = checked[index + 1] = true;
          if (row != nullptr) {
            const int64_t pair = d % s.head_dim / 2;
            const int64_t time = half - 2 * spatial;
            const int64_t axis = pair < time ? 0 : pair < time + spatial ? 1 : 2;
            const int64_t j = pair - (axis == 0 ? 0 : time + (axis - 1) * spatial);
            const double angle =
                static_cast<double>(at[axis] + (axis == 0 ? c.place.first_frame : 0)) *
                std::pow(10000.0,
                         -static_cast<double>(j) / static_cast<double>(axis == 0 ? time : spatial));
            const auto* w = weights[part].data() + d;
            const double a = row[d] * inverse * w[0];
            const double b = row[d + 1] * inverse * w[1];
            want[index] = a * std::cos(angle) - b * std::sin(angle);
            want[index + 1] = b * std::cos(angle) + a * std::sin(angle);
          }
          for (size_t e = 0; e < 2; ++e) {
            const auto m = static_cast<size_t>(home * dim + d) + e;
            mean_checked[m] = true;
            mean_want[m] += got[index + e] / static_cast<double>(s.window_tokens());
            const float value = row == nullptr ? 0.0F : row[dim + d + static_cast<int64_t>(e)];
            if (part == 1 && v[index + e] != value) ++v_wrong;
          }
        }
      }
    }
    const char* name = part == 0 ? "q" : "k";
    compare(std::string("windows ") + name, got, want, checked, tolerance, 3e-6);
    compare(std::string("means of ") + name, mean, mean_want, mean_checked, tolerance, 1e-6);
    if (v_wrong > 0) fail("qkv_to_windows: v differs in " + std::to_string(v_wrong) + " places");
  }
  const size_t block_bytes = static_cast<size_t>(s.window_tokens() * dim) * layer.element;
  for (size_t b = 0; b < written.size(); ++b) {
    if (!written[b] && std::memcmp(k_bits.data() + b * block_bytes,
                                   k_before.data() + b * block_bytes, block_bytes) != 0) {
      fail("qkv_to_windows: wrote outside the slots of its group");
      break;
    }
  }
}

/// Lists and order must say what the mask says.
void test_lists(const Layer& layer, const std::vector<uint8_t>& mask, const char* what) {
  const auto indices = layer.indices.host<int32_t>();
  const auto counts = layer.counts.host<int32_t>();
  auto order = layer.order.host<int32_t>();
  const auto keys = static_cast<size_t>(layer.shape.key_blocks());
  for (size_t row = 0; row < counts.size(); ++row) {
    int32_t count = 0;
    for (size_t key = 0; key < keys; ++key) {
      if (mask[row * keys + key] == 0) continue;
      if (count >= counts[row] ||
          indices[row * keys + static_cast<size_t>(count)] != static_cast<int32_t>(key)) {
        return fail(std::string(what) + ": list of row " + std::to_string(row));
      }
      ++count;
    }
    if (count != counts[row]) return fail(std::string(what) + ": count of row");
  }
  for (size_t i = 1; i < order.size(); ++i) {
    const auto class_of = [&](size_t n) {
      return std::ilogb(static_cast<double>(counts[static_cast<size_t>(order[n])]) + 0.5);
    };
    if (class_of(i) > class_of(i - 1)) return fail(std::string(what) + ": order of lengths");
  }
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < order.size(); ++i) {
    if (order[i] != static_cast<int32_t>(i)) return fail(std::string(what) + ": order");
  }
}

void test_select(const Case& c, Layer& layer, float spread) {
  const SparseShape& s = layer.shape;
  fill(layer.pooled_q, s.type, 11, spread);
  fill(layer.pooled_k, s.type, 12, 1.0F);
  const auto select = [&] {
    check(
        select_blocks(s, c.selection, layer.pooled_q.data(), layer.pooled_k.data(),
                      layer.place.as<SparsePlace>(), layer.lists(), layer.scratch.data(), nullptr),
        "select_blocks");
    check(cudaDeviceSynchronize(), "select_blocks");
  };
  select();
  const auto mask = layer.mask.host<uint8_t>();
  const auto order = layer.order.host<int32_t>();
  select();
  if (layer.mask.host<uint8_t>() != mask || layer.order.host<int32_t>() != order) {
    fail("select_blocks: a second run gave other bits");
  }
  test_lists(layer, mask, "select_blocks");

  const auto pooled_q = floats(layer.pooled_q, s.type);
  const auto pooled_k = floats(layer.pooled_k, s.type);
  const int64_t spatial = s.spatial_blocks();
  const int64_t keys = s.key_blocks();
  const int64_t half = c.selection.local_range / 2;
  const float inverse_root = 1.0F / std::sqrt(static_cast<float>(s.head_dim));
  const int64_t problems = s.batch * s.heads * s.query_temporal_blocks();
  std::vector<uint8_t> want(mask.size(), 0);
  parallel(problems, [&](int64_t problem) {
    const int64_t tb = problem % s.query_temporal_blocks();
    const int64_t head = problem / s.query_temporal_blocks() % s.heads;
    const int64_t sample = problem / (s.query_temporal_blocks() * s.heads);
    const int64_t chunk = c.selection.blocks_per_chunk;
    const int64_t visible =
        std::min(s.key_temporal_blocks(), ((s.cached_blocks + tb) / chunk + 1) * chunk);
    std::vector<float> p(static_cast<size_t>(spatial * keys), 0.0F);
    std::vector<uint8_t> allowed(p.size(), 0);
    for (int64_t row = 0; row < spatial; ++row) {
      float maximum = -INFINITY;
      for (int64_t key = 0; key < keys; ++key) {
        const int64_t dy = key % spatial / s.block_columns() - row / s.block_columns() + half;
        const int64_t dx = key % s.block_columns() - row % s.block_columns() + half;
        const auto at = static_cast<size_t>(row * keys + key);
        allowed[at] =
            static_cast<uint8_t>(key / spatial < visible && dy >= 0 && dx >= 0 &&
                                 dy < c.selection.local_range && dx < c.selection.local_range);
        if (allowed[at] == 0) continue;
        const float* a = pooled_q.data() +
                         (sample * s.query_blocks() + tb * spatial + row) * s.dim() +
                         head * s.head_dim;
        const float* b =
            pooled_k.data() + ring_block(s, c.place, sample, key) * s.dim() + head * s.head_dim;
        double sum = 0;
        for (int64_t d = 0; d < s.head_dim; ++d) sum += static_cast<double>(a[d]) * b[d];
        p[at] = round_to(s.type, round_to(s.type, static_cast<float>(sum)) * inverse_root);
        maximum = std::max(maximum, p[at]);
      }
      float total = 0.0F;
      for (int64_t key = 0; key < keys; ++key) {
        const auto at = static_cast<size_t>(row * keys + key);
        p[at] = allowed[at] != 0 ? std::exp(p[at] - maximum) : 0.0F;
        total += p[at];
      }
      for (int64_t key = 0; key < keys; ++key) {
        const auto at = static_cast<size_t>(row * keys + key);
        p[at] = round_to(s.type, p[at] / total);
      }
    }
    std::vector<float> sorted = p;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const float theta =
        sorted[static_cast<size_t>(std::min(c.selection.top_k, spatial * keys - 1))];
    for (int64_t row = 0; row < spatial; ++row) {
      uint8_t* line = want.data() + (problem * spatial + row) * keys;
      int64_t first = -1;
      bool any = false;
      for (int64_t key = 0; key < keys; ++key) {
        const auto at = static_cast<size_t>(row * keys + key);
        if (allowed[at] == 0) continue;
        if (first < 0) first = key;
        line[key] = static_cast<uint8_t>(p[at] >= theta);
        any = any || line[key] != 0;
      }
      if (!any && first >= 0) line[first] = 1;
      if (s.cached_blocks == 0) line[tb * spatial + row] = 1;
    }
  });
  int64_t differ = 0;
  int64_t kept = 0;
  for (size_t i = 0; i < mask.size(); ++i) {
    differ += mask[i] != want[i] ? 1 : 0;
    kept += want[i];
  }
  std::printf("  select, spread %-11g %lld of %zu kept, %lld differ\n", spread,
              static_cast<long long>(kept), mask.size(), static_cast<long long>(differ));
  // A rounding of a score that falls the other way moves its pair, rarely the threshold.
  if (static_cast<double>(differ) > 2e-3 * static_cast<double>(mask.size())) fail("select_blocks");
}

/// Exact attention of some tiles in f64, P rounded as the kernel does where `round_weights`.
void test_attention(const Case& c, Layer& layer, int64_t samples, SparseKernel kernel) {
  const SparseShape& s = layer.shape;
  const char* name = kernel == SparseKernel::kHopper ? "attention" : "attention, plain";
  const auto run = [&] {
    check(cudaMemset(layer.out.data(), 0xFF, layer.out.bytes()), "cudaMemset");
    check(block_sparse_attention(s, layer.attention_args(), kernel, nullptr), name);
    check(cudaDeviceSynchronize(), name);
  };
  run();
  const auto bits = layer.out.host<uint8_t>();
  run();
  if (layer.out.host<uint8_t>() != bits) fail(std::string(name) + ": a second run, other bits");
  const auto ticket = layer.ticket.host<uint32_t>();
  if (ticket[0] != 0 || ticket[1] != 0) fail(std::string(name) + ": the ticket is not 0");

  const auto out = floats(layer.out, s.type);
  const auto q = floats(layer.q, s.type);
  const auto k = floats(layer.k, s.type);
  const auto v = floats(layer.v, s.type);
  const auto indices = layer.indices.host<int32_t>();
  const auto counts = layer.counts.host<int32_t>();
  std::vector<double> want(out.size());
  std::vector<uint8_t> seen(out.size(), 0);
  const int64_t tiles = layer.tiles();
  const int64_t window = s.window_tokens();
  // As many tiles as a few seconds of scalar arithmetic pay for.
  const double pairs = std::max(std::accumulate(counts.begin(), counts.end(), 0.0), 1.0);
  samples = std::max<int64_t>(
      std::min({samples, tiles, static_cast<int64_t>(3000.0 / pairs * static_cast<double>(tiles))}),
      1);
  parallel(samples, [&](int64_t n) {
    const int64_t tile = n * tiles / samples;
    const int64_t block = tile % s.query_blocks();
    const int64_t head = tile / s.query_blocks() % s.heads;
    const int64_t sample = tile / (s.query_blocks() * s.heads);
    const int64_t count = counts[static_cast<size_t>(tile)];
    const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
    std::vector<double> score(static_cast<size_t>(count * window));
    std::vector<double> sum(static_cast<size_t>(s.head_dim));
    for (int64_t i = 0; i < window; ++i) {
      int64_t at[3];
      const int64_t token = token_of(s, block, i, &at[0], &at[1], &at[2]);
      if (token < 0) continue;
      const float* query = q.data() + ((sample * s.query_blocks() + block) * window + i) * s.dim() +
                           head * s.head_dim;
      const auto row_of = [&](const std::vector<float>& x, int64_t j) {
        const int32_t key = indices[static_cast<size_t>(tile * s.key_blocks() + j / window)];
        return x.data() + (ring_block(s, c.place, sample, key) * window + j % window) * s.dim() +
               head * s.head_dim;
      };
      double maximum = -INFINITY;
      for (int64_t j = 0; j < count * window; ++j) {
        const float* key = row_of(k, j);
        double part[4] = {};
        for (int64_t d = 0; d < s.head_dim; ++d)
          part[d % 4] += static_cast<double>(query[d]) * key[d];
        const double dot = part[0] + part[1] + part[2] + part[3];
        score[static_cast<size_t>(j)] = dot * scale;
        maximum = std::max(maximum, dot * scale);
      }
      double total = 0;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t j = 0; j < count * window; ++j) {
        const double weight = std::exp(score[static_cast<size_t>(j)] - maximum);
        total += weight;
        const float* value = row_of(v, j);
        for (int64_t d = 0; d < s.head_dim; ++d) sum[static_cast<size_t>(d)] += weight * value[d];
      }
      for (int64_t d = 0; d < s.head_dim; ++d) {
        const auto to =
            static_cast<size_t>((sample * s.tokens() + token) * s.dim() + head * s.head_dim + d);
        want[to] = count > 0 ? sum[static_cast<size_t>(d)] / total : 0.0;
        seen[to] = 1;
      }
    }
  });
  // bf16: the result and the weights are rounded once each; the weights' part averages out over
  // the keys, so the bound is an absolute one of the size of a value of v times 2^-8.
  const bool bf16 = s.type == SparseType::kBF16;
  compare(name, out, want, std::vector<bool>(seen.begin(), seen.end()), bf16 ? 1.0 / 128 : 1e-5,
          bf16 ? 6e-3 : 1e-5);
}

void inject(const Case& c, Layer& layer) {
  const auto rows = static_cast<size_t>(layer.tiles());
  const auto keys = static_cast<size_t>(layer.shape.key_blocks());
  std::vector<uint8_t> mask(rows * keys);
  for (size_t i = 0; i < mask.size(); ++i) {
    const double u = static_cast<double>(mix(i + 77) >> 11) / 9007199254740992.0;
    // Some rows stay empty unless everything is asked for.
    const bool empty = c.density <= 1.0 && mix(i / keys + 5) % 7 == 0;
    mask[i] = static_cast<uint8_t>(!empty && u < c.density);
  }
  layer.mask.set(mask);
  check(lists_from_mask(layer.shape, layer.mask.as<uint8_t>(), layer.lists(), nullptr),
        "lists_from_mask");
  check(cudaDeviceSynchronize(), "lists_from_mask");
  test_lists(layer, mask, "lists_from_mask");
}

void test_case(const Case& c, bool hopper) {
  std::printf("%s\n", c.name);
  std::fflush(stdout);
  Layer layer(c);
  test_windows(c, layer);
  inject(c, layer);
  const bool fast = hopper && sm90::attention_supports(c.shape);
  if (fast) test_attention(c, layer, 1 << 20, SparseKernel::kHopper);
  test_attention(c, layer, 1 << 20, SparseKernel::kPlain);
  for (const float spread : {0.3F, 3.0F}) test_select(c, layer, spread);
  test_attention(c, layer, 24, fast ? SparseKernel::kHopper : SparseKernel::kPlain);
  if (!layer.intact()) fail(std::string(c.name) + ": wrote outside a buffer");
  std::fflush(stdout);
}

SparseShape shape_of(SparseType type, int64_t batch, int64_t heads, int64_t head_dim,
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

void run_tests(bool hopper) {
  constexpr SparseType kB = SparseType::kBF16;
  constexpr SparseType kF = SparseType::kF32;
  SparseShape small_window = shape_of(kB, 1, 2, 40, 3, 7, 9, 1, 4);
  small_window.window_frames = 1;
  small_window.window_height = 4;
  small_window.window_width = 5;
  const Case cases[] = {
      {"one block", shape_of(kB, 1, 1, 128, 2, 8, 8, 0, 1), {9, 1, 1}, {0, 0}, 2.0},
      {"one padded block, head_dim 64",
       shape_of(kB, 1, 2, 64, 1, 5, 3, 0, 2),
       {3, 1, 1},
       {5, 1},
       2.0},
      {"odd sizes, wrapped ring",
       shape_of(kB, 1, 2, 128, 5, 19, 21, 3, 7),
       {3, 40, 1},
       {12, 5},
       0.4},
      {"two samples, head_dim 64", shape_of(kB, 2, 3, 64, 3, 17, 11, 2, 4), {2, 9, 2}, {6, 2}, 0.5},
      {"dense", shape_of(kB, 1, 1, 128, 4, 16, 40, 2, 4), {9, 1 << 20, 1}, {4, 3}, 2.0},
      {"nothing selected", shape_of(kB, 1, 2, 128, 2, 16, 16, 1, 2), {1, 2, 1}, {2, 0}, 0.0},
      {"long lists", shape_of(kB, 1, 12, 128, 2, 24, 144, 1, 2), {9, 600, 1}, {2, 1}, 0.7},
      {"wide rows", shape_of(kB, 1, 1, 64, 2, 8, 300, 0, 3), {6, 20, 1}, {2, 1}, 0.1},
      {"windows of 20 tokens, head_dim 40", small_window, {3, 5, 1}, {3, 3}, 0.5},
      {"f32", shape_of(kF, 2, 2, 128, 5, 9, 23, 1, 5), {3, 30, 1}, {7, 4}, 0.5},
      {"f32, head_dim 64", shape_of(kF, 1, 3, 64, 2, 20, 12, 0, 1), {9, 17, 1}, {0, 0}, 0.3},
  };
  for (const Case& c : cases) test_case(c, hopper);
}

// --- speed --------------------------------------------------------------------------------------

/// Median milliseconds of `body` over `rounds` replays of a graph that holds `repeats` of it.
double time_ms(int repeats, int rounds, const std::function<void(cudaStream_t)>& body) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < repeats; ++i) body(stream);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  std::vector<float> times;
  for (int i = 0; i <= rounds; ++i) {
    check(cudaEventRecord(start, stream), "record");
    check(cudaGraphLaunch(replay, stream), "replay");
    check(cudaEventRecord(stop, stream), "record");
    check(cudaEventSynchronize(stop), "replay");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, start, stop), "elapsed");
    if (i > 0) times.push_back(ms / static_cast<float>(repeats));
  }
  std::sort(times.begin(), times.end());
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaStreamDestroy(stream);
  return times[times.size() / 2];
}

__global__ void difference_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, int64_t count,
                                  uint32_t* most) {
  float largest = 0.0F;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const float d = fabsf(__bfloat162float(a[i]) - __bfloat162float(b[i]));
    largest = d <= largest ? largest : isfinite(d) ? d : INFINITY;
  }
  atomicMax(most, __float_as_uint(largest));
}

/// The Hopper kernel against the plain one, every tile.
void cross_check(const Layer& layer) {
  const Buffer other(layer.out.bytes());
  const Buffer most(4);
  most.zero();
  BlockSparseArgs args = layer.attention_args();
  check(cudaMemset(layer.out.data(), 0xFF, layer.out.bytes()), "cudaMemset");
  check(block_sparse_attention(layer.shape, args, SparseKernel::kHopper, nullptr), "attention");
  args.out = other.data();
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  check(cudaEventRecord(start), "record");
  check(block_sparse_attention(layer.shape, args, SparseKernel::kPlain, nullptr), "plain");
  check(cudaEventRecord(stop), "record");
  difference_kernel<<<1024, 256>>>(layer.out.as<__nv_bfloat16>(), other.as<__nv_bfloat16>(),
                                   static_cast<int64_t>(layer.out.bytes() / 2),
                                   most.as<uint32_t>());
  const float largest = most.host<float>()[0];
  float ms = 0.0F;
  check(cudaEventElapsedTime(&ms, start, stop), "elapsed");
  std::printf(
      "{\"op\": \"block_sparse_attention, plain\", \"ms\": %.2f, "
      "\"largest_difference_to_hopper\": %g}\n",
      ms, largest);
  if (!(largest < 2e-2F)) fail("the Hopper kernel differs from the plain one");
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
}

double pairs_of(const Layer& layer) {
  const auto counts = layer.counts.host<int32_t>();
  return std::accumulate(counts.begin(), counts.end(), 0.0);
}

void bench_attention(const Layer& layer, const char* lists) {
  const auto counts = layer.counts.host<int32_t>();
  const double pairs = pairs_of(layer);
  const double flop = pairs * 4.0 * 128.0 * 128.0 * static_cast<double>(layer.shape.head_dim);
  const int32_t longest = *std::max_element(counts.begin(), counts.end());
  for (const bool skip : {false, true}) {
    sm90::AttentionTuning tuning;
    tuning.skip_rescale = skip;
    const int repeats = static_cast<int>(std::clamp(1.5e13 / flop, 1.0, 20.0));
    const double ms = time_ms(repeats, 7, [&](cudaStream_t stream) {
      check(sm90::launch_attention(layer.shape, layer.attention_args(), tuning, stream), "bench");
    });
    std::printf(
        "{\"op\": \"block_sparse_attention\", \"lists\": \"%s\", \"skip_rescale\": %s, "
        "\"pairs\": %.0f, \"longest\": %d, \"ms\": %.4f, \"tflops\": %.1f}\n",
        lists, skip ? "true" : "false", pairs, longest, ms, flop / ms * 1e-9);
    std::fflush(stdout);
  }
}

/// Lists of `length` random blocks in range for every tile.
void even_lists(const Case& c, Layer& layer, int64_t length) {
  const SparseShape& s = layer.shape;
  std::vector<uint8_t> mask(layer.mask.bytes(), 0);
  const int64_t half = c.selection.local_range / 2;
  parallel(layer.tiles(), [&](int64_t tile) {
    const int64_t block = tile % s.query_blocks();
    const int64_t row = block % s.spatial_blocks() / s.block_columns();
    const int64_t column = block % s.spatial_blocks() % s.block_columns();
    std::vector<int64_t> allowed;
    for (int64_t key = 0; key < s.key_blocks(); ++key) {
      const int64_t dy = key % s.spatial_blocks() / s.block_columns() - row + half;
      const int64_t dx = key % s.block_columns() - column + half;
      if (key / s.spatial_blocks() <= s.cached_blocks + block / s.spatial_blocks() && dy >= 0 &&
          dy < c.selection.local_range && dx >= 0 && dx < c.selection.local_range) {
        allowed.push_back(key);
      }
    }
    const auto count = std::min<int64_t>(length, static_cast<int64_t>(allowed.size()));
    for (int64_t i = 0; i < count; ++i) {
      const auto other = i + static_cast<int64_t>(mix(static_cast<uint64_t>(tile * 1000 + i)) %
                                                  (allowed.size() - static_cast<size_t>(i)));
      std::swap(allowed[static_cast<size_t>(i)], allowed[static_cast<size_t>(other)]);
      mask[static_cast<size_t>(tile * s.key_blocks() + allowed[static_cast<size_t>(i)])] = 1;
    }
  });
  layer.mask.set(mask);
  check(lists_from_mask(s, layer.mask.as<uint8_t>(), layer.lists(), nullptr), "lists_from_mask");
  check(cudaDeviceSynchronize(), "lists_from_mask");
}

void bench_shape(const Case& c) {
  const SparseShape& s = c.shape;
  std::printf(
      "{\"shape\": \"%s\", \"tokens\": %lld, \"query_blocks\": %lld, \"key_blocks\": %lld}\n",
      c.name, static_cast<long long>(s.tokens()), static_cast<long long>(s.query_blocks()),
      static_cast<long long>(s.key_blocks()));
  Layer layer(c);
  check(fill_rotary_table(s, layer.place.as<SparsePlace>(), layer.rotary.as<float>(), nullptr),
        "fill_rotary_table");
  double ms = time_ms(10, 9, [&](cudaStream_t stream) {
    check(qkv_to_windows(s, layer.scatter_args(), stream), "bench");
  });
  const double bytes =
      static_cast<double>(layer.qkv.bytes()) + 3.0 * static_cast<double>(layer.q.bytes());
  std::printf("{\"op\": \"qkv_to_windows\", \"ms\": %.4f, \"tbps\": %.3f}\n", ms,
              bytes / ms * 1e-9);
  for (const float spread : {0.2F, 2.0F}) {
    fill(layer.pooled_q, s.type, 11, spread);
    fill(layer.pooled_k, s.type, 12, 1.0F);
    for (const bool with_mask : {true, false}) {
      SparseLists lists = layer.lists();
      if (!with_mask) lists.mask = nullptr;
      ms = time_ms(20, 9, [&](cudaStream_t stream) {
        check(select_blocks(s, c.selection, layer.pooled_q.data(), layer.pooled_k.data(),
                            layer.place.as<SparsePlace>(), lists, layer.scratch.data(), stream),
              "bench");
      });
      std::printf(
          "{\"op\": \"select_blocks\", \"spread\": %g, \"mask\": %s, \"ms\": %.4f, "
          "\"pairs\": %.0f}\n",
          spread, with_mask ? "true" : "false", ms, pairs_of(layer));
    }
    bench_attention(layer, spread < 1.0F ? "selected, flat scores" : "selected, spread scores");
    cross_check(layer);
  }
  even_lists(c, layer, 26);
  bench_attention(layer, "26 per tile");
  even_lists(c, layer, 1 << 20);
  bench_attention(layer, "all in range");
  if (!layer.intact()) fail(std::string(c.name) + ": wrote outside a buffer");
}

int run(bool bench) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU, so no kernel of this program ran\n");
    return 77;
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  const bool hopper = properties.major == 9 && properties.minor == 0;
  std::printf("%s, sm_%d%d\n", properties.name, properties.major, properties.minor);
  if (!hopper) std::printf("the Hopper kernel does not run here and is not covered\n");
  run_tests(hopper);
  if (bench && hopper) {
    constexpr SparseType kB = SparseType::kBF16;
    const Case shapes[] = {
        {"1K", shape_of(kB, 1, 12, 128, 6, 60, 104, 3, 6), {9, 2704, 1}, {6, 3}, 0.0},
        {"2K", shape_of(kB, 1, 12, 128, 6, 90, 156, 3, 6), {9, 6400, 1}, {6, 3}, 0.0},
    };
    for (const Case& c : shapes) bench_shape(c);
  }
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash::cuda

int main(int argc, char** argv) {
  return ultraflash::cuda::run(argc > 1 && std::strcmp(argv[1], "--bench") == 0);
}
