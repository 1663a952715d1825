// The networks of the cascade at full size with random weights: bf16 and fp8 on the GPU against f32
// on the same GPU (true f32, own plain kernels for attention). Prints the relative error of each
// and exits with 1 when one passes its limit; 77 without a GPU. The block masks of the SR DiT are
// those that the f32 run chose.
//
//   full_size_check [2k]     2k: the SR DiT at 1440x2496 instead of 960x1664
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/latent_upsampler.h"
#include "models/sparse_sr_dit.h"
#include "models/tiny_decoder.h"
#include "models/wan_dit.h"
#include "ops/devices.h"
#include "weights/parameter_source.h"

namespace ultraflash {
namespace {

struct Mode {
  const char* name;
  DType compute;
  bool fp8;
  bool fp8_attention;
  bool fast_sums;
  double limit;
};
constexpr Mode kModes[] = {{"f32", DType::kF32, false, false, false, 0.0},
                           {"bf16", DType::kBF16, false, false, false, 2e-2},
                           {"fp8", DType::kBF16, true, false, false, 8e-2},
                           {"fp8 fast", DType::kBF16, true, false, true, 8e-2},
                           {"fp8 attention", DType::kBF16, false, true, false, 8e-2},
                           {"fp8 both", DType::kBF16, true, true, false, 8e-2}};

struct Run {
  Executor& ops;
  const Mode& mode;

  template <typename Bind>
  auto load(uint64_t seed, const Bind& bind) const {
    RandomSource source(seed, DType::kF32);
    Binder binder(source, "random");
    LoadTarget target;
    target.executor = &ops;
    target.compute = mode.compute;
    auto network = bind(Loader(binder, target));
    if (const Status status = binder.finish(); !status.ok()) throw Error(status);
    return network;
  }
  // The same numbers for every mode, rounded to its type.
  [[nodiscard]] Tensor noise(uint64_t stream, const Shape& shape) const {
    return ops.normal({7, stream}, shape, mode.compute);
  }
  [[nodiscard]] Tensor result(const Tensor& x) const {
    return ops.to_host(ops.cast(x, DType::kF32));
  }
};

WanDitConfig full_transformer(int64_t in) {
  WanDitConfig config;
  config.dim = 1536;
  config.ffn_dim = 8960;
  config.num_layers = 30;
  config.num_heads = 12;
  config.in_dim = in;
  config.out_dim = 16;
  config.freq_dim = 256;
  config.text_dim = 4096;
  config.text_len = 512;
  return config;
}

// A prompt of 60 tokens and padding.
TextKv text_of(const Run& r, const WanDit& network) {
  constexpr int64_t kTokens = 60;
  Tensor embeddings = r.ops.zeros(r.mode.compute, {1, 512, 4096});
  const Tensor prompt = r.noise(1, {1, kTokens, 4096});
  r.ops.copy(embeddings.slice(1, 0, kTokens), prompt);
  return network.text(r.ops, embeddings, kTokens);
}

// The second chunk of a stream, so that the cache is read too.
std::vector<Tensor> generator(const Run& r) {
  const WanDit network =
      r.load(1, [&](Loader l) { return WanDit::bind(l, full_transformer(16), r.mode.compute); });
  const double timestep = 937.5;
  const TimeModulation time = network.time(r.ops, {&timestep, 1});
  const TextKv text = text_of(r, network);
  KvState state = make_kv_state(r.ops, network, 1, 6, 1560);
  Tensor flow;
  for (int64_t chunk = 0; chunk < 2; ++chunk) {
    CausalPass pass;
    pass.time = &time;
    pass.text = &text;
    pass.place.first_frame = pass.place.first_slot = 3 * chunk;
    pass.place.ring_end = 6;
    pass.place.visible_frames = 3 * chunk + 3;
    r.ops.update_place(pass.place);
    flow = run_causal(r.ops, network,
                      r.noise(10 + static_cast<uint64_t>(chunk), {1, 3, 60, 104, 16}), state, pass);
  }
  return {r.result(flow)};
}

std::vector<Tensor> upsampler(const Run& r) {
  const LatentUpsampler network =
      r.load(2, [](Loader l) { return LatentUpsampler::bind(l, LatentUpsamplerConfig{}); });
  UpsamplerState state;
  return {r.result(network.run(r.ops, r.noise(2, {1, 6, 60, 104, 16}), state))};
}

std::vector<Tensor> decoder(const Run& r) {
  const TinyDecoder network =
      r.load(3, [](Loader l) { return TinyDecoder::bind(l, TinyDecoderConfig{}); });
  DecoderState state;
  return {r.result(network.run(r.ops, r.noise(3, {1, 2, 120, 208, 16}), state))};
}

// Two groups, so that the second sees cached blocks.
struct Refiner {
  int64_t height, width;
  std::vector<std::vector<Tensor>> masks;  // per group and layer, of the first run

