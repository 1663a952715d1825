// The module behind GraphBackend: CUDA graphs of libtorch. Its symbols of libtorch's CUDA part are
// found in the program that opens it.
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <optional>
#include <utility>

#include "train/graph_backend.h"

namespace ultraflash {
namespace {

class CudaRecording final : public GraphBackend::Recording {
 public:
  explicit CudaRecording(std::unique_ptr<at::cuda::CUDAGraph> graph) : graph_(std::move(graph)) {}
  void replay() override { graph_->replay(); }

 private:
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
};

class CudaGraphBackend final : public GraphBackend {
 public:
  explicit CudaGraphBackend(c10::DeviceIndex index)
      : device_(c10::DeviceType::CUDA, index),
        stream_(gpu_.getNewStream(device_)),
        pool_(at::cuda::graph_pool_handle()) {}

  void enter() override {
    outside_ = gpu_.getStream(device_);
    follow(stream_, *outside_);
    gpu_.exchangeStream(stream_);
  }
  void leave() override {
    follow(*outside_, stream_);
    gpu_.exchangeStream(*outside_);
  }

  void begin() override {
    // What steps kept in reserve before goes back, so that it can be part of the pool.
    gpu_.synchronizeDevice(device_.index());
    c10::cuda::CUDACachingAllocator::emptyCache();
    const at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(device_.index());
    seed_ = generator.current_seed();
    offset_ = generator.get_offset();
    graph_ = std::make_unique<at::cuda::CUDAGraph>();
    // Other threads prepare batches meanwhile and may wait for events or ask for pinned memory.
    graph_->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    recording_ = true;
  }

  std::unique_ptr<Recording> end() override {
    graph_->capture_end();
    recording_ = false;
    return std::make_unique<CudaRecording>(std::move(graph_));
  }

  void abandon() override {
    if (recording_) {
      recording_ = false;
      try {
        graph_->capture_end();
      } catch (const c10::Error&) {
        // It stopped where the recording turned out to be broken, before it told the allocator.
        try {
          c10::cuda::CUDACachingAllocator::endAllocateToPool(device_.index(), pool_);
        } catch (const c10::Error&) {
          // It had been told.
        }
      }
    }
    graph_.reset();
    pool_ = at::cuda::graph_pool_handle();
    // The state that took part may still take every draw for one of a recording.
    at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(device_.index());
    generator.graphsafe_set_state(at::cuda::detail::createCUDAGenerator(device_.index()));
    generator.set_current_seed(seed_);
    generator.set_offset(offset_);
  }

 private:
  void follow(const c10::Stream& later, const c10::Stream& earlier) const {
    c10::Event done(c10::DeviceType::CUDA);
    done.record(earlier);
    done.block(later);
  }

  c10::impl::VirtualGuardImpl gpu_{c10::DeviceType::CUDA};
  c10::Device device_;
  c10::Stream stream_;
  c10::MempoolId_t pool_;
  std::optional<c10::Stream> outside_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
  bool recording_ = false;
  uint64_t seed_ = 0;
  uint64_t offset_ = 0;
};

}  // namespace
}  // namespace ultraflash

extern "C" __attribute__((visibility("default"))) ultraflash::GraphBackend*
ultraflash_make_graph_backend(int device) {
  return std::make_unique<ultraflash::CudaGraphBackend>(static_cast<c10::DeviceIndex>(device))
      .release();
}
