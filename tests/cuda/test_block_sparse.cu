// The block-sparse kernels against their scalar definition (ops/executor.h), and their speed.
//
//   test_block_sparse            tests on small shapes, needs a GPU (exit status 77 without one)
//   test_block_sparse --quick    the smallest of them, for compute-sanitizer
//   test_block_sparse --bench    then times the published 1K and 2K shapes
//   test_block_sparse --profile  every kernel once at the 2K shape, for a profiler
//
// Every device buffer stands between guard zones that are checked after each case; every kernel
// runs twice and must give the same bits.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/sparse_layer.cuh"
#include "ops/cuda/quantise.cuh"
#include "ops/cuda/sparse/block_sparse.h"
#include "ops/cuda/sparse/sm90_attention.h"

namespace ultraflash::cuda {
namespace {

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
  // Tiles of more than twice the mean length go first.
  const double mean =
      std::accumulate(counts.begin(), counts.end(), 0.0) / static_cast<double>(counts.size());
  bool long_ones = true;
  for (const int32_t tile : order) {
    if (tile < 0 || tile >= static_cast<int32_t>(counts.size())) return fail("order: not a tile");
    const bool is_long = counts[static_cast<size_t>(tile)] > 2.01 * std::max(mean, 1.0);
    if (is_long && !long_ones) return fail(std::string(what) + ": a long tile comes late");
    if (!is_long) long_ones = false;
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

/// Compares with exact attention of some tiles in f64.
void expect_attention(const Case& c, const Layer& layer, int64_t samples, const char* name,
                      const std::vector<float>& q, const std::vector<float>& k,
                      const std::vector<float>& v, double relative, double absolute) {
  const SparseShape& s = layer.shape;
  const auto out = floats(layer.out, s.type);
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
  compare(name, out, want, std::vector<bool>(seen.begin(), seen.end()), relative, absolute);
}

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

  // bf16: the result and the weights are rounded once each; the weights' part averages out over
  // the keys, so the bound is an absolute one of the size of a value of v times 2^-8.
  const bool bf16 = s.type == SparseType::kBF16;
  expect_attention(c, layer, samples, name, floats(layer.q, s.type), floats(layer.k, s.type),
                   floats(layer.v, s.type), bf16 ? 1.0 / 128 : 1e-5, bf16 ? 6e-3 : 1e-5);
}

std::vector<float> from_fp8(const Buffer& buffer) {
  std::vector<float> values;
  for (const uint8_t bits : buffer.host<uint8_t>()) {
    __nv_fp8_e4m3 x;
    x.__x = bits;
    values.push_back(static_cast<float>(x));
  }
  return values;
}

/// Preparation and attention in e4m3: q and k to half a step of it, v exactly, means as in bf16,
/// and attention against the exact one of the e4m3 numbers.
void test_fp8(const Case& c, Layer& layer) {
  const SparseShape& s = layer.shape;
  const Buffer q8(layer.q.bytes() / 2);
  const Buffer k8(layer.k.bytes() / 2);
  const Buffer v8(layer.v.bytes() / 2);
  const Buffer pooled_q(layer.pooled_q.bytes());
  const Buffer pooled_k(layer.pooled_k.bytes());
  const Buffer scales(static_cast<size_t>(s.heads) * 4);
  // Blocks of earlier groups: numbers below 1, none of them a NaN.
  std::vector<uint8_t> bits(k8.bytes());
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint8_t>(mix(i) & 0xB7);
  k8.set(bits);
  v8.set(bits);
  const std::vector<float> before = from_fp8(k8);
  pooled_k.set(layer.pooled_k.host<uint8_t>());
  WindowScatterArgs args = layer.scatter_args();
  args.q = q8.data();
  args.k = k8.data();
  args.v = v8.data();
  args.pooled_q = pooled_q.data();
  args.pooled_k = pooled_k.data();
  args.scales = scales.as<float>();
  check(qkv_to_windows(s, layer.scatter_args(), nullptr), "qkv_to_windows");
  check(qkv_to_windows(s, args, nullptr), "qkv_to_windows in e4m3");
  check(cudaDeviceSynchronize(), "qkv_to_windows in e4m3");
  if (pooled_q.host<uint8_t>() != layer.pooled_q.host<uint8_t>() ||
      pooled_k.host<uint8_t>() != layer.pooled_k.host<uint8_t>()) {
    fail("qkv_to_windows in e4m3: the means differ from those in bf16");
  }
  const auto dim = static_cast<size_t>(s.dim());
  const auto head_scale = [&](const Buffer& norm, size_t head) {
    const auto weights = norm.host<float>();
    double top = 0.0;
    for (size_t i = 0; i < 128; ++i) {
      top = std::max(top, std::abs(static_cast<double>(weights[head * 128 + i])));
    }
    return top * std::sqrt(static_cast<double>(dim)) / 448.0;
  };
  std::vector<float> q = from_fp8(q8);
  std::vector<float> k = from_fp8(k8);
  const std::vector<float> turned = from_fp8(v8);
  std::vector<float> v(turned.size());
  for (size_t i = 0; i < v.size(); ++i) {  // [blocks][128][dim] of [blocks][dim][128]
    const size_t token = i / dim % 128;
    v[i] = turned[(i / dim / 128 * dim + i % dim) * 128 + token / 16 * 16 +
                  static_cast<size_t>(fp8_key_place(static_cast<int>(token % 16)))];
  }
  const auto group = [&](size_t row) {  // whether a row of the cache is of this group
    const auto block = static_cast<int64_t>(row) / 128;
    const int64_t slot = block / s.spatial_blocks() % s.capacity_blocks;
    for (int64_t tb = 0; tb < s.query_temporal_blocks(); ++tb) {
      if ((c.place.first_slot + s.cached_blocks + tb) % s.capacity_blocks == slot) return true;
    }
    return false;
  };
  double worst = 0.0;
  int64_t v_wrong = 0;
  int64_t outside = 0;
  const std::vector<float> want_q = floats(layer.q, s.type);
  const std::vector<float> want_k = floats(layer.k, s.type);
  const std::vector<float> want_v = floats(layer.v, s.type);
  std::vector<double> scale_q;
  std::vector<double> scale_k;
  for (size_t h = 0; h < static_cast<size_t>(s.heads); ++h) {
    scale_q.push_back(head_scale(layer.norm_q, h));
    scale_k.push_back(head_scale(layer.norm_k, h));
  }
  const auto difference = [&](float got, float want, double scale) {
    const double d = std::abs(static_cast<double>(got) * scale - static_cast<double>(want));
    // The bf16 numbers are rounded too.
    worst = std::max(worst, d / (std::abs(static_cast<double>(want)) / 15.0 + scale / 1000.0));
  };
  for (size_t i = 0; i < q.size(); ++i) difference(q[i], want_q[i], scale_q[i % dim / 128]);
  for (size_t i = 0; i < k.size(); ++i) {
    if (!group(i / dim)) {
      if (k[i] != before[i]) ++outside;
      continue;
    }
    difference(k[i], want_k[i], scale_k[i % dim / 128]);
    __nv_fp8_e4m3 x(want_v[i]);
    if (static_cast<float>(x) != v[i]) ++v_wrong;
  }
  std::printf("  windows in e4m3            worst %.2f of the bound\n", worst);
  if (!(worst <= 1.0)) fail("qkv_to_windows in e4m3: q or k");
  if (outside > 0) fail("qkv_to_windows in e4m3: wrote outside the slots of its group");
  if (v_wrong > 0) fail("qkv_to_windows in e4m3: v differs in " + std::to_string(v_wrong));

  BlockSparseArgs attention = layer.attention_args();
  attention.q = q8.data();
  attention.k = k8.data();
  attention.v = v8.data();
  attention.scales = scales.as<float>();
  const auto run = [&] {
    check(cudaMemset(layer.out.data(), 0xFF, layer.out.bytes()), "cudaMemset");
    check(block_sparse_attention(s, attention, SparseKernel::kHopper, nullptr), "e4m3");
    check(cudaDeviceSynchronize(), "attention in e4m3");
    return layer.out.host<uint8_t>();
  };
  const auto first = run();
  if (run() != first) fail("attention in e4m3: a second run, other bits");
  const std::vector<float> factors = scales.host<float>();
  for (size_t i = 0; i < q.size(); ++i) q[i] *= factors[i % dim / 128];
  // Weights are rounded to four bits; their part averages out over the keys.
  expect_attention(c, layer, 1 << 20, "attention in e4m3", q, k, v, 1.0 / 16, 5e-2);
  if (!q8.intact() || !k8.intact() || !v8.intact() || !pooled_q.intact() || !pooled_k.intact() ||
      !scales.intact()) {
    fail("in e4m3: wrote outside a buffer");
  }
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
  if (fast && c.shape.head_dim == 128) test_fp8(c, layer);
  for (const float spread : {0.3F, 3.0F}) test_select(c, layer, spread);
  // In bf16 scores of some hundreds, so that the maximum of a row moves far from block to block.
  fill(layer.q, c.shape.type, 21, c.shape.type == SparseType::kBF16 ? 40.0F : 1.0F);
  fill(layer.k, c.shape.type, 22, 2.0F);
  test_attention(c, layer, 24, fast ? SparseKernel::kHopper : SparseKernel::kPlain);
  if (!layer.intact()) fail(std::string(c.name) + ": wrote outside a buffer");
  std::fflush(stdout);
}

void run_tests(bool hopper, bool quick) {
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
  for (const Case& c : cases) {
    if (!quick || c.shape.tokens() * c.shape.heads < 3000) test_case(c, hopper);
  }
}

int run(const char* mode) {
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
  if (std::strcmp(mode, "--profile") == 0) {
    profile_sparse();
    return 0;
  }
  run_tests(hopper, std::strcmp(mode, "--quick") == 0);
  if (hopper && std::strcmp(mode, "--bench") == 0) bench_sparse();
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash::cuda

int main(int argc, char** argv) { return ultraflash::cuda::run(argc > 1 ? argv[1] : ""); }