  std::vector<Tensor> operator()(const Run& r) {
    SparseSrDitConfig config;
    config.transformer = full_transformer(32);
    config.local_range = 9;
    config.ref_spatial_tokens = 1560;
    config.stream_chunk_size = 2;
    const SparseSrDit network = r.load(4, [&](Loader l) { return SparseSrDit::bind(l, config); });
    const double timestep = 1000.0;
    const TimeModulation time = network.transformer().time(r.ops, {&timestep, 1});
    const TextKv text = text_of(r, network.transformer());
    SparseSrState state = network.make_state(r.ops, 1, height / 2, width / 2, 6, 3);
    std::vector<Tensor> flows;
    const bool first_run = masks.empty();
    for (uint64_t group = 0; group < 2; ++group) {
      const Shape shape{1, 6, height, width, 16};
      SparseSrPass pass;
      pass.time = &time;
      pass.text = &text;
      std::vector<Tensor> chosen;
      if (first_run) {
        pass.chosen_masks = &chosen;
      } else {
        pass.injected_masks = &masks[group];
      }
      flows.push_back(r.result(
          network.run(r.ops, r.noise(20 + group, shape), r.noise(30 + group, shape), state, pass)));
      // Out of the executor's memory for results, which the next group uses again.
      for (Tensor& mask : chosen) mask = mask.copy();
      if (first_run) masks.push_back(std::move(chosen));
    }
    return flows;
  }
};

double relative_error(const Tensor& got, const Tensor& expected) {
  double error = 0.0;
  double norm = 0.0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    const auto e = static_cast<double>(expected.data<float>()[i]);
    const double d = static_cast<double>(got.data<float>()[i]) - e;
    error += d * d;
    norm += e * e;
  }
  return std::sqrt(error / norm);
}

int compare(const char* name, const std::function<std::vector<Tensor>(const Run&)>& network) {
  int failures = 0;
  std::vector<Tensor> expected;
  for (const Mode& mode : kModes) {
    ExecutorOptions options;
    options.device = "cuda";
    options.fp8_products = mode.fp8;
    options.fp8_attention = mode.fp8_attention;
    options.fp8_fast_sums = mode.fast_sums;
    const bool skipped = (mode.fp8_attention || mode.fast_sums) && !make_executor(options).ok();
    if (skipped) {  // not a Hopper GPU
      std::printf("SKIPPED %s %s\n", name, mode.name);
      continue;
    }
    Result<std::unique_ptr<Executor>> made = make_executor(options);
    if (!made.ok()) {
      std::printf("SKIPPED: %s\n", made.status().message().c_str());
      return -1;
    }
    std::vector<Tensor> got = network({**made, mode});
    for (Tensor& x : got) x = x.copy();
    if (expected.empty()) {
      expected = std::move(got);
      continue;
    }
    for (size_t i = 0; i < got.size(); ++i) {
      const double error = relative_error(got[i], expected[i]);
      const bool good = error <= mode.limit;
      std::printf("%s %-10s %-13s result %zu: relative error %.2e (limit %.0e)\n",
                  good ? "ok  " : "FAIL", name, mode.name, i, error, mode.limit);
      if (!good) ++failures;
    }
  }
  return failures;
}

int run(bool two_k) {
  int failures = compare("generator", generator);
  if (failures < 0) return 77;
  failures += compare("upsampler", upsampler);
  failures += compare("decoder", decoder);
  Refiner refiner{two_k ? 180 : 120, two_k ? 312 : 208, {}};
  failures += compare("SR DiT", [&](const Run& r) { return refiner(r); });
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash

int main(int argc, char** argv) {
  try {
    return ultraflash::run(argc > 1 && std::strcmp(argv[1], "2k") == 0);
  } catch (const ultraflash::Error& error) {
    std::printf("FAIL %s\n", error.status().message().c_str());
    return 1;
  }
}
