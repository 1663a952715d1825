// Operations whose gradient is written by hand: where libtorch's own would keep or move more
// memory, or round more than once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace ultraflash::autograd {

/// layer_norm(x) * (1 + scale) + shift, x [batch, tokens, dim]; scale, shift f32
/// [batch or 1, rows, dim]. Keeps x and its statistics.
at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& shift,
                               const at::Tensor& scale, double eps);
/// x + y * gate, gate f32 [batch or 1, rows, dim].
at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& y, const at::Tensor& gate);
/// RMS norm over dim with `weight` (f32), then the rotary embedding. x [batch, tokens, dim], may be
/// strided over tokens; factors complex [tokens, 1, head_dim / 2]. Computed in f32, rounded once;
/// keeps x.
at::Tensor norm_rotate(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& factors,
                       double eps);
/// The parts [begin, end) of axis 1, which may overlap, as views. Their gradients are added into
/// one tensor, where narrow() would make a whole one for every part.
std::vector<at::Tensor> token_ranges(const at::Tensor& x,
                                     const std::vector<std::pair<int64_t, int64_t>>& ranges);

}  // namespace ultraflash::autograd
