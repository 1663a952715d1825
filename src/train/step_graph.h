// StepGraphs: the forward and backward pass of a training step as one recording. A step of small
// networks is some thousand short kernels, and starting them takes the host longer than running
// them takes the GPU; a recording is started with one call.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "train/graph_backend.h"
#include "train/objective.h"

namespace ultraflash {

/// What a pass leaves beside gradients.
struct StepResult {
  std::vector<std::pair<std::string, at::Tensor>> scalars;  // for the Meter, in order
  std::vector<at::Tensor> tensors;                          // for what comes after it

  void add(const std::string& name, const at::Tensor& scalar) {
    scalars.emplace_back(name, scalar.detach());
  }
  void report(Meter& meter) const {
    for (const auto& [name, scalar] : scalars) meter.add(name, scalar);
  }
};

class StepGraphs {
 public:
  /// What is recorded: forward pass, and backward() into the leaves of one set. It reads nothing
  /// that changes from step to step but its inputs, the weights (changed in place) and the device's
  /// random numbers, which the caller seeds; it neither waits for the device nor copies between it
  /// and the host; networks without gradients that it uses keep their weights. Random choices and
  /// switches of the host belong to the key. The same body must give the same result without a
  /// recording.
  using Body = std::function<StepResult(const std::vector<at::Tensor>& inputs)>;

  /// With the config's `cuda_graphs` on a GPU; else, or when it cannot be had, run() runs bodies
  /// and nothing more. Says which in the log.
  static std::unique_ptr<StepGraphs> open(const TrainContext& context);
  /// `backend` null: run() runs bodies. The first `warm_up` runs of a key go without a recording:
  /// algorithms are chosen then, and tables made.
  StepGraphs(const TrainContext& context, std::unique_ptr<GraphBackend> backend,
             int64_t warm_up = kWarmUp);

  /// Runs `body` on `inputs`, which may lie on the host and are moved to the device. Each key and
  /// each shapes of the inputs have a recording. `learning` has gradients of this pass alone
  /// afterwards. Tensors of the result and gradients are valid until the next run; a body that
  /// takes them has them as its inputs.
  StepResult run(const std::string& key, const ParameterSet& learning,
                 const std::vector<at::Tensor>& inputs, const Body& body) {
    return run(key, &learning, inputs, body);
  }
  /// For what has no backward pass.
  StepResult run(const std::string& key, const std::vector<at::Tensor>& inputs, const Body& body) {
    return run(key, nullptr, inputs, body);
  }
  [[nodiscard]] bool records() const { return backend_ != nullptr; }

 private:
  static constexpr int64_t kWarmUp = 2;

  struct Entry {
    int64_t runs = 0;
    bool failed = false;  // goes on without
    std::unique_ptr<GraphBackend::Recording> recording;
    std::vector<at::Tensor> inputs;     // what the recording reads
    std::vector<at::Tensor> gradients;  // and what it writes, in the order of the leaves
    StepResult result;
  };

  StepResult run(const std::string& key, const ParameterSet* learning,
                 const std::vector<at::Tensor>& inputs, const Body& body);
  [[nodiscard]] std::vector<at::Tensor> on_device(const std::vector<at::Tensor>& inputs) const;
  /// Without a recording, in the backend's stream.
  StepResult run_aside(const std::vector<at::Tensor>& inputs, const Body& body);
  /// Whether it could be done.
  bool record(const std::string& key, Entry& entry, const ParameterSet* learning,
              const std::vector<at::Tensor>& inputs, const Body& body);

  const TrainContext& context_;
  int64_t warm_up_;
  std::unique_ptr<GraphBackend> backend_;
  std::map<std::string, Entry> entries_;  // recordings go before the backend
};

}  // namespace ultraflash
