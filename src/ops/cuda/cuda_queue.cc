// The executor's queue: moments, results that leave without a wait, and recorded work.
#include <utility>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_impl.h"

namespace ultraflash::cuda {
namespace {

class EventMoment final : public Moment {
 public:
  EventMoment(std::shared_ptr<EventPool> pool, int device)
      : pool_(std::move(pool)), device_(device), event_(pool_->take()) {}
  ~EventMoment() override { pool_->give_back(event_); }
  EventMoment(const EventMoment&) = delete;
  EventMoment& operator=(const EventMoment&) = delete;

  [[nodiscard]] cudaEvent_t event() const { return event_; }
  void wait() override {
    UF_CUDA_TRY(cudaSetDevice(device_));
    UF_CUDA_TRY(cudaEventSynchronize(event_));
  }
  [[nodiscard]] bool reached() const override {
    return cudaEventQuery(event_) != cudaErrorNotReady;
  }
  [[nodiscard]] double seconds_since(const Moment& earlier) const override {
    const auto* other = dynamic_cast<const EventMoment*>(&earlier);
    UF_CHECK(other != nullptr && other->device_ == device_, "moments of two devices");
    float milliseconds = 0.0F;
    UF_CUDA_TRY(cudaEventElapsedTime(&milliseconds, other->event_, event_));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  std::shared_ptr<EventPool> pool_;
  int device_;
  cudaEvent_t event_;
};

class GraphRecording final : public Recording {
 public:
  GraphRecording() = default;
  GraphRecording(const GraphRecording&) = delete;
  GraphRecording& operator=(const GraphRecording&) = delete;
  ~GraphRecording() override { drop(); }
  void drop() {
    if (graph != nullptr) static_cast<void>(cudaGraphExecDestroy(std::exchange(graph, nullptr)));
  }

  cudaGraphExec_t graph = nullptr;
  bool ran = false;  // once without recording: plans are made, tables filled, memory is there
  int64_t epoch = 0;
};

// The arena that tensors come from, until the end of a scope.
class UseArena {
 public:
  UseArena(Arena*& current, Arena* arena) : current_(current), before_(current) {
    current_ = arena;
  }
  UseArena(const UseArena&) = delete;
  UseArena& operator=(const UseArena&) = delete;
  ~UseArena() { current_ = before_; }

 private:
  Arena*& current_;
  Arena* before_;
};

}  // namespace

EventPool::~EventPool() {
  for (cudaEvent_t event : free_) static_cast<void>(cudaEventDestroy(event));
}

cudaEvent_t EventPool::take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      cudaEvent_t event = free_.back();
      free_.pop_back();
      return event;
    }
    free_.reserve(free_.capacity() + 1);  // giving back must not ask for memory
  }
  cudaEvent_t event = nullptr;
  // A waiting thread leaves its core to others.
  UF_CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventBlockingSync));
  return event;
}

void EventPool::give_back(cudaEvent_t event) noexcept {
  const std::lock_guard lock(mutex_);
  free_.push_back(event);
}

std::shared_ptr<Moment> CudaExecutor::moment_of(cudaStream_t stream) {
  use_device();
  auto made = std::make_shared<EventMoment>(events_, device_);
  UF_CUDA_TRY(cudaEventRecord(made->event(), stream));
  return made;
}

std::shared_ptr<Moment> CudaExecutor::moment() { return moment_of(stream_); }

void CudaExecutor::wait_for(const std::shared_ptr<Moment>& other) {
  const auto* moment = dynamic_cast<const EventMoment*>(other.get());
  if (moment == nullptr) {
    other->wait();
    return;
  }
  use_device();
  UF_CUDA_TRY(cudaStreamWaitEvent(stream_, moment->event(), 0));
}

Tensor CudaExecutor::to_host_later(const Tensor& x, std::shared_ptr<Moment>& ready) {
  UF_CHECK(x.device().type == DeviceType::kCuda && x.contiguous(), "to_host_later: {}",
           x.to_string());
  use_device();
  Tensor host = host_arena_->allocate(x.dtype(), x.shape());
  // The copy leaves on a stream of its own; what follows on the other one need not wait for it.
  const auto made = std::static_pointer_cast<EventMoment>(moment());
  UF_CUDA_TRY(cudaStreamWaitEvent(copy_stream_, made->event(), 0));
  UF_CUDA_TRY(cudaMemcpyAsync(host.mutable_raw(), x.raw(), x.size_bytes(), cudaMemcpyDeviceToHost,
                              copy_stream_));
  ready = moment_of(copy_stream_);
  return host;
}

void CudaExecutor::record_graph(cudaGraphExec_t& graph, FunctionRef<void()> work) {
  cudaGraph_t recorded = nullptr;
  // Relaxed: an arena that must grow after all may ask the driver for memory.
  UF_CUDA_TRY(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
  try {
    work();
  } catch (...) {
    static_cast<void>(cudaStreamEndCapture(stream_, &recorded));
    if (recorded != nullptr) static_cast<void>(cudaGraphDestroy(recorded));
    throw;
  }
  UF_CUDA_TRY(cudaStreamEndCapture(stream_, &recorded));
  const cudaError_t made = cudaGraphInstantiate(&graph, recorded, /*flags=*/0);
  static_cast<void>(cudaGraphDestroy(recorded));
  UF_CUDA_TRY(made);
}

void CudaExecutor::repeat(std::unique_ptr<Recording>& recording, FunctionRef<void()> work) {
  if (!graphs_) {
    work();
    return;
  }
  use_device();
  UF_CHECK(current_arena_ == arena_.get(), "repeated work inside repeated work");
  if (recording == nullptr) recording = std::make_unique<GraphRecording>();
  auto& r = static_cast<GraphRecording&>(*recording);
  const bool recorded = r.graph != nullptr && r.epoch == recordings_epoch_;
  const bool records = r.ran && !recorded && !logs_operations();
  if (!recorded || logs_operations()) {
    const int64_t living = pass_arena_->stats().live_tensors;
    const UseArena scope(current_arena_, pass_arena_.get());
    if (records) {
      r.drop();
      record_graph(r.graph, work);
    } else {
      work();
      r.ran = true;
    }
    // A tensor that stays may lie where graphs recorded before have their temporary ones.
    if (pass_arena_->stats().live_tensors != living) ++recordings_epoch_;
    if (!records) return;
    r.epoch = recordings_epoch_;
  }
  UF_CUDA_TRY(cudaGraphLaunch(r.graph, stream_));
}

DeviceMemoryInfo CudaExecutor::device_memory() const {
  use_device();
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  UF_CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
  return {free_bytes, total_bytes};
}

Arena::Stats CudaExecutor::memory() const {
  Arena::Stats sum = arena_->stats();
  const Arena::Stats pass = pass_arena_->stats();
  sum.reserved_bytes += pass.reserved_bytes;
  sum.used_bytes += pass.used_bytes;
  sum.peak_bytes += pass.peak_bytes;
  sum.slab_requests += pass.slab_requests;
  sum.live_tensors += pass.live_tensors;
  sum.guard_violations += pass.guard_violations;
  return sum;
}

}  // namespace ultraflash::cuda
