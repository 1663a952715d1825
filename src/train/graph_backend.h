// GraphBackend: records the work that a stretch of a training step gives to a GPU, to start it
// again with one call. What step_graph.h needs of CUDA graphs, without CUDA's types. The
// implementation is a module beside the program (cuda_graph_module.cc), because the program itself
// is not linked with the CUDA part of libtorch.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

namespace ultraflash {

class GraphBackend {
 public:
  /// Recorded work. Its memory, and that of tensors made while it was recorded, is in a pool that
  /// all recordings of a backend share: what is not held when a recording ends may be overwritten
  /// by any later one.
  class Recording {
   public:
    virtual ~Recording() = default;
    /// Does the work again, in the current stream, with the numbers that the device's generator
    /// would give now.
    virtual void replay() = 0;
  };

  virtual ~GraphBackend() = default;
  /// Work between these two goes to a stream of the backend, after all work before and before all
  /// after. Recordings are made there, and nodes of the backward pass that stay from one step to
  /// the next (accumulators of gradients) must belong to it.
  virtual void enter() = 0;
  virtual void leave() = 0;
  /// Between enter() and leave(): from here to end() or abandon(), work is written down and not
  /// done. Both throw c10::Error.
  virtual void begin() = 0;
  virtual std::unique_ptr<Recording> end() = 0;
  /// After begin() or end() have thrown, or work between them: drops what was written down. The
  /// generator is as it was before begin(). Recordings made before must not be replayed any more.
  virtual void abandon() = 0;
};

/// Null, with the reason in `why_not`, without the module or on a CPU. `device` must be open
/// (open_torch_device).
std::unique_ptr<GraphBackend> open_graph_backend(at::Device device, std::string& why_not);

// What the module offers: one C function. The caller owns the result.
inline constexpr const char* kGraphModuleFile = "libultraflash_cuda_graph.so";
inline constexpr const char* kGraphModuleName = "ultraflash_make_graph_backend";
using MakeGraphBackend = GraphBackend* (*)(int device);

}  // namespace ultraflash
