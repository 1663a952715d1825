// Engine and Session: the one way to make video with this library.
//
//   Result<Engine> engine = Engine::load(recipe, options);       // weights, executor
//   Result<Session> session = engine->start({.prompt = "..."});
//   for (;;) {
//     Result<Frames> frames = session->next();                   // blocks
//     if (!frames.ok()) break;                                   // kEnd, kCancelled, or a failure
//     write(*frames);
//   }
//
// An Engine holds weights and may serve several sessions; a Session is one stream with all its
// state. Sessions work on a thread of their own, some frames ahead of their reader.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ultraflash/log.h"
#include "ultraflash/recipe.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct EngineOptions {
  /// "auto", "cpu", "cuda", "cuda:N".
  std::string device = "auto";
  /// Type the networks compute in: "auto" (f32 on the CPU), "f32", "bf16".
  std::string dtype = "auto";
  /// Self-attention of the generator: "auto" (in `dtype`; bf16 beside fp8 products) or "fp8"
  /// (e4m3 queries, keys, values and weights; Hopper GPUs).
  std::string attention = "auto";
  /// Sums of products in fp8: "exact" (f32) or "fast" (left to the tensor cores, which keep fewer
  /// bits; Hopper GPUs, with `dtype` "fp8" alone).
  std::string fp8_sums = "exact";
  /// Folder with the checkpoint files that the recipe names. Empty: the folder of shipped models.
  std::string weights_dir;
  /// Draw all weights at random (seeded) instead of reading files.
  bool random_weights = false;
  uint64_t random_weights_seed = 0;
  /// Which enlargement to load; 0: the recipe's default.
  int64_t scale = 0;
  /// Also decode the generator's own latents, at scale 1 (Frames::low_resolution).
  bool low_resolution = false;
  /// Text: true reads embeddings from files only and never loads the text encoder.
  bool no_text_encoder = false;
  /// CPU threads; 0: all.
  int threads = 0;
  /// Bytes that may be taken: on the CPU by one session's activations and caches, on a GPU by
  /// everything, weights and libraries included. A recipe that needs more is refused before
  /// anything is allocated. 0: what the device has.
  uint64_t memory_limit_bytes = 0;
  /// GPU: steady work is recorded once and replayed as CUDA graphs. Same pictures either way.
  bool cuda_graphs = true;
  /// GPU: the cascade of one group runs beside the generator of the next.
  bool overlap = false;
  /// GPU: start() runs everything that a stream may need once, so that its first chunk is as fast
  /// as later ones.
  bool warm_up = false;
  /// Replaces the recipe's KV cache: window in latent frames (sink included) and sink; 0: keep.
  int64_t window_frames = 0;
  int64_t sink_frames = -1;
  Logger log;
  /// Called while loading; returning false stops with kCancelled.
  ProgressFn progress;
};

/// Which first frames of a stream are dropped. A decoder's first frames hold no whole picture.
enum class TrimRule : uint8_t {
  kIntended,  // once: 3 frames, as many as the Wan VAE's frame count asks for
  kReleased,  // twice: 6 frames, what the released scripts do
};

/// How a prompt switch treats what was generated before.
enum class SwitchMode : uint8_t {
  kPlain,    // new text keys and values from the next chunk on
  kRecache,  // and the latents still in the window are run again with the new text
};

/// One 8-bit RGB picture, for a quality score.
struct Picture {
  int64_t width = 0;
  int64_t height = 0;
  std::span<const uint8_t> rgb;  // height * width * 3
};
/// Quality of a picture, higher is better; nothing when it cannot be told (the cache is then
/// refreshed). Called on the session's thread.
using QualityScore = std::function<std::optional<double>(const Picture&)>;

/// Dynamic cache management (Ultra Flash, section 5): trades fidelity for speed. All off by
/// default.
struct CacheManagement {
  /// (i) Denoising steps of every chunk after the first; 0: all.
  int64_t steps_after_first_chunk = 0;
  /// (ii) Skip the context pass of a chunk whose last frame scores above the threshold.
  QualityScore refresh_score;
  double refresh_threshold = 0.62;
  /// (ii) Never run the context pass.
  bool never_refresh = false;
  /// (iii) Shrink the SR cache by one temporal block a group once `sr_warmup_groups` are done.
  bool adapt_sr_cache = false;
  int64_t sr_kv_len_min = 1;
  int64_t sr_warmup_groups = 2;
};

struct PromptSwitch {
  int64_t chunk = 0;  // first chunk made with the new prompt, from 1 on
  std::string prompt;
};

struct SessionOptions {
  std::string prompt;
  /// A file of text embeddings (docs/formats.md) instead of the prompt.
  std::string text_embedding_file;
  uint64_t seed = 0;
  /// Pictures to deliver; 0: as many as `chunks` give. The last chunk is cut.
  int64_t frames = 0;
  /// Generator chunks; 0 with frames 0: endless.
  int64_t chunks = 0;
  std::vector<PromptSwitch> prompt_switches;
  SwitchMode switch_mode = SwitchMode::kPlain;
  TrimRule trim = TrimRule::kIntended;
  CacheManagement cache_management;
  /// Noise mixed into the SR condition, 0 to 1; negative: the recipe's.
  double condition_noise_scale = -1.0;
  /// Deliveries made ahead of the reader.
  int64_t prefetch = 2;
  /// Times every stage and operation, for Session::take_trace. Costs a few per cent, and on a GPU
  /// takes the place of CUDA graphs.
  bool trace = false;
};

