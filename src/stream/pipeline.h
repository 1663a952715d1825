// Pipeline: one stream, step by step on the calling thread: text, generator, groups, cascade,
// decoder, pictures. The session puts a thread and a queue around it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "stream/cascade_stage.h"
#include "stream/chunk_plan.h"
#include "stream/decoder_stage.h"
#include "stream/generator_stage.h"
#include "stream/networks.h"
#include "stream/text_conditioning.h"
#include "ultraflash/engine.h"

namespace ultraflash {

class Pipeline {
 public:
  /// Allocates caches. Throws Error(kOutOfMemory) and as the stages do.
  Pipeline(std::shared_ptr<const NetworkSet> networks, std::unique_ptr<Executor> executor,
           Logger log);

  /// Plans a new stream in the same memory; kInvalidArgument for options that cannot be met.
  Status begin(const SessionOptions& options, PreparedPrompt prompt,
               std::vector<std::pair<int64_t, PreparedPrompt>> switches);
  [[nodiscard]] const ChunkPlan& plan() const { return plan_; }

  /// The text of the chunks from the next one on.
  void switch_prompt(PreparedPrompt prompt, SwitchMode mode);
  /// Makes the next delivery; nothing when the stream has ended. `check` is called between passes
  /// and may throw to stop; `draining` is asked before each chunk and ends the stream early.
  std::optional<Frames> step(const std::function<void()>& check,
                             const std::function<bool()>& draining);

  /// May be called from another thread while step() runs.
  [[nodiscard]] SessionStats stats() const;

 private:
  enum Timer : size_t { kText, kGenerator, kUpsampler, kRefiner, kDecoder, kPictures, kTimers };
  class Timing;

  void apply_prompt(const PreparedPrompt& prompt);
  Tensor next_chunk(const std::function<void()>& check);
  [[nodiscard]] bool skip_refresh(const Tensor& chunk);
  [[nodiscard]] int64_t kv_len_of_group(int64_t group) const;
  std::optional<Frames> flush_group(const std::function<void()>& check);
  std::shared_ptr<const uint8_t> share(const Tensor& pictures);

  std::shared_ptr<const NetworkSet> networks_;
  std::unique_ptr<Executor> ops_;
  Logger log_;
  GeneratorStage generator_;
  CascadeStage cascade_;
  DecoderStage decoder_;
  std::optional<DecoderStage> low_resolution_decoder_;

  SessionOptions options_;
  ChunkPlan plan_;
  std::vector<int64_t> all_steps_;
  std::vector<int64_t> later_steps_;
  std::vector<std::pair<int64_t, PreparedPrompt>> switches_;
  std::optional<PreparedPrompt> pending_prompt_;
  SwitchMode pending_mode_ = SwitchMode::kPlain;
  std::vector<Tensor> buffer_;  // chunks of the group being gathered
  int64_t group_first_chunk_ = 0;
  Tensor unrefreshed_;  // chunk whose context pass is still to be run
  bool ended_ = true;

  struct TimerState {
    int64_t calls = 0;
    double seconds = 0.0;
    double last_seconds = 0.0;
  };
  mutable std::mutex stats_mutex_;
  std::array<TimerState, kTimers> timers_;
  SessionStats counters_;
};

}  // namespace ultraflash
