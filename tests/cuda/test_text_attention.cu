// Attention to a text in one kernel, with the norm before it and quantisation behind it
// (text_attention.cu), against f64 and against the pass that quantises; guard zones, the same bits
// twice. With --bench also its speed. Exit status 77 without a GPU.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/rows.cuh"
#include "ops/cuda/text_attention.h"

namespace ultraflash::cuda {
namespace {

struct TextCase {
  int64_t batch, queries, keys, distinct;  // distinct 0: not given
  int heads;
  kernels::TextShape shape;  // no warps: what a call takes
};

// bf16 results against f64; e4m3 ones against the pass that quantises the bf16 ones.
void test_text_attention(const TextCase& c) {
  const int64_t dim = c.heads * 128;
  const int64_t rows = c.batch * c.queries;
  const Buffer q(static_cast<size_t>(rows * dim) * 2);
  // As they come out of one product: a row of k, then one of v.
  const Buffer kv(static_cast<size_t>(c.batch * c.keys * dim) * 4);
  const Buffer norm(static_cast<size_t>(dim) * 4);
  const Buffer distinct(8);
  const Buffer out(q.bytes());
  const Buffer again(q.bytes());
  fill(q, kB, 1, 2.0F);
  fill(kv, kB, 2, 1.1F);
  fill(norm, kF, 4, 1.0F);
  distinct.set(std::vector<int64_t>{c.distinct});
  // Padding.
  for (int64_t row = c.distinct; c.distinct > 0 && row < c.keys; ++row) {
    for (int64_t b = 0; b < c.batch; ++b) {
      auto* sample = kv.as<__nv_bfloat16>() + b * c.keys * 2 * dim;
      check(cudaMemcpyAsync(sample + row * 2 * dim, sample + (c.distinct - 1) * 2 * dim,
                            static_cast<size_t>(dim) * 4, cudaMemcpyDeviceToDevice),
            "padding");
    }
  }
  kernels::TextAttentionArgs args;
  args.q = q.data();
  args.norm_q = norm.as<float>();
  args.eps = 1e-6F;
  args.k = kv.data();
  args.v = kv.as<__nv_bfloat16>() + dim;
  args.k_batch = args.v_batch = c.keys * 2 * dim;
  args.k_row = args.v_row = 2 * dim;
  args.batch = c.batch;
  args.queries = c.queries;
  args.keys = c.keys;
  args.heads = c.heads;
  args.scale = 1.0F / std::sqrt(128.0F);
  if (c.distinct > 0) args.distinct = distinct.as<int64_t>();
  const kernels::TextShape shape = c.shape.warps > 0 ? c.shape : kernels::text_shape(args);
  for (const Buffer* to : {&again, &out}) {
    args.out = to->data();
    kernels::text_attention(args, shape, nullptr);
  }
  const Fp8Rows direct(rows, dim);
  const Fp8Rows apart(rows, dim);
  args.out = direct.values.data();
  args.out_scales = direct.scales.as<float>();
  kernels::text_attention(args, shape, nullptr);
  quantise(out, rows, dim, apart);
  synchronize("text_attention");
  const bool quantised = same(direct.values, apart.values) && same(direct.scales, apart.scales);
  bool good = same(out, again) && out.intact() && again.intact() && direct.intact() && quantised;
  const std::vector<float> qs = floats(q, kB);
  const std::vector<float> kvs = floats(kv, kB);
  const std::vector<float> weight = norm.host<float>();
  const std::vector<float> got = floats(out, kB);
  double error = 0.0;
  double size = 0.0;
  for (int64_t row = 0; row < rows; row += std::max<int64_t>(rows / 40, 1)) {
    const float* x = qs.data() + row * dim;
    double square = 0.0;
    for (int64_t i = 0; i < dim; ++i)
      square += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    const double inverse = 1.0 / std::sqrt(square / static_cast<double>(dim) + 1e-6);
    const float* ks = kvs.data() + row / c.queries * c.keys * 2 * dim;
    const float* vs = ks + dim;
    for (int h = 0; h < c.heads; ++h) {
      std::vector<double> p(static_cast<size_t>(c.keys));
      double top = -1e300;
      for (int64_t n = 0; n < c.keys; ++n) {
        double dot = 0.0;
        for (int64_t i = h * 128; i < h * 128 + 128; ++i) {
          dot += static_cast<double>(x[i]) * inverse *
                 static_cast<double>(weight[static_cast<size_t>(i)]) *
                 static_cast<double>(ks[n * 2 * dim + i]);
        }
        p[static_cast<size_t>(n)] = dot / std::sqrt(128.0);
        top = std::max(top, p[static_cast<size_t>(n)]);
      }
      double sum = 0.0;
      for (double& e : p) sum += e = std::exp(e - top);
      for (int64_t i = h * 128; i < h * 128 + 128; ++i) {
        double want = 0.0;
        for (int64_t n = 0; n < c.keys; ++n) {
          want += p[static_cast<size_t>(n)] * static_cast<double>(vs[n * 2 * dim + i]);
        }
        want /= sum;
        const double d = static_cast<double>(got[static_cast<size_t>(row * dim + i)]) - want;
        error += d * d;
        size += want * want;
      }
    }
  }
  const double relative = std::sqrt(error / size);
  good = good && relative < 6e-3;
  report(good, "text attention, " + std::to_string(c.batch) + " x " + std::to_string(c.queries) +
                   " queries, " + std::to_string(c.distinct) + " of " + std::to_string(c.keys) +
                   " keys, " + std::to_string(c.heads) + " heads, " + std::to_string(shape.parts) +
                   " x " + std::to_string(shape.warps) + " warps: " + std::to_string(relative) +
                   (quantised ? "" : ", e4m3 differs"));
}

// k and v are the same in all calls, as they are for all queries of a layer.
void bench_text_attention(int64_t rows, int64_t distinct) {
  const int64_t dim = 1536;
  constexpr int kSets = 4;
  const Buffer q(static_cast<size_t>(rows * dim * kSets) * 2);
  const Buffer out(q.bytes());
  const Buffer scales(static_cast<size_t>(rows) * 4);
  const Buffer k(static_cast<size_t>(512 * dim) * 2);
  const Buffer v(k.bytes());
  const Buffer norm(static_cast<size_t>(dim) * 4);
  const Buffer count(8);
  fill(q, kB, 1, 2.0F);
  fill(k, kB, 2, 1.0F);
  fill(v, kB, 3, 1.0F);
  fill(norm, kF, 4, 1.0F);
  count.set(std::vector<int64_t>{distinct});
  kernels::TextAttentionArgs args;
  args.norm_q = norm.as<float>();
  args.eps = 1e-6F;
  args.k = k.data();
  args.v = v.data();
  args.k_row = args.v_row = dim;
  args.batch = 1;
  args.queries = rows;
  args.keys = 512;
  args.heads = 12;
  args.scale = 1.0F / std::sqrt(128.0F);
  args.distinct = count.as<int64_t>();
  for (const bool fp8 : {false, true}) {
    args.out_scales = fp8 ? scales.as<float>() : nullptr;
    const double us = microseconds([&](int i) {
      const int64_t at = i % kSets * rows * dim;
      args.q = q.as<__nv_bfloat16>() + at;
      args.out = out.as<__nv_bfloat16>() + at;
      kernels::text_attention(args, nullptr);
    });
    const std::string name =
        "norm and attention to " + std::to_string(distinct) + " keys" + (fp8 ? ", to e4m3" : "");
    print(name.c_str(), rows, us, static_cast<double>(rows * dim) * (fp8 ? 3.0 : 4.0));
  }
}

int run(bool with_bench) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no GPU, so no kernel of this program ran\n");
    return 77;
  }
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
  std::vector<TextCase> cases = {
      {1, 1, 1, 1, 1, {}},          {1, 33, 512, 1, 12, {}},   {2, 70, 512, 41, 12, {}},
      {1, 47, 512, 64, 12, {}},     {1, 100, 512, 65, 12, {}}, {1, 65, 512, 97, 12, {}},
      {2, 31, 200, 145, 3, {}},     {1, 16, 77, 77, 2, {}},    {1, 40, 130, 0, 5, {}},
      {1, 203, 512, 512, 12, {}},   {3, 15, 256, 33, 8, {}},   {1, 4680, 512, 61, 12, {}},
      {1, 799, 512, 400, 12, {}},   {1, 113, 40, 32, 4, {}},   {1, 64, 512, 61, 12, {1, 1}},
      {2, 37, 512, 130, 12, {1, 3}}};
  if (major >= 9) {  // clusters
    for (const TextCase& c :
         {TextCase{1, 99, 512, 61, 12, {4, 4}}, TextCase{1, 99, 512, 61, 12, {6, 2}},
          TextCase{2, 50, 512, 200, 12, {2, 2}}, TextCase{1, 130, 512, 61, 33, {}},
          TextCase{1, 50, 512, 61, 7, {2, 4}}}) {
      cases.push_back(c);
    }
  }
  for (const TextCase& c : cases) test_text_attention(c);
  if (with_bench) {
    for (const int64_t rows : {4680, 37440}) {
      for (const int64_t distinct : {61, 200, 400, 512}) bench_text_attention(rows, distinct);
    }
  }
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash::cuda

int main(int argc, char** argv) {
  return ultraflash::cuda::run(argc > 1 && std::strcmp(argv[1], "--bench") == 0);
}