/// A stage or operation of a traced session.
struct TraceEvent {
  std::string name;      // "generator", "linear"
  std::string stage;     // of an operation; empty for a stage
  std::string shape;     // of an operation
  bool on_host = false;  // the time in which the session's thread queued a stage
  double begin = 0.0;    // seconds from the start of the stream
  double seconds = 0.0;
  double flops = 0.0;  // counted from the shapes
  double bytes = 0.0;  // that must be read and written at least once
};

/// Consecutive pictures of a stream. The memory is shared and never changes.
struct Frames {
  int64_t first_frame = 0;  // index of the first picture in the stream
  int64_t count = 0;
  int64_t width = 0;
  int64_t height = 0;
  std::shared_ptr<const uint8_t> rgb;  // [count][height][width][3]
  /// The same moments at the generator's own size, when asked for; count 0 otherwise.
  int64_t low_resolution_count = 0;
  int64_t low_resolution_width = 0;
  int64_t low_resolution_height = 0;
  std::shared_ptr<const uint8_t> low_resolution_rgb;
  /// Chunks that went into these pictures.
  int64_t first_chunk = 0;
  int64_t chunk_count = 0;

  [[nodiscard]] std::span<const uint8_t> picture(int64_t i) const {
    const auto size = static_cast<size_t>(width * height * 3);
    return {rgb.get() + static_cast<size_t>(i) * size, size};
  }
  [[nodiscard]] std::span<const uint8_t> low_resolution_picture(int64_t i) const {
    const auto size = static_cast<size_t>(low_resolution_width * low_resolution_height * 3);
    return {low_resolution_rgb.get() + static_cast<size_t>(i) * size, size};
  }
};

/// Where the time of a session went, in seconds of its own thread.
struct SessionStats {
  struct Stage {
    // "text", "generator" (denoising of a chunk), "context" (passes over a finished chunk, for the
    // cache alone), "upsampler", "refiner", "decoder", "pictures"
    std::string name;
    int64_t calls = 0;
    double seconds = 0.0;
    double recent_seconds = 0.0;  // median of the last calls, at most 8
  };
  std::vector<Stage> stages;
  int64_t chunks = 0;
  int64_t frames = 0;          // delivered
  int64_t frames_decoded = 0;  // those trimmed off the beginning included
  int64_t denoising_passes = 0;
  int64_t context_passes = 0;
  int64_t skipped_context_passes = 0;
  double first_frames_seconds = 0.0;  // from start() until the first delivery was ready
  uint64_t arena_peak_bytes = 0;      // activations and caches
  uint64_t arena_reserved_bytes = 0;
  uint64_t device_used_bytes = 0;  // of the GPU, by every program on it; 0 on the CPU
  int64_t arena_requests = 0;      // how often memory was asked of the system
};

/// One stream. Movable. set_prompt, drain, cancel and stats may be called from any thread at any
/// time; next, try_next, flush and restart from one thread at a time.
class Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();  // cancels

  /// The next pictures. Blocks. kEnd when all were delivered, kCancelled after cancel(), anything
  /// else is a failure that ended the stream; the same status is returned from then on.
  Result<Frames> next();
  /// As next(), but kBusy when nothing is ready.
  Result<Frames> try_next();
  /// From the next chunk on. kInvalidArgument for a prompt that cannot be used; the stream goes on.
  Status set_prompt(std::string_view prompt, SwitchMode mode = SwitchMode::kPlain);
  /// Ends the stream after the chunk being made: what was begun is delivered, then kEnd.
  void drain();
  /// Stops as soon as possible; undelivered pictures are dropped.
  void cancel();
  /// Begins a new stream in the same memory, whatever happened to the one before.
  Status restart(const SessionOptions& options);
  [[nodiscard]] SessionStats stats() const;
  /// What SessionOptions::trace has gathered of deliveries since the last call.
  [[nodiscard]] std::vector<TraceEvent> take_trace();
  /// Chunks that restart() planned; 0: endless.
  [[nodiscard]] int64_t planned_chunks() const;
  /// Pictures that will be delivered; 0: endless.
  [[nodiscard]] int64_t planned_frames() const;

  class Impl;
  explicit Session(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

/// What an engine is and holds.
struct EngineInfo {
  std::string device;     // "cpu (avx512 kernels, oneDNN 2.6.3, 2 threads)"
  std::string dtype;      // "f32"
  std::string attention;  // "f32", "bf16" or "fp8"
  std::string fp8_sums;   // "exact", also without products in fp8, or "fast"
  int64_t scale = 1;
  int64_t width = 0;
  int64_t height = 0;
  int64_t frames_per_second = 16;
  uint64_t weight_bytes = 0;  // prepared weights in memory
  bool random_weights = false;
  /// Network -> file it came from, or "random, seed N".
  std::map<std::string, std::string> sources;
};

/// Weights on a device. Movable; may be used from several threads.
class Engine {
 public:
  /// kNotFound for missing files, kMalformed for weights that do not fit the recipe, and as
  /// make_executor for devices.
  static Result<Engine> load(const Recipe& recipe, const EngineOptions& options);
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();  // sessions keep what they need

  /// Begins a stream. kInvalidArgument for settings that cannot be met, kOutOfMemory.
  [[nodiscard]] Result<Session> start(const SessionOptions& options) const;
  [[nodiscard]] EngineInfo info() const;
  [[nodiscard]] const Recipe& recipe() const;
  /// Encodes a prompt and writes its text embedding (docs/formats.md).
  [[nodiscard]] Status save_text_embedding(std::string_view prompt, const std::string& path) const;

  class Impl;
  explicit Engine(std::shared_ptr<Impl> impl);

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace ultraflash
