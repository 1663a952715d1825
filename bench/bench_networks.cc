// bench_networks: the time of one call of one network in its steady state, for comparison with
// other implementations. The cases stand in network_cases.json; weights are random. Text keys and
// values and the timestep's modulation are made outside the measured call, as in a stream.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "models/latent_upsampler.h"
#include "models/sparse_sr_dit.h"
#include "models/tiny_decoder.h"
#include "models/umt5.h"
#include "models/wan_dit.h"
#include "models/wan_vae.h"
#include "ops/devices.h"
#include "recipes/json_fields.h"
#include "stream/cache_policy.h"
#include "ultraflash/version.h"

namespace ultraflash {
namespace {

/// Runs the network once on prepared inputs.
using Call = std::function<void()>;

template <typename T>
T value_of(Result<T> result) {
  if (!result.ok()) throw Error(result.status());
  return *std::move(result);
}

struct Case {
  nlohmann::json json;
  Executor& ops;
  DType compute;

  template <typename Config>
  [[nodiscard]] Config config() const {
    Config config;
    Status status;
    JsonReader reader(json.at("config"), "config", status);
    config.visit_fields(reader);
    reader.finish();
    if (status.ok()) status = config.validate();
    if (!status.ok()) throw Error(status);
    return config;
  }

  /// bind(Loader) with random weights.
  template <typename Bind>
  auto load(const Bind& bind) const {
    RandomSource source(7);
    Binder binder(source, json.at("name").get<std::string>());
    LoadTarget target;
    target.executor = &ops;
    target.compute = compute;
    auto network = bind(Loader(binder, target));
    if (const Status status = binder.finish(); !status.ok()) throw Error(status);
    return std::make_shared<decltype(network)>(std::move(network));
  }

