// Kernels over rows that write e4m3: norms, GELU and query/key preparation with quantisation fused
// against the same in separate passes; guard zones, the same bits twice. With --bench also their
// speed. Exit status 77 without a GPU.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "cuda/rows.cuh"
#include "ops/cuda/blas.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/quantise.cuh"

namespace ultraflash::cuda {
namespace {

// --- quantisation --------------------------------------------------------------------------------

void test_quantise(int64_t rows, int64_t dim) {
  const auto count = static_cast<size_t>(rows * dim);
  const Buffer x(count * 2);
  fill(x, kB, 1, 2.0F);
  const Fp8Rows got(rows, dim);
  quantise(x, rows, dim, got);
  synchronize("quantise_rows");
  const std::vector<float> in = floats(x, kB);
  const std::vector<uint8_t> values = got.values.host<uint8_t>();
  const std::vector<float> scales = got.scales.host<float>();
  int64_t wrong = 0;
  for (int64_t r = 0; r < rows; ++r) {
    float top = 1e-12F;
    for (int64_t i = 0; i < dim; ++i) {
      top = std::max(top, std::fabs(in[static_cast<size_t>(r * dim + i)]));
    }
    if (scales[static_cast<size_t>(r)] != top / kFp8Largest) ++wrong;
    const float factor = kFp8Largest / top;
    for (int64_t i = 0; i < dim; ++i) {
      const auto at = static_cast<size_t>(r * dim + i);
      if (to_float8_e4m3(in[at] * factor).bits != values[at]) ++wrong;
    }
  }
  const std::string name = std::to_string(rows) + " rows of " + std::to_string(dim);
  report(wrong == 0 && got.intact(),
         "quantise_rows, " + name + ": " + std::to_string(wrong) + " differ from the host's");
}

// GELU of the rounded sum, in place.
void test_finish(int64_t rows, int64_t dim) {
  const Buffer y(static_cast<size_t>(rows * dim) * 2);
  const Buffer bias(static_cast<size_t>(dim) * 4);
  fill(y, kB, 1, 2.0F);
  fill(bias, kF, 2, 0.5F);
  const std::vector<float> in = floats(y, kB);
  const std::vector<float> b = bias.host<float>();
  kernels::finish_product(y.data(), bias.as<float>(), rows, dim, Activation::kGeluTanh, nullptr);
  synchronize("finish_product");
  const std::vector<float> result = floats(y, kB);
  int64_t wrong = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    const double v = static_cast<double>(in[i]) + static_cast<double>(b[i % b.size()]);
    const double want =
        0.5 * v * (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    if (!(std::fabs(static_cast<double>(result[i]) - want) <= std::fabs(want) / 250.0 + 1e-6)) {
      ++wrong;
    }
  }
  report(wrong == 0 && y.intact(), "finish_product, " + std::to_string(rows) + " rows of " +
                                       std::to_string(dim) + ": " + std::to_string(wrong) + " off");
}

// --- norms ---------------------------------------------------------------------------------------

struct NormCase {
  int64_t batch, tokens, dim, vectors;  // `vectors` rows of modulation for each sample
  bool residual, gate, modulated;
};

void test_norm(const NormCase& c) {
  const int64_t rows = c.batch * c.tokens;
  const auto bytes = static_cast<size_t>(rows * c.dim) * 2;
  const Buffer x(bytes);
  const Buffer y(bytes);
  const Buffer x_out(bytes);
  const Buffer n(bytes);
  const Buffer n_first(bytes);
  const Buffer modulation(static_cast<size_t>(c.batch * c.vectors * 6 * c.dim) * 4);
  fill(x, kB, 1, 1.5F);
  fill(y, kB, 2, 1.0F);
  fill(modulation, kF, 3, 0.4F);
  kernels::ResidualNormArgs args;
  args.dtype = DType::kBF16;
  args.rows = rows;
  args.dim = c.dim;
  args.tokens = c.tokens;
  args.tokens_per_row = c.tokens / c.vectors;
  args.x = x.data();
  args.eps = 1e-6F;
  args.one_plus_scale = c.modulated;
  const auto vector = [&](int64_t which) {
    return kernels::RowVectors{modulation.as<float>() + which * c.dim, c.vectors * 6 * c.dim,
                               6 * c.dim};
  };
  if (c.residual) {
    args.y = y.data();
    args.x_out = x_out.data();
    if (c.gate) args.gate = vector(0);
  }
  if (c.modulated) {
    args.scale = vector(1);
    args.shift = vector(2);
  }
  args.n_out = n_first.data();
  kernels::residual_norm(args, nullptr);
  args.n_out = n.data();
  kernels::residual_norm(args, nullptr);
  synchronize("residual_norm");
  bool good = same(n, n_first);
  // The norm itself, of some rows.
  const std::vector<float> in = floats(x, kB);
  const std::vector<float> update = floats(y, kB);
  const std::vector<float> vectors = modulation.host<float>();
  const std::vector<float> got = floats(n, kB);
  const std::vector<float> kept = floats(x_out, kB);
  double worst = 0.0;
  for (int64_t row = 0; row < rows; row += std::max<int64_t>(rows / 50, 1)) {
    const int64_t which = row / c.tokens * c.vectors + row % c.tokens / args.tokens_per_row;
    const float* m = vectors.data() + which * 6 * c.dim;
    std::vector<double> v(static_cast<size_t>(c.dim));
    double mean = 0.0;
    for (int64_t i = 0; i < c.dim; ++i) {
      const auto at = static_cast<size_t>(row * c.dim + i);
      double value = static_cast<double>(in[at]);
      if (c.residual) {
        value += static_cast<double>(update[at]) * (c.gate ? static_cast<double>(m[i]) : 1.0);
        if (std::fabs(static_cast<double>(kept[at]) - value) > std::fabs(value) / 250.0 + 1e-6) {
          good = false;
        }
        value = static_cast<double>(kept[at]);
      }
      v[static_cast<size_t>(i)] = value;
      mean += value / static_cast<double>(c.dim);
    }
    double variance = 0.0;
    for (const double value : v) variance += (value - mean) * (value - mean);
    const double inverse = 1.0 / std::sqrt(variance / static_cast<double>(c.dim) + 1e-6);
    for (int64_t i = 0; i < c.dim; ++i) {
      double want = (v[static_cast<size_t>(i)] - mean) * inverse;
      if (c.modulated) {
        want = want * (1.0 + static_cast<double>(m[c.dim + i])) +
               static_cast<double>(m[2 * c.dim + i]);
      }
      const double d =
          std::fabs(static_cast<double>(got[static_cast<size_t>(row * c.dim + i)]) - want);
      worst = std::max(worst, d / (std::fabs(want) / 250.0 + 1e-5));
    }
  }
  // In e4m3: what the pass that quantises makes of the bf16 rows.
  bool quantised = true;
  if (kernels::norm_quantises(args)) {
    const Fp8Rows direct(rows, c.dim);
    const Fp8Rows apart(rows, c.dim);
    kernels::ResidualNormArgs fp8 = args;
    fp8.n_out = direct.values.data();
    fp8.n_scales = direct.scales.as<float>();
    kernels::residual_norm(fp8, nullptr);
    quantise(n, rows, c.dim, apart);
    synchronize("residual_norm to e4m3");
    quantised =
        same(direct.values, apart.values) && same(direct.scales, apart.scales) && direct.intact();
  }
  good = good && worst <= 1.0 && n.intact() && x_out.intact() && quantised;
  report(good, "norm, " + std::to_string(c.batch) + " x " + std::to_string(c.tokens) + " x " +
                   std::to_string(c.dim) + ", " + std::to_string(c.vectors) + " vectors" +
                   (c.residual ? ", residual" : "") + ": worst " + std::to_string(worst) +
                   " of the bound" + (quantised ? "" : ", e4m3 differs"));
}

// --- query and key preparation -------------------------------------------------------------------

struct QkvCase {
  int64_t batch, frames, height, width;
  int heads;
  int64_t first_frame, first_slot, ring_begin, ring_end;
};

// Buffers of one chunk; `element` bytes each of q, k and v.
struct Chunk {
  Buffer q, k, v, scales;
  Chunk(const QkvCase& c, int64_t tokens, int64_t cache, size_t element)
      : q(static_cast<size_t>(c.batch * tokens * c.heads * 128) * element),
        k(static_cast<size_t>(c.batch * cache * c.heads * 128) * element),
        v(static_cast<size_t>(c.batch * (cache + 127) / 128 * 128 * c.heads * 128 + 128 * 128) *
          element),
        scales(static_cast<size_t>(c.heads) * 4) {
    for (const Buffer* b : {&q, &k, &v}) check(cudaMemset(b->data(), 0x3c, b->bytes()), "memset");
  }
  [[nodiscard]] bool intact() const {
    return q.intact() && k.intact() && v.intact() && scales.intact();
  }
};

std::vector<float> axis_table(int64_t positions, int64_t pairs) {
  std::vector<float> table;
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t j = 0; j < pairs; ++j) {
      const double angle = static_cast<double>(p) *
                           std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(pairs));
      table.push_back(static_cast<float>(std::cos(angle)));
      table.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

struct QkvInputs {
  int64_t tokens, cache, dim;
  Buffer qkv, qkv_f32, norm_q, norm_k, height, width, frequency, place;
  explicit QkvInputs(const QkvCase& c)
      : tokens(c.frames * c.height * c.width),
        cache(c.ring_end * c.height * c.width),
        dim(c.heads * 128),
        qkv(static_cast<size_t>(c.batch * tokens * 3 * dim) * 2),
        qkv_f32(qkv.bytes() * 2),
        norm_q(static_cast<size_t>(dim) * 4),
        norm_k(static_cast<size_t>(dim) * 4),
        height(static_cast<size_t>(c.height * 21) * 8),
        width(static_cast<size_t>(c.width * 21) * 8),
        frequency(22 * 8),
        place(sizeof(kernels::PlaceNumbers)) {
    fill(qkv, kB, 1, 1.0F);
    qkv_f32.set(floats(qkv, kB));
    fill(norm_q, kF, 2, 1.0F);
    fill(norm_k, kF, 3, 0.5F);
    height.set(axis_table(c.height, 21));
    width.set(axis_table(c.width, 21));
    std::vector<double> f;
    for (int j = 0; j < 22; ++j) f.push_back(std::pow(10000.0, -j / 22.0));
    frequency.set(f);
    kernels::PlaceNumbers numbers;
    numbers.first_frame = c.first_frame;
    numbers.first_slot = c.first_slot;
    numbers.ring_begin = c.ring_begin;
    numbers.ring_end = c.ring_end;
    place.set(std::vector<kernels::PlaceNumbers>{numbers});
  }
  [[nodiscard]] kernels::QkvArgs args(const QkvCase& c, const Chunk& out, DType dtype) const {
    kernels::QkvArgs a;
    a.dtype = dtype;
    a.qkv = dtype == DType::kF32 ? qkv_f32.data() : qkv.data();
    a.norm_q = norm_q.as<float>();
    a.norm_k = norm_k.as<float>();
    a.eps = 1e-6F;
    a.batch = c.batch;
    a.dim = dim;
    a.heads = c.heads;
    a.head_dim = 128;
    a.grid = {c.frames, c.height, c.width};
    a.rotary.height = height.as<float>();
    a.rotary.width = width.as<float>();
    a.rotary.frequency = frequency.as<double>();
    a.rotary.pairs_time = 22;
    a.rotary.pairs_space = 21;
    a.place = place.data();
    a.q = out.q.data();
    a.k = out.k.data();
    a.v = out.v.data();
    return a;
  }
};

float from_fp8(uint8_t x) { return to_float(Float8E4M3{x}); }

void test_qkv(const QkvCase& c) {
  const QkvInputs in(c);
  const Chunk exact(c, in.tokens, in.cache, 4);
  const Chunk got(c, in.tokens, in.cache, 1);
  const Chunk again(c, in.tokens, in.cache, 1);
  kernels::qkv_to_cache(in.args(c, exact, DType::kF32), in.cache, nullptr);
  for (const Chunk* chunk : {&got, &again}) {
    kernels::QkvArgs args = in.args(c, *chunk, DType::kBF16);
    args.scales = chunk->scales.as<float>();
    kernels::qkv_to_cache(args, in.cache, nullptr);
  }
  synchronize("qkv_to_cache");
  bool good = same(got.q, again.q) && same(got.k, again.k) && same(got.v, again.v) &&
              same(got.scales, again.scales) && got.intact() && exact.intact();
  // Scales, of a head's largest weights.
  const std::vector<float> norms[2] = {in.norm_q.host<float>(), in.norm_k.host<float>()};
  std::vector<double> scale[2];
  for (int part = 0; part < 2; ++part) {
    for (int h = 0; h < c.heads; ++h) {
      double top = 0.0;
      for (int i = 0; i < 128; ++i) {
        top = std::max(
            top, std::fabs(static_cast<double>(norms[part][static_cast<size_t>(h * 128 + i)])));
      }
      scale[part].push_back(top * std::sqrt(static_cast<double>(in.dim)) / 448.0);
    }
  }
  const std::vector<float> scales = got.scales.host<float>();
  for (size_t h = 0; h < scales.size(); ++h) {
    if (std::fabs(static_cast<double>(scales[h]) / (scale[0][h] * scale[1][h]) - 1.0) > 1e-5) {
      good = false;
    }
  }
  // q and k to within half a step of e4m3 (and of its subnormals).
  double worst = 0.0;
  int64_t untouched = 0;
  const auto compare = [&](const Buffer& x8, const Buffer& x32, int part) {
    const std::vector<uint8_t> eight = x8.host<uint8_t>();
    const std::vector<float> want = x32.host<float>();
    for (size_t i = 0; i < want.size(); ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, &want[i], 4);
      if (bits == 0x3c3c3c3cU && eight[i] == 0x3c) {  // not of this chunk
        ++untouched;
        continue;
      }
      const double s = scale[part][i % static_cast<size_t>(in.dim) / 128];
      const double d =
          std::fabs(static_cast<double>(from_fp8(eight[i])) * s - static_cast<double>(want[i]));
      worst = std::max(worst, d / (std::fabs(static_cast<double>(want[i])) / 15.9 + s / 1000.0));
    }
  };
  compare(got.q, exact.q, 0);
  compare(got.k, exact.k, 1);
  const int64_t expected_untouched = c.batch * (in.cache - in.tokens) * in.dim;
  // v, transposed.
  const std::vector<uint8_t> v8 = got.v.host<uint8_t>();
  std::vector<uint8_t> want(v8.size(), 0x3c);
  const std::vector<float> qkv = floats(in.qkv, kB);
  const int64_t per_frame = c.height * c.width;
  const int64_t blocks = (in.cache + 127) / 128;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t t = 0; t < in.tokens; ++t) {
      int64_t slot = c.first_slot + t / per_frame;
      if (slot >= c.ring_end) slot = c.ring_begin + slot - c.ring_end;
      const int64_t row = slot * per_frame + t % per_frame;
      for (int64_t d = 0; d < in.dim; ++d) {
        const int64_t at = ((b * blocks + row / 128) * in.dim + d) * 128 + row % 128 / 16 * 16 +
                           fp8_key_place(static_cast<int>(row % 16));
        want[static_cast<size_t>(at)] =
            to_float8_e4m3(qkv[static_cast<size_t>(((b * in.tokens + t) * 3 + 2) * in.dim + d)])
                .bits;
      }
    }
  }
  const bool values = v8 == want;
  good = good && worst <= 1.0 && untouched == expected_untouched && values;
  report(good, "e4m3 cache, " + std::to_string(c.frames) + " x " + std::to_string(c.height) +
                   " x " + std::to_string(c.width) + ", " + std::to_string(c.heads) +
                   " heads: worst " + std::to_string(worst) + " of the bound" +
                   (untouched == expected_untouched ? "" : ", wrote outside its slots") +
                   (values ? "" : ", v differs"));
}

