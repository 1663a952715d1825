#include "stream/session.h"

#include <exception>
#include <new>
#include <utility>

#include "core/check.h"

namespace ultraflash {

Session::Impl::Impl(std::shared_ptr<const NetworkSet> networks, std::unique_ptr<Pipeline> pipeline,
                    Logger log)
    : networks_(std::move(networks)), pipeline_(std::move(pipeline)), log_(std::move(log)) {}

Session::Impl::~Impl() { stop_worker(); }

void Session::Impl::stop_worker() {
  cancel();
  if (worker_.joinable()) worker_.join();
}

Status Session::Impl::restart(const SessionOptions& options) {
  if (options.prefetch < 1 || options.prefetch > 1024) {
    return make_status(StatusCode::kInvalidArgument, "prefetch {} must be 1 to 1024",
                       options.prefetch);
  }
  // Everything about the options is checked before the running stream is touched.
  Result<PreparedPrompt> prompt =
      options.text_embedding_file.empty()
          ? prepare_prompt(*networks_, options.prompt, log_)
          : load_text_embedding(*networks_, options.text_embedding_file);
  if (!prompt.ok()) return prompt.status();
  std::vector<std::pair<int64_t, PreparedPrompt>> switches;
  for (const PromptSwitch& change : options.prompt_switches) {
    if (change.chunk < 1) {
      return make_status(StatusCode::kInvalidArgument,
                         "a prompt switch at chunk {}; the first chunk that can have a new prompt "
                         "is 1",
                         change.chunk);
    }
    UF_ASSIGN(PreparedPrompt prepared, prepare_prompt(*networks_, change.prompt, log_));
    switches.emplace_back(change.chunk, std::move(prepared));
  }
  stop_worker();
  UF_TRY(pipeline_->begin(options, *std::move(prompt), std::move(switches)));
  under_way_.clear();
  prefetch_ = static_cast<size_t>(options.prefetch);
  outcome_ = Status();
  finished_ = false;
  failure_.reset();
  new_prompt_.reset();
  first_frames_seconds_ = 0.0;
  cancelled_ = false;
  draining_ = false;
  started_ = std::chrono::steady_clock::now();
  try {
    worker_ = std::thread([this] { work(); });
  } catch (const std::system_error& error) {
    return make_status(StatusCode::kOutOfMemory, "no thread for the session: {}", error.what());
  }
  return {};
}

void Session::Impl::work() {
  Status outcome(StatusCode::kEnd, "the stream has ended");
  const auto check = [this] {
    if (cancelled_) throw Error(StatusCode::kCancelled, "the stream was cancelled");
  };
  const auto draining = [this] {
    const std::lock_guard lock(mutex_);
    if (new_prompt_) {
      pipeline_->switch_prompt(*std::move(new_prompt_), new_mode_);
      new_prompt_.reset();
    }
    return draining_.load();
  };
  try {
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return cancelled_ || under_way_.size() < prefetch_; });
      }
      check();
      std::shared_ptr<Pipeline::Delivery> delivery = pipeline_->step(check, draining);
      if (delivery == nullptr) break;
      const std::lock_guard lock(mutex_);
      under_way_.push_back(std::move(delivery));
      changed_.notify_all();
    }
  } catch (const Error& error) {
    outcome = error.status();
  } catch (const std::bad_alloc&) {
    outcome = Status(StatusCode::kOutOfMemory, "the stream ran out of host memory");
  } catch (const std::exception& error) {
    outcome = make_status(StatusCode::kInternal, "the stream failed: {}", error.what());
  }
  const std::lock_guard lock(mutex_);
  outcome_ = std::move(outcome);
  if (outcome_.code() == StatusCode::kCancelled) under_way_.clear();
  finished_ = true;
  changed_.notify_all();
}

Result<Frames> Session::Impl::next(bool wait) {
  std::unique_lock lock(mutex_);
  if (wait) {
    changed_.wait(lock, [this] { return !under_way_.empty() || finished_ || cancelled_; });
  }
  if (failure_) return *failure_;
  if (cancelled_ && !(finished_ && outcome_.code() == StatusCode::kEnd)) {
    return Status(StatusCode::kCancelled, "the stream was cancelled");
  }
  if (!under_way_.empty() && (wait || Pipeline::is_ready(*under_way_.front()))) {
    return finish_first(lock);
  }
  if (under_way_.empty() && finished_) return outcome_;
  return Status(StatusCode::kBusy, "no pictures are ready yet");
}

Result<Frames> Session::Impl::finish_first(std::unique_lock<std::mutex>& lock) {
  // It stays in the queue until then, so that the worker does not run further ahead.
  const std::shared_ptr<Pipeline::Delivery> first = under_way_.front();
  Result<Frames> frames = Status(StatusCode::kInternal, "no pictures");
  lock.unlock();
  try {
    frames = pipeline_->finish(*first);
  } catch (const Error& error) {
    frames = error.status();
  }
  lock.lock();
  if (!frames.ok()) {
    failure_ = frames.status();
    cancelled_ = true;  // the worker has nothing to go on with
  } else if (first_frames_seconds_ == 0.0) {
    first_frames_seconds_ =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  }
  // A cancelled worker may have emptied the queue meanwhile.
  if (!under_way_.empty() && under_way_.front() == first) under_way_.pop_front();
  changed_.notify_all();
  return frames;
}

Status Session::Impl::set_prompt(std::string_view prompt, SwitchMode mode) {
  UF_ASSIGN(PreparedPrompt prepared, prepare_prompt(*networks_, prompt, log_));
  const std::lock_guard lock(mutex_);
  new_prompt_ = std::move(prepared);
  new_mode_ = mode;
  return {};
}

void Session::Impl::drain() {
  draining_ = true;
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

void Session::Impl::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  changed_.notify_all();
}

SessionStats Session::Impl::stats() const {
  SessionStats stats = pipeline_->stats();
  const std::lock_guard lock(mutex_);
  stats.first_frames_seconds = first_frames_seconds_;
  return stats;
}

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<Frames> Session::next() { return impl_->next(/*wait=*/true); }
Result<Frames> Session::try_next() { return impl_->next(/*wait=*/false); }
Status Session::set_prompt(std::string_view prompt, SwitchMode mode) {
  return impl_->set_prompt(prompt, mode);
}
void Session::drain() { impl_->drain(); }
void Session::cancel() { impl_->cancel(); }
Status Session::restart(const SessionOptions& options) {
  try {
    return impl_->restart(options);
  } catch (const Error& error) {
    return error.status();
  }
}
SessionStats Session::stats() const { return impl_->stats(); }
std::vector<TraceEvent> Session::take_trace() { return impl_->take_trace(); }
int64_t Session::planned_chunks() const { return impl_->plan().chunks; }
int64_t Session::planned_frames() const { return impl_->plan().pictures; }

}  // namespace ultraflash