  [[nodiscard]] Tensor normal(const Shape& shape, uint64_t index) const {
    return ops.normal(make_random_stream(1, RandomPurpose::kTest, index), shape, compute);
  }
  /// [1, frames, height, width, channels] of the sizes listed under `key`.
  [[nodiscard]] Tensor video(const char* key, int64_t channels, uint64_t index) const {
    const auto sizes = json.at(key).get<std::vector<int64_t>>();
    return normal({1, sizes.at(0), sizes.at(1), sizes.at(2), channels}, index);
  }
  [[nodiscard]] TextKv text(const WanDit& network) const {
    const WanDitConfig& c = network.config();
    return network.text(ops, normal({1, c.text_len, c.text_dim}, 90));
  }
};

Call causal_wan(const Case& c) {
  const auto config = c.config<WanDitConfig>();
  const auto network = c.load([&](Loader l) { return WanDit::bind(l, config, c.compute); });
  const Tensor latent = c.video("latent", config.in_dim, 1);
  const int64_t chunk = latent.dim(1);
  const int64_t tokens = latent.dim(2) / 2 * (latent.dim(3) / 2);
  CachePolicy policy;
  policy.kind = CacheKind::kWindow;
  policy.capacity_frames = c.json.at("cache_frames").get<int64_t>();
  CacheRing ring(policy);
  const auto state =
      std::make_shared<KvState>(make_kv_state(c.ops, *network, 1, policy.capacity_frames, tokens));
  const auto time = std::make_shared<TimeModulation>(
      network->time(c.ops, std::vector<double>(static_cast<size_t>(1), 500.0)));
  const auto text = std::make_shared<TextKv>(c.text(*network));
  CausalPass pass;
  for (int64_t frame = 0; frame < policy.capacity_frames; frame += chunk) {
    pass.place = value_of(ring.append(chunk, frame));
    c.ops.update_place(pass.place);
    pass.time = time.get();
    pass.text = text.get();
    run_causal(c.ops, *network, latent, *state, pass);
  }
  return [&ops = c.ops, network, latent, state, time, text, pass] {
    run_causal(ops, *network, latent, *state, pass);
  };
}

Call wan_bidirectional(const Case& c) {
  const auto config = c.config<WanDitConfig>();
  const auto network = c.load([&](Loader l) { return WanDit::bind(l, config, c.compute); });
  const Tensor latent = c.video("latent", config.in_dim, 1);
  const auto time = std::make_shared<TimeModulation>(
      network->time(c.ops, std::vector<double>(static_cast<size_t>(1), 500.0)));
  const auto text = std::make_shared<TextKv>(c.text(*network));
  return [&ops = c.ops, network, latent, time, text] {
    run_bidirectional(ops, *network, latent, *time, *text);
  };
}

Call sparse_sr_dit(const Case& c) {
  const auto config = c.config<SparseSrDitConfig>();
  const auto network = c.load([&](Loader l) { return SparseSrDit::bind(l, config); });
  const int64_t channels = config.transformer.in_dim / 2;
  const Tensor noise = c.video("latent", channels, 1);
  const Tensor condition = c.video("latent", channels, 2);
  const auto kv_len = c.json.at("kv_len").get<int64_t>();
  const auto state = std::make_shared<SparseSrState>(
      network->make_state(c.ops, 1, noise.dim(2) / 2, noise.dim(3) / 2, noise.dim(1), kv_len));
  const auto time = std::make_shared<TimeModulation>(
      network->transformer().time(c.ops, std::vector<double>(static_cast<size_t>(1), 1000.0)));
  const auto text = std::make_shared<TextKv>(c.text(network->transformer()));
  return [&ops = c.ops, network, noise, condition, state, time, text, kv_len] {
    SparseSrPass pass;
    pass.time = time.get();
    pass.text = text.get();
    pass.kv_len = kv_len;
    network->run(ops, noise, condition, *state, pass);
  };
}

Call latent_upsampler(const Case& c) {
  const auto config = c.config<LatentUpsamplerConfig>();
  const auto network = c.load([&](Loader l) { return LatentUpsampler::bind(l, config); });
  const Tensor latent = c.video("latent", config.in_channels, 1);
  return [&ops = c.ops, network, latent, state = std::make_shared<UpsamplerState>()] {
    network->run(ops, latent, *state);
  };
}

Call tiny_decoder(const Case& c) {
  const auto config = c.config<TinyDecoderConfig>();
  const auto network = c.load([&](Loader l) { return TinyDecoder::bind(l, config); });
  const Tensor latent = c.video("latent", config.latent_channels, 1);
  return [&ops = c.ops, network, latent, state = std::make_shared<DecoderState>()] {
    network->run(ops, latent, *state);
  };
}

Call tiny_encoder(const Case& c) {
  const auto config = c.config<TinyEncoderConfig>();
  const auto network =
      c.load([&](Loader l) { return TinyEncoder::bind(l, config, MemoryInit::kZero); });
  const Tensor pictures = c.video("pictures", 3, 1);
  return [&ops = c.ops, network, pictures, state = std::make_shared<MemoryState>()] {
    network->run(ops, pictures, *state);
  };
}

Call wan_vae(const Case& c, bool decode) {
  const auto config = c.config<WanVaeConfig>();
  WanVae::Parts parts;
  parts.encoder = !decode;
  parts.decoder = decode;
  const auto network = c.load([&](Loader l) { return WanVae::bind(l, config, parts); });
  const auto state = std::make_shared<VaeState>();
  if (decode) {
    const Tensor latent = c.video("latent", config.z_dim, 1);
    return [&ops = c.ops, network, latent, state] { network->decode(ops, latent, *state); };
  }
  const Tensor pictures = c.video("pictures", 3, 1);
  network->encode(c.ops, c.normal({1, 1, pictures.dim(2), pictures.dim(3), 3}, 2), *state);
  return [&ops = c.ops, network, pictures, state] { network->encode(ops, pictures, *state); };
}

Call umt5_encoder(const Case& c) {
  const auto config = c.config<Umt5Config>();
  const auto network = c.load([&](Loader l) { return Umt5Encoder::bind(l, config); });
  const auto tokens = c.json.at("tokens").get<int64_t>();
  const auto length = c.json.at("length").get<int64_t>();
  std::vector<int64_t> ids(static_cast<size_t>(tokens), 0);
  for (int64_t i = 0; i < length; ++i)
    ids[static_cast<size_t>(i)] = (i * 37 + 5) % config.vocab_size;
  const Tensor all = Tensor::of<int64_t>(ids, {1, tokens});
  const std::vector<int64_t> lengths = {length};
  const Tensor used = Tensor::of<int64_t>(lengths, {1});
  return [&ops = c.ops, network, all, used] { static_cast<void>(network->run(ops, all, used)); };
}

Call make_call(const Case& c) {
  const auto module = c.json.at("module").get<std::string>();
  if (module == "causal_wan") return causal_wan(c);
  if (module == "wan_bidirectional") return wan_bidirectional(c);
  if (module == "sparse_sr_dit") return sparse_sr_dit(c);
  if (module == "latent_upsampler") return latent_upsampler(c);
  if (module == "tiny_decoder") return tiny_decoder(c);
  if (module == "tiny_encoder") return tiny_encoder(c);
  if (module == "wan_vae_decode") return wan_vae(c, /*decode=*/true);
  if (module == "wan_vae_encode") return wan_vae(c, /*decode=*/false);
  if (module == "umt5_encoder") return umt5_encoder(c);
  throw_error(StatusCode::kInvalidArgument, "no module '{}'", module);
}

struct Options {
  std::string cases = "bench/network_cases.json";
  std::string name;
  std::string dtype = "f32";
  std::string device = "cpu";
  int threads = 0;
  double seconds = 2.0;
};

nlohmann::ordered_json measure(const Options& options) {
  std::ifstream file(options.cases);
  const nlohmann::json list = nlohmann::json::parse(file);
  const auto found = std::find_if(list.begin(), list.end(), [&](const nlohmann::json& item) {
    return item.at("name") == options.name;
  });
  if (found == list.end()) {
    throw_error(StatusCode::kNotFound, "{} has no case '{}'", options.cases, options.name);
  }
  ExecutorOptions executor_options;
  executor_options.device = options.device;
  executor_options.threads = options.threads;
  const std::unique_ptr<Executor> ops = value_of(make_executor(executor_options));
  const Case c{*found, *ops, options.dtype == "bf16" ? DType::kBF16 : DType::kF32};
  const Call call = make_call(c);

  using Clock = std::chrono::steady_clock;
  const auto once = [&] {
    const Clock::time_point begin = Clock::now();
    call();
    ops->synchronize();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  for (int i = 0; i < 2; ++i) once();
  const int64_t requests = ops->memory().slab_requests;
  std::vector<double> times;
  double total = 0.0;
  double least_cpu = std::numeric_limits<double>::infinity();
  while (times.size() < 3 || total < options.seconds) {
    const std::clock_t cpu = std::clock();  // of all threads: hardly moved by other programs
    times.push_back(once());
    least_cpu = std::min(least_cpu, static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC);
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  nlohmann::ordered_json result;
  result["name"] = options.name;
  result["dtype"] = options.dtype;
  result["median_ms"] = 1e3 * times[times.size() / 2];
  result["min_ms"] = 1e3 * times.front();
  result["min_cpu_ms"] = 1e3 * least_cpu;
  result["runs"] = times.size();
  result["peak_bytes"] = ops->memory().peak_bytes;
  result["arena_requests_in_steady_state"] = ops->memory().slab_requests - requests;
  result["device"] = ops->description();
  result["version"] = version();
  result["commit"] = commit();
  return result;
}

}  // namespace
}  // namespace ultraflash

int main(int argc, char** argv) {
  ultraflash::Options options;
  CLI::App app("Time of one call of a network in its steady state, as JSON");
  app.add_option("--cases", options.cases, "File of cases")->capture_default_str();
  app.add_option("--case", options.name, "Name of the case")->required();
  app.add_option("--dtype", options.dtype, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app.add_option("--device", options.device, "Device")->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads; 0: all")->capture_default_str();
  app.add_option("--seconds", options.seconds, "Least measured time")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    fmt::print("{}\n", ultraflash::measure(options).dump());
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_networks: {}\n", error.what());
    return 1;
  }
  return 0;
}