// --- speed ---------------------------------------------------------------------------------------

void bench(int64_t rows, int64_t vectors) {
  constexpr int kSets = 5;
  const int64_t dim = 1536;
  const auto elements = static_cast<double>(rows * dim);
  const Buffer x(static_cast<size_t>(rows * dim * kSets) * 2);
  const Buffer y(x.bytes());
  const Buffer n(x.bytes());
  const Buffer n8(x.bytes() / 2);
  const Buffer scales(static_cast<size_t>(rows) * 4);
  const Buffer modulation(static_cast<size_t>(vectors * 3 * dim) * 4);
  fill(x, kB, 1, 1.0F);
  fill(y, kB, 2, 1.0F);
  fill(modulation, kF, 3, 0.01F);
  kernels::ResidualNormArgs args;
  args.dtype = DType::kBF16;
  args.rows = args.tokens = rows;
  args.dim = dim;
  args.tokens_per_row = rows / vectors;
  args.eps = 1e-6F;
  args.one_plus_scale = true;
  args.gate = {modulation.as<float>(), 0, 3 * dim};
  args.scale = {modulation.as<float>() + dim, 0, 3 * dim};
  args.shift = {modulation.as<float>() + 2 * dim, 0, 3 * dim};
  double us = microseconds([&](int i) {
    const int64_t at = i % kSets * rows * dim;
    args.x = args.x_out = x.as<__nv_bfloat16>() + at;
    args.y = y.as<__nv_bfloat16>() + at;
    args.n_out = n.as<__nv_bfloat16>() + at;
    kernels::residual_norm(args, nullptr);
  });
  print("residual, norm, modulation", rows, us, elements * 8.0);
  args.n_scales = scales.as<float>();
  us = microseconds([&](int i) {
    const int64_t at = i % kSets * rows * dim;
    args.x = args.x_out = x.as<__nv_bfloat16>() + at;
    args.y = y.as<__nv_bfloat16>() + at;
    args.n_out = n8.data() + at;
    kernels::residual_norm(args, nullptr);
  });
  print("residual, norm, modulation, to e4m3", rows, us, elements * 7.0);
  kernels::QuantiseArgs q;
  q.rows = rows;
  q.dim = dim;
  q.scales = scales.as<float>();
  us = microseconds([&](int i) {
    q.x = n.as<__nv_bfloat16>() + i % kSets * rows * dim;
    q.y = n8.data() + i % kSets * rows * dim;
    kernels::quantise_rows(q, nullptr);
  });
  print("quantise", rows, us, elements * 3.0);
  const int64_t wide = 8960;
  const int64_t wide_sets = rows < 8192 ? 3 : 1;  // 126 MB each at 4680 rows
  const Buffer hidden(static_cast<size_t>(rows * wide * wide_sets) * 2);
  const Buffer hidden8(static_cast<size_t>(rows * wide * wide_sets));
  fill(hidden, kB, 5, 1.0F);
  q.dim = wide;
  us = microseconds([&](int i) {
    q.x = hidden.as<__nv_bfloat16>() + i % wide_sets * rows * wide;
    q.y = hidden8.data() + i % wide_sets * rows * wide;
    kernels::quantise_rows(q, nullptr);
  });
  print("quantise, 8960", rows, us, static_cast<double>(rows * wide) * 3.0);
}

