// The executor of training with activation recomputation.
//
// Inside a region (Executor::begin_region) every operation runs without a graph and is written down
// on a tape: what to call, and for each argument whether it is the result of an earlier operation
// of the region or came from outside. When the region ends, its results get one node in the graph
// that holds the tape, and with it the tensors from outside. The backward pass runs the tape again,
// now with a graph, and differentiates that. So no network has to know how it is run again, and
// caches need no care: they are functional, and their old contents are a tensor from outside.
#pragma once

#include <memory>

#include "ops/autograd/autograd_executor.h"

namespace ultraflash::autograd {

std::unique_ptr<Executor> make_recompute_executor(const AutogradOptions& options);

}  // namespace ultraflash::autograd
