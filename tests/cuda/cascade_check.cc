// The whole cascade on a GPU, through the public API. Prints a line per check and exits with 1 when
// one fails; 77 without a GPU.
//
//   cascade_check            the pocket models in f32: pictures of GPU and CPU from one seed within
//                            40 dB, the same bits twice, with and without graphs and overlap; a GPU
//                            that is lost in the middle of a stream
//   cascade_check --full     ultra-flash-1k with random weights in bf16: the same bits with and
//                            without graphs and overlap; PSNR of fp8 against bf16 (reported)
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cuda/cuda_error.h"
#include "ops/devices.h"
#include "ultraflash/engine.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

constexpr double kLeastPsnr = 40.0;

struct Clip {
  std::vector<uint8_t> bytes;
  Status outcome;
};

Clip collect(Session& session) {
  Clip clip;
  for (;;) {
    Result<Frames> frames = session.next();
    if (!frames.ok()) {
      clip.outcome = frames.status();
      return clip;
    }
    const auto size = static_cast<size_t>(frames->count * frames->width * frames->height * 3);
    clip.bytes.insert(clip.bytes.end(), frames->rgb.get(), frames->rgb.get() + size);
  }
}

struct Setup {
  std::string recipe;
  std::string device = "cuda";
  std::string dtype = "f32";
  std::string attention = "auto";
  bool random = false;
  bool graphs = true;
  bool overlap = false;
  int64_t chunks = 6;
};

// Two clips of one session: the second repeats what the first recorded.
std::vector<Clip> generate(const Setup& setup) {
  const Result<Recipe> recipe = Recipe::find(setup.recipe);
  if (!recipe.ok()) return {{{}, recipe.status()}, {{}, recipe.status()}};
  EngineOptions options;
  options.device = setup.device;
  options.dtype = setup.dtype;
  options.attention = setup.attention;
  options.random_weights = setup.random;
  options.cuda_graphs = setup.graphs;
  options.overlap = setup.overlap;
  const Result<Engine> engine = Engine::load(*recipe, options);
  if (!engine.ok()) return {{{}, engine.status()}, {{}, engine.status()}};
  SessionOptions stream;
  stream.prompt = "a red circle moving right";
  stream.seed = 11;
  stream.chunks = setup.chunks;
  Result<Session> session = engine->start(stream);
  if (!session.ok()) return {{{}, session.status()}, {{}, session.status()}};
  std::vector<Clip> clips;
  clips.push_back(collect(*session));
  if (const Status again = session->restart(stream); !again.ok()) return {{{}, again}, {{}, again}};
  clips.push_back(collect(*session));
  return clips;
}

double psnr(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  if (a.size() != b.size() || a.empty()) return 0.0;
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d;
  }
  if (sum == 0.0) return std::numeric_limits<double>::infinity();
  return 10.0 * std::log10(255.0 * 255.0 * static_cast<double>(a.size()) / sum);
}

int failures = 0;

void report(const std::string& name, bool good, const std::string& detail) {
  std::printf("%-52s %s %s\n", name.c_str(), good ? "ok  " : "FAIL", detail.c_str());
  std::fflush(stdout);
  if (!good) ++failures;
}

// The clips of `setup` are those of `expected`, bit by bit.
void same_bits(const std::string& name, const Setup& setup, const Clip& expected) {
  const std::vector<Clip> clips = generate(setup);
  for (size_t i = 0; i < clips.size(); ++i) {
    const bool same = !clips[i].bytes.empty() && clips[i].bytes == expected.bytes;
    report(name + (i == 0 ? ", first clip" : ", second clip"), same,
           same ? "same bits"
                : clips[i].outcome.message() + ", PSNR " +
                      std::to_string(psnr(clips[i].bytes, expected.bytes)));
  }
}

int lose_gpu(int error, const char* call) {
  return std::string_view(call).find("cudaEventSynchronize") != std::string_view::npos
             ? static_cast<int>(cudaErrorUnknown)
             : error;
}

void lost_gpu(const Setup& setup) {
  const Result<Recipe> recipe = Recipe::find(setup.recipe);
  EngineOptions options;
  options.device = "cuda";
  options.dtype = setup.dtype;
  const Result<Engine> engine = Engine::load(*recipe, options);
  SessionOptions stream;
  stream.prompt = "a red circle moving right";
  stream.chunks = 12;
  Result<Session> session = engine->start(stream);
  const bool begun = session.ok() && session->next().ok();
  cuda::set_fault_hook(lose_gpu);
  const Status outcome = begun ? collect(*session).outcome : Status();
  cuda::set_fault_hook(nullptr);
  report("a GPU that is lost in the middle of a stream",
         outcome.code() == StatusCode::kDevice &&
             outcome.message().find("the GPU was lost") != std::string::npos,
         outcome.message());
}

void variants(const Setup& base, const Clip& expected) {
  Setup setup = base;
  same_bits("graphs", setup, expected);
  setup.graphs = false;
  same_bits("no graphs", setup, expected);
  setup.overlap = true;
  same_bits("no graphs, overlap", setup, expected);
  setup.graphs = true;
  same_bits("graphs, overlap", setup, expected);
}

void pocket() {
  Setup setup;
  setup.recipe = "pocket";
  const std::vector<Clip> gpu = generate(setup);
  Setup cpu = setup;
  cpu.device = "cpu";
  const std::vector<Clip> host = generate(cpu);
  const double found = psnr(gpu[0].bytes, host[0].bytes);
  report("pocket, f32: GPU against CPU", found >= kLeastPsnr,
         std::to_string(found) + " dB " + gpu[0].outcome.message());
  variants(setup, gpu[0]);
  lost_gpu(setup);
}

void full_size() {
  Setup setup;
  setup.recipe = "ultra-flash-1k";
  setup.random = true;
  setup.dtype = "bf16";
  setup.chunks = 7;
  setup.graphs = false;
  const std::vector<Clip> bf16 = generate(setup);
  setup.graphs = true;
  same_bits("1k bf16, graphs", setup, bf16[0]);
  setup.overlap = true;
  same_bits("1k bf16, graphs, overlap", setup, bf16[0]);
  setup.overlap = false;
  const auto against_bf16 = [&](const std::string& name) {
    const std::vector<Clip> clips = generate(setup);
    report("1k: " + name + " against bf16",
           !clips[0].bytes.empty() && clips[0].bytes == clips[1].bytes,
           std::to_string(psnr(clips[0].bytes, bf16[0].bytes)) + " dB (reported), same bits twice");
  };
  setup.dtype = "fp8";
  against_bf16("fp8");
  setup.attention = "fp8";
  against_bf16("fp8, attention in fp8,");
}

int run(bool full) {
  bool usable = false;
  for (const DeviceReport& device : list_devices()) {
    usable = usable || (device.usable && device.name.starts_with("cuda"));
  }
  if (!usable) {
    std::printf("no usable GPU: the cascade on a GPU was not checked\n");
    return 77;
  }
  if (full) {
    full_size();
  } else {
    pocket();
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ultraflash

int main(int argc, char** argv) {
  return ultraflash::run(argc > 1 && std::strcmp(argv[1], "--full") == 0);
}
