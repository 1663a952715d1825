// Our tensors as libtorch's and back, without copying an element and without losing the graph.
//
// A Tensor made by from_torch() keeps the at::Tensor in its Storage; slices, reshapes and
// permutations of the handle are views of that one tensor, and to_torch() turns them into
// differentiable views of it. So a network that slices its weights or activations stays inside the
// graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "core/tensor.h"

namespace ultraflash {

/// Makes libtorch able to use `device`; call it before anything else touches libtorch when the
/// device is a GPU, because libtorch looks for its CUDA part only once. Opens libtorch_cuda.so of
/// the libtorch in use. Throws Error(kUnsupported) with the reason.
void open_torch_device(Device device);

/// A handle on `tensor` (strides kept); no copy. The handle shares the tensor's place in the graph.
Tensor from_torch(const at::Tensor& tensor);
/// The tensor that a handle stands for. A handle on memory of ours (a mapped file, an arena)
/// becomes a CPU tensor over the same memory, which stays alive as long as the tensor does; it must
/// not be written.
at::Tensor to_torch(const Tensor& x);
/// to_torch(), moved to `device` when it lies elsewhere.
at::Tensor to_torch(const Tensor& x, at::Device device);
/// Whether `x` stands for an at::Tensor, so that to_torch() shares its graph.
bool holds_torch(const Tensor& x);

/// The whole at::Tensor behind a handle, of which the handle may be a view; null for others.
const at::Tensor* kept_tensor(const Tensor& x);
/// A number that recomputation (recompute_executor.h) puts on the memory behind a handle; 0 at
/// first. The handle is one of from_torch().
void set_tag(const Tensor& x, uint64_t tag);
uint64_t tag_of(const Tensor& x);

at::ScalarType to_torch(DType dtype);
DType from_torch(at::ScalarType type);
at::Device to_torch(Device device);
Device from_torch(at::Device device);

}  // namespace ultraflash
