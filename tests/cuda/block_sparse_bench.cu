// Speed of the block-sparse kernels at the published 1K and 2K shapes.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <vector>

#include "cuda/sparse_layer.cuh"
#include "ops/cuda/sparse/block_sparse.h"
#include "ops/cuda/sparse/window_scatter.h"

namespace ultraflash::cuda {
namespace {

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
  const int repeats = static_cast<int>(std::clamp(1.5e13 / flop, 1.0, 20.0));
  const double ms = time_ms(repeats, 7, [&](cudaStream_t stream) {
    check(
        block_sparse_attention(layer.shape, layer.attention_args(), SparseKernel::kHopper, stream),
        "bench");
  });
  std::printf(
      "{\"op\": \"block_sparse_attention\", \"lists\": \"%s\", \"pairs\": %.0f, "
      "\"longest\": %d, \"ms\": %.4f, \"tflops\": %.1f}\n",
      lists, pairs, longest, ms, flop / ms * 1e-9);
  std::fflush(stdout);
}

/// As bench_attention, in e4m3; the buffers of the layer are large enough.
void bench_attention_fp8(const Layer& layer, const char* lists) {
  const Buffer scales(static_cast<size_t>(layer.shape.heads) * 4);
  WindowScatterArgs scatter = layer.scatter_args();
  scatter.scales = scales.as<float>();
  // Every slot of the ring holds e4m3 numbers of the scatter's making.
  check(cudaMemset(layer.k.data(), 0x2e, layer.k.bytes()), "memset");
  check(cudaMemset(layer.v.data(), 0x2e, layer.v.bytes()), "memset");
  double ms = time_ms(10, 9, [&](cudaStream_t stream) {
    check(qkv_to_windows(layer.shape, scatter, stream), "bench");
  });
  std::printf("{\"op\": \"qkv_to_windows, e4m3\", \"ms\": %.4f}\n", ms);
  BlockSparseArgs args = layer.attention_args();
  args.scales = scales.as<float>();
  const double pairs = pairs_of(layer);
  const double flop = pairs * 4.0 * 128.0 * 128.0 * static_cast<double>(layer.shape.head_dim);
  const int repeats = static_cast<int>(std::clamp(1.5e13 / flop, 1.0, 20.0));
  ms = time_ms(repeats, 7, [&](cudaStream_t stream) {
    check(block_sparse_attention(layer.shape, args, SparseKernel::kHopper, stream), "bench");
  });
  std::printf(
      "{\"op\": \"block_sparse_attention, e4m3\", \"lists\": \"%s\", \"pairs\": %.0f, "
      "\"ms\": %.4f, \"tflops\": %.1f}\n",
      lists, pairs, ms, flop / ms * 1e-9);
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
  const double bytes =
      static_cast<double>(layer.qkv.bytes()) + 3.0 * static_cast<double>(layer.q.bytes());
  double ms = 0.0;
  for (const ScatterTuning& tuning : {ScatterTuning{4}, ScatterTuning{8}}) {
    ms = time_ms(10, 9, [&](cudaStream_t stream) {
      check(launch_scatter(s, layer.scatter_args(), tuning, stream), "bench");
    });
    std::printf("{\"op\": \"qkv_to_windows\", \"parts\": %d, \"ms\": %.4f, \"tbps\": %.3f}\n",
                tuning.parts, ms, bytes / ms * 1e-9);
  }
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
  bench_attention_fp8(layer, "all in range");
  even_lists(c, layer, 26);
  bench_attention_fp8(layer, "26 per tile");
  if (!layer.intact()) fail(std::string(c.name) + ": wrote outside a buffer");
}

const Case k1K = {
    "1K", shape_of(SparseType::kBF16, 1, 12, 128, 6, 60, 104, 3, 6), {9, 2704, 1}, {6, 3}, 0.0};
const Case k2K = {
    "2K", shape_of(SparseType::kBF16, 1, 12, 128, 6, 90, 156, 3, 6), {9, 6400, 1}, {6, 3}, 0.0};

}  // namespace

void bench_sparse() {
  bench_shape(k1K);
  bench_shape(k2K);
}

void profile_sparse() {
  const Case& c = k2K;
  Layer layer(c);
  check(
      fill_rotary_table(c.shape, layer.place.as<SparsePlace>(), layer.rotary.as<float>(), nullptr),
      "fill_rotary_table");
  check(qkv_to_windows(c.shape, layer.scatter_args(), nullptr), "qkv_to_windows");
  fill(layer.pooled_q, c.shape.type, 11, 2.0F);
  fill(layer.pooled_k, c.shape.type, 12, 1.0F);
  check(select_blocks(c.shape, c.selection, layer.pooled_q.data(), layer.pooled_k.data(),
                      layer.place.as<SparsePlace>(), layer.lists(), layer.scratch.data(), nullptr),
        "select_blocks");
  check(block_sparse_attention(c.shape, layer.attention_args(), SparseKernel::kAuto, nullptr),
        "block_sparse_attention");
  check(cudaDeviceSynchronize(), "profile");
}

}  // namespace ultraflash::cuda