void bench_qkv() {
  const QkvCase c{1, 3, 30, 52, 12, 30, 9, 0, 21};
  constexpr int kSets = 3;
  std::vector<std::unique_ptr<QkvInputs>> in;
  std::vector<std::unique_ptr<Chunk>> out;
  for (int i = 0; i < kSets; ++i) {
    in.push_back(std::make_unique<QkvInputs>(c));
    out.push_back(std::make_unique<Chunk>(c, in[0]->tokens, in[0]->cache, 2));
  }
  const auto elements = static_cast<double>(in[0]->tokens * in[0]->dim);
  for (const bool fp8 : {false, true}) {
    const double us = microseconds([&](int i) {
      const auto set = static_cast<size_t>(i % kSets);
      kernels::QkvArgs args = in[set]->args(c, *out[set], DType::kBF16);
      args.scales = fp8 ? out[set]->scales.as<float>() : nullptr;
      kernels::qkv_to_cache(args, in[set]->cache, nullptr);
    });
    print(fp8 ? "query and key preparation, e4m3" : "query and key preparation", in[0]->tokens, us,
          elements * (fp8 ? 9.0 : 12.0));
  }
}

// Which epilogues the library has for row-wise scales, at the first feed-forward product.
void print_epilogues() {
  std::string why;
  const std::unique_ptr<Blas> blas = Blas::create(why);
  if (blas == nullptr) return;
  const int64_t rows = 4680;
  const Buffer x(static_cast<size_t>(rows * 1536));
  const Buffer w(static_cast<size_t>(8960 * 1536));
  const Buffer y(static_cast<size_t>(rows * 8960) * 2);
  const Buffer scales(8960 * 4);
  const Buffer bias(8960 * 2);
  const Buffer workspace(size_t{64} << 20);
  check(cudaMemset(x.data(), 0x30, x.bytes()), "memset");
  check(cudaMemset(w.data(), 0x30, w.bytes()), "memset");
  for (const bool with_bias : {true, false}) {
    for (const Activation activation : {Activation::kGeluTanh, Activation::kNone}) {
      ProductArgs args;
      args.dtype = DType::kBF16;
      args.x = x.data();
      args.w = w.data();
      args.y = y.data();
      args.x_scales = args.w_scales = scales.as<float>();
      args.rows = rows;
      args.in = 1536;
      args.out = 8960;
      args.bias = with_bias ? bias.data() : nullptr;
      args.activation = activation;
      const auto go = [&] {
        return blas->product(args, workspace.data(), workspace.bytes(), nullptr);
      };
      const bool there = go();
      std::printf("fp8 product with row-wise scales%s%s: %s", with_bias ? ", bias" : "",
                  activation == Activation::kNone ? "" : ", GELU", there ? "yes" : "no");
      if (there) std::printf(", %.1f us", microseconds([&](int) { go(); }));
      std::printf("\n");
    }
  }
}

