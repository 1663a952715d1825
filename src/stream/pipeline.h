// Pipeline: one stream, step by step on the calling thread: text, generator, groups, cascade,
// decoder, pictures. The session puts a thread and a queue around it.
//
// On an executor that queues (a GPU) a step returns when its work is queued, and whoever wants the
// pictures waits for them, on any thread. The cascade may have an executor of its own, whose work
// then overlaps the generator's.
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
  /// Allocates caches. `cascade_executor` may be null: the cascade then shares the other one.
  /// Throws Error(kOutOfMemory) and as the stages do.
  Pipeline(std::shared_ptr<const NetworkSet> networks, std::unique_ptr<Executor> executor,
           std::unique_ptr<Executor> cascade_executor, Logger log);
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;
  ~Pipeline();

  /// Runs everything that a stream may need once, so that no chunk waits for plans, memory or
  /// recordings. Before begin().
  void warm_up();

  /// Plans a new stream in the same memory; kInvalidArgument for options that cannot be met.
  Status begin(const SessionOptions& options, PreparedPrompt prompt,
               std::vector<std::pair<int64_t, PreparedPrompt>> switches);
  [[nodiscard]] const ChunkPlan& plan() const { return plan_; }

  /// The text of the chunks from the next one on.
  void switch_prompt(PreparedPrompt prompt, SwitchMode mode);
  /// A group on its way to the reader.
  class Delivery;
  /// Queues the next delivery; null when the stream has ended. `check` is called between passes and
  /// may throw to stop; `draining` is asked before each chunk and ends the stream early.
  std::shared_ptr<Delivery> step(const std::function<void()>& check,
                                 const std::function<bool()>& draining);
  /// Whether finish() would return at once.
  [[nodiscard]] static bool is_ready(const Delivery& delivery);
  /// Waits for the pictures. May run on another thread than step(). Throws Error when the device
  /// failed.
  Frames finish(Delivery& delivery);

  /// May be called from another thread while step() runs.
  [[nodiscard]] SessionStats stats() const;
  [[nodiscard]] std::vector<TraceEvent> take_trace();

 private:
  enum Timer : size_t {
    kText,
    kGenerator,
    kContext,
    kUpsampler,
    kRefiner,
    kDecoder,
    kPictures,
    kTimers
  };
  // One call of a stage, timed by its executor.
  struct Call {
    Timer timer;
    std::shared_ptr<Moment> begin, end;
    std::chrono::steady_clock::time_point queued_from, queued_to;
    OpLog operations;  // of a traced stream
  };
  template <typename Work>
  void timed(Timer timer, Executor& ops, const Work& work);
  void apply_prompt(const PreparedPrompt& prompt);
  void set_text(const Tensor& embeddings, int64_t tokens);
  Tensor next_chunk(const std::function<void()>& check);
  [[nodiscard]] bool skip_refresh(const Tensor& chunk);
  [[nodiscard]] int64_t kv_len_of_group(int64_t group) const;
  std::shared_ptr<Delivery> flush_group(const std::function<void()>& check);
  std::shared_ptr<const uint8_t> share(const Tensor& pictures, Delivery& delivery);
  void wait_for_all();
  void add_to_trace(const Call& call);

  std::shared_ptr<const NetworkSet> networks_;
  std::unique_ptr<Executor> ops_;
  std::unique_ptr<Executor> own_cascade_ops_;  // null: ops_
  Executor& cascade_ops_;
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
  Tensor unrefreshed_;              // chunk whose context pass is still to be run
  std::vector<Call> calls_;         // not yet part of a delivery
  std::vector<Tensor> lent_;        // tensors of ops_ that cascade_ops_ still reads
  std::shared_ptr<Moment> origin_;  // of a traced stream
  std::chrono::steady_clock::time_point host_origin_;
  bool ended_ = true;

  struct TimerState {
    int64_t calls = 0;
    double seconds = 0.0;
    std::array<double, 8> recent = {};  // of the last calls, call i at i % 8

    void add(double call_seconds);
    [[nodiscard]] double recent_median() const;
  };
  mutable std::mutex stats_mutex_;
  std::array<TimerState, kTimers> timers_;
  SessionStats counters_;
  std::vector<TraceEvent> trace_;
};

}  // namespace ultraflash
