// Session::Impl: a pipeline on a thread of its own, a bounded queue, and the controls.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "stream/pipeline.h"
#include "ultraflash/engine.h"

namespace ultraflash {

class Session::Impl {
 public:
  Impl(std::shared_ptr<const NetworkSet> networks, std::unique_ptr<Pipeline> pipeline, Logger log);
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl();

  Status restart(const SessionOptions& options);
  Result<Frames> next(bool wait);
  Status set_prompt(std::string_view prompt, SwitchMode mode);
  void drain();
  void cancel();
  [[nodiscard]] SessionStats stats() const;
  [[nodiscard]] std::vector<TraceEvent> take_trace() { return pipeline_->take_trace(); }
  [[nodiscard]] const ChunkPlan& plan() const { return pipeline_->plan(); }

 private:
  void stop_worker();
  void work();
  Result<Frames> finish_first(std::unique_lock<std::mutex>& lock);

  std::shared_ptr<const NetworkSet> networks_;
  std::unique_ptr<Pipeline> pipeline_;
  Logger log_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pipeline::Delivery>> under_way_;
  size_t prefetch_ = 2;
  Status outcome_;                 // why the worker stopped; ok while it works
  bool finished_ = false;          // the worker will add nothing more
  std::optional<Status> failure_;  // of the device, found by the reader
  std::optional<PreparedPrompt> new_prompt_;
  SwitchMode new_mode_ = SwitchMode::kPlain;
  double first_frames_seconds_ = 0.0;
  std::chrono::steady_clock::time_point started_;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> draining_{false};
  std::thread worker_;
};

}  // namespace ultraflash