int run(bool with_bench) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no GPU, so no kernel of this program ran\n");
    return 77;
  }
  for (const int64_t dim : {8, 64, 1536, 2048, 2056, 8960, 16384}) test_quantise(37, dim);
  test_quantise(1, 1536);
  for (const int64_t dim : {8, 1536, 8960}) test_finish(37, dim);
  for (const NormCase& c :
       {NormCase{1, 5, 1536, 1, true, true, true}, NormCase{2, 12, 1536, 3, true, true, true},
        NormCase{1, 4680, 1536, 3, true, true, true}, NormCase{1, 1561, 1536, 1, true, false, true},
        NormCase{1, 799, 1024, 1, false, false, true}, NormCase{2, 203, 1528, 1, true, true, false},
        NormCase{2, 24, 1408, 2, true, true, true}, NormCase{1, 8, 128, 2, false, false, true},
        NormCase{1, 156, 2048, 3, true, true, true}, NormCase{1, 77, 2048, 7, true, true, true},
        NormCase{1, 113, 2056, 1, true, true, true}, NormCase{3, 1, 64, 1, false, false, false}}) {
    test_norm(c);
  }
  for (const QkvCase& c :
       {QkvCase{1, 1, 1, 1, 1, 0, 0, 0, 1}, QkvCase{1, 3, 5, 7, 2, 3, 4, 1, 6},
        QkvCase{2, 2, 9, 13, 3, 100000, 1, 0, 3}, QkvCase{1, 3, 30, 52, 12, 18, 6, 0, 12},
        QkvCase{1, 1, 4, 5, 13, 7, 0, 0, 2}}) {
    test_qkv(c);
  }
  if (with_bench) {
    bench(4680, 3);
    bench(37440, 1);
    bench_qkv();
    print_epilogues();
  }
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash::cuda

int main(int argc, char** argv) {
  return ultraflash::cuda::run(argc > 1 && std::strcmp(argv[1], "--bench") == 0);
}
