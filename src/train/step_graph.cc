#include "train/step_graph.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <exception>

#include "ops/autograd/autograd_executor.h"

namespace ultraflash {
namespace {

std::string with_shapes(std::string key, const std::vector<at::Tensor>& inputs) {
  for (const at::Tensor& input : inputs) {
    key += fmt::format(" {}[{}]", at::toString(input.scalar_type()),
                       fmt::join(input.sizes().begin(), input.sizes().end(), ","));
  }
  return key;
}

void drop_gradients(const ParameterSet* set) {
  if (set == nullptr) return;
  for (const at::Tensor& leaf : set->leaves()) leaf.mutable_grad().reset();
}

// The first line of a message of libtorch; the rest are places in its sources.
std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

// Leaves the backend's stream on every way out.
class Aside {
 public:
  explicit Aside(GraphBackend& backend) : backend_(backend) { backend_.enter(); }
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;
  ~Aside() { backend_.leave(); }

 private:
  GraphBackend& backend_;
};

}  // namespace

std::unique_ptr<StepGraphs> StepGraphs::open(const TrainContext& context) {
  std::unique_ptr<GraphBackend> backend;
  if (context.config.cuda_graphs && context.device.is_cuda()) {
    std::string why_not;
    if (context.config.recompute != Recompute::kNone) {
      // Its tapes are for networks whose steps the GPU limits.
      why_not = "not with recompute";
    } else {
      backend = open_graph_backend(context.device, why_not);
    }
    context.log.info(backend ? "steps are recorded as CUDA graphs"
                             : fmt::format("steps are not recorded as CUDA graphs: {}", why_not));
  }
  return std::make_unique<StepGraphs>(context, std::move(backend));
}

StepGraphs::StepGraphs(const TrainContext& context, std::unique_ptr<GraphBackend> backend,
                       int64_t warm_up)
    : context_(context), warm_up_(warm_up), backend_(std::move(backend)) {}

std::vector<at::Tensor> StepGraphs::on_device(const std::vector<at::Tensor>& inputs) const {
  std::vector<at::Tensor> moved;
  for (const at::Tensor& input : inputs) {
    moved.push_back(input.detach().to(context_.device, /*non_blocking=*/true));
  }
  return moved;
}

StepResult StepGraphs::run(const std::string& key, const ParameterSet* learning,
                           const std::vector<at::Tensor>& inputs, const Body& body) {
  drop_gradients(learning);
  if (!backend_) return body(on_device(inputs));
  const std::string full_key = with_shapes(key, inputs);
  Entry& entry = entries_[full_key];
  if (entry.failed) return body(on_device(inputs));
  if (!entry.recording) {
    if (entry.runs++ < warm_up_) return run_aside(on_device(inputs), body);
    if (!record(full_key, entry, learning, inputs, body)) return body(on_device(inputs));
  }
  {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < inputs.size(); ++i) {
      entry.inputs[i].copy_(inputs[i], /*non_blocking=*/true);
    }
  }
  entry.recording->replay();
  for (size_t i = 0; i < entry.gradients.size(); ++i) {
    if (entry.gradients[i].defined()) learning->leaves()[i].mutable_grad() = entry.gradients[i];
  }
  return entry.result;
}

StepResult StepGraphs::run_aside(const std::vector<at::Tensor>& inputs, const Body& body) {
  const Aside aside(*backend_);
  return body(inputs);
}

bool StepGraphs::record(const std::string& key, Entry& entry, const ParameterSet* learning,
                        const std::vector<at::Tensor>& inputs, const Body& body) {
  // Of other steps' memory and not the pool's, which the body may use again.
  for (const at::Tensor& input : inputs) {
    entry.inputs.push_back(input.detach().to(context_.device, /*non_blocking=*/true).clone());
  }
  // Weights in the compute type are made inside, from what the leaves then hold. Their graphs also
  // keep accumulators of gradients alive, which may belong to another stream.
  drop_conversions(context_.ops(), /*frozen=*/false);
  keep_tables(context_.ops());
  try {
    const Aside aside(*backend_);
    try {
      backend_->begin();
      entry.result = body(entry.inputs);
      entry.recording = backend_->end();
    } catch (...) {
      backend_->abandon();
      throw;
    }
    if (learning != nullptr) {
      for (const at::Tensor& leaf : learning->leaves()) entry.gradients.push_back(leaf.grad());
    }
    // Made, but not run yet: nobody else shall find them.
    drop_conversions(context_.ops(), /*frozen=*/false);
    return true;
  } catch (const std::exception& error) {
    context_.log.warning(
        fmt::format("this part of a step cannot be recorded as a CUDA graph and goes on without: "
                    "{} ({})",
                    key, first_line(error.what())));
  }
  drop_conversions(context_.ops(), /*frozen=*/true);
  drop_gradients(learning);
  for (auto& [name, other] : entries_) {  // none of them may be replayed
    const int64_t runs = other.runs;
    const bool failed = other.failed;
    other = Entry{};
    other.runs = runs;
    other.failed = failed;
  }
  entry.failed = true;
  return false;
}

}  // namespace ultraflash
