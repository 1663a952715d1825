// What several operations of the reference executor share.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <vector>

#include "core/tensor.h"
#include "ops/executor.h"

namespace ultraflash::testing {

double activated(Activation activation, double x);

/// Element of an f32 tensor, strides honoured.
float& at(const Tensor& x, std::initializer_list<int64_t> index);
double get(const Tensor& x, std::initializer_list<int64_t> index);

/// Zeros.
Tensor make(const Shape& shape);
/// `f` of every element of a contiguous f32 tensor.
Tensor map(const Tensor& x, const std::function<double(double)>& f);

/// Row of gate, shift or scale for token n of batch entry b.
double modulation(const Tensor& m, int64_t b, int64_t n, int64_t tokens, int64_t d);

/// Root-mean-square norm of the `dim` values at `x`, times `weight`.
std::vector<double> rms(const float* x, const float* weight, int64_t dim, double eps);

/// 3-D rotary embedding of one token of `dim` = heads * head_dim values.
void rotate(std::vector<double>& x, int64_t head_dim, double frame, double row, double column);

}  // namespace ultraflash::testing
