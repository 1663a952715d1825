#include "ops/autograd/functions.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>

namespace ultraflash::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using Variables = torch::autograd::variable_list;

// [batch, tokens, dim] -> [batch, rows, tokens / rows, dim]
at::Tensor by_rows(const at::Tensor& x, int64_t rows) {
  return x.view({x.size(0), rows, x.size(1) / rows, x.size(2)});
}

// Sum over the tokens of each row: [batch, rows, n, dim] -> f32 [batch or 1, rows, dim].
at::Tensor row_sum(const at::Tensor& x, int64_t batch) {
  if (batch == x.size(0)) return x.sum(std::array<int64_t, 1>{2}, /*keepdim=*/false, at::kFloat);
  return x.sum(std::array<int64_t, 2>{0, 2}, /*keepdim=*/false, at::kFloat).unsqueeze(0);
}

// a * b of bf16 and f32 operands in f32, rounded once to the type of a: with the result given,
// libtorch converts while it computes.
at::Tensor scaled(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor out = at::empty_like(a);
  at::mul_out(out, a, b);
  return out;
}

struct LayerNormModulate : Function<LayerNormModulate> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& shift,
                            const at::Tensor& scale, double eps) {
    auto [n, mean, rstd] = at::native_layer_norm(x, {x.size(2)}, {}, {}, eps);
    const at::Tensor factor = scale + 1.0;
    ctx->save_for_backward({x, mean, rstd, factor});
    ctx->saved_data["eps"] = eps;
    const int64_t rows = scale.size(1);
    at::Tensor out = at::empty_like(n);
    at::Tensor out_rows = by_rows(out, rows);
    at::addcmul_out(out_rows, shift.unsqueeze(2), by_rows(n, rows), factor.unsqueeze(2));
    return out;
  }
  static Variables backward(AutogradContext* ctx, Variables gradients) {
    const Variables saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& factor = saved[3];
    const int64_t rows = factor.size(1);
    const at::Tensor g = by_rows(gradients[0].contiguous(), rows);
    Variables result(4);
    if (ctx->needs_input_grad(1)) result[1] = row_sum(g, factor.size(0));
    if (ctx->needs_input_grad(2)) {
      const at::Tensor n = std::get<0>(
          at::native_layer_norm(x, {x.size(2)}, {}, {}, ctx->saved_data["eps"].toDouble()));
      result[2] = row_sum(g * by_rows(n, rows), factor.size(0));
    }
    if (ctx->needs_input_grad(0)) {
      const at::Tensor gn = scaled(g, factor.unsqueeze(2)).view(x.sizes());
      result[0] = std::get<0>(at::native_layer_norm_backward(gn, x, {x.size(2)}, saved[1], saved[2],
                                                             {}, {}, {true, false, false}));
    }
    return result;
  }
};

struct GatedResidual : Function<GatedResidual> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& y,
                            const at::Tensor& gate) {
    ctx->save_for_backward({y, gate});
    const int64_t rows = gate.size(1);
    at::Tensor out = at::empty_like(x);
    at::Tensor out_rows = by_rows(out, rows);
    at::addcmul_out(out_rows, by_rows(x, rows), by_rows(y, rows), gate.unsqueeze(2));
    return out;
  }
  static Variables backward(AutogradContext* ctx, Variables gradients) {
    const Variables saved = ctx->get_saved_variables();
    const at::Tensor& y = saved[0];
    const at::Tensor& gate = saved[1];
    const int64_t rows = gate.size(1);
    const at::Tensor g = by_rows(gradients[0].contiguous(), rows);
    Variables result(3);
    result[0] = gradients[0];
    if (ctx->needs_input_grad(1)) result[1] = scaled(g, gate.unsqueeze(2)).view(y.sizes());
    if (ctx->needs_input_grad(2)) result[2] = row_sum(g * by_rows(y, rows), gate.size(0));
    return result;
  }
};

// f32 [batch, tokens, dim] times complex [tokens, 1, head_dim / 2], pairs interleaved.
at::Tensor rotated(const at::Tensor& x, const at::Tensor& factors) {
  const int64_t pairs = factors.size(2);
  const at::Tensor complex =
      at::view_as_complex(x.view({x.size(0), x.size(1), x.size(2) / (2 * pairs), pairs, 2}));
  return at::view_as_real(complex * factors).view(x.sizes());
}

at::Tensor dense_float(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat
             ? x.contiguous()
             : x.to(at::kFloat, false, false, at::MemoryFormat::Contiguous);
}

// Gradients of x * rstd * weight for x and weight, all f32. libtorch has this only for GPUs.
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& g, const at::Tensor& x,
                                                     const at::Tensor& rstd,
                                                     const at::Tensor& weight,
                                                     std::array<bool, 2> wanted) {
  if (!x.is_cpu()) {
    return at::_fused_rms_norm_backward(g, x, {x.size(2)}, rstd, weight, wanted);
  }
  const at::Tensor n = x * rstd;
  at::Tensor gx;
  at::Tensor gw;
  if (wanted[0]) {
    const at::Tensor gn = g * weight;
    gx = (gn - n * (gn * n).mean({2}, /*keepdim=*/true)) * rstd;
  }
  if (wanted[1]) gw = (g * n).sum(std::array<int64_t, 2>{0, 1});
  return {gx, gw};
}

struct NormRotate : Function<NormRotate> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& factors, double eps) {
    auto [n, rstd] = at::_fused_rms_norm(dense_float(x), {x.size(2)}, weight, eps);
    ctx->save_for_backward({x, weight, factors, rstd});
    return rotated(n, factors).to(x.scalar_type());
  }
  static Variables backward(AutogradContext* ctx, Variables gradients) {
    const Variables saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    // A rotation is undone by the opposite angle.
    const at::Tensor g = rotated(dense_float(gradients[0]), at::conj(saved[2]));
    const bool wants_x = ctx->needs_input_grad(0);
    const bool wants_weight = ctx->needs_input_grad(1);
    auto [gx, gw] = rms_norm_backward(g, dense_float(x), saved[3], weight, {wants_x, wants_weight});
    Variables result(4);
    if (wants_x) result[0] = gx.to(x.scalar_type());
    if (wants_weight) result[1] = gw;
    return result;
  }
};

struct TokenRanges : Function<TokenRanges> {
  static Variables forward(AutogradContext* ctx, const at::Tensor& x,
                           const std::vector<int64_t>& bounds) {
    ctx->saved_data["bounds"] = bounds;
    ctx->saved_data["sizes"] = x.sizes().vec();
    Variables parts;
    for (size_t i = 0; i < bounds.size(); i += 2) {
      parts.push_back(x.narrow(1, bounds[i], bounds[i + 1] - bounds[i]));
    }
    return parts;
  }
  static Variables backward(AutogradContext* ctx, Variables gradients) {
    const std::vector<int64_t> bounds = ctx->saved_data["bounds"].toIntVector();
    const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
    at::Tensor sum;
    for (size_t i = 0; i < gradients.size(); ++i) {
      const at::Tensor& g = gradients[i];
      if (!g.defined()) continue;
      if (!sum.defined()) sum = at::zeros(sizes, g.options());
      sum.narrow(1, bounds[2 * i], bounds[2 * i + 1] - bounds[2 * i]).add_(g);
    }
    return {sum, at::Tensor()};
  }
};

}  // namespace

at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& shift,
                               const at::Tensor& scale, double eps) {
  return LayerNormModulate::apply(x, shift, scale, eps);
}

at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& y, const at::Tensor& gate) {
  return GatedResidual::apply(x, y, gate);
}

at::Tensor norm_rotate(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& factors,
                       double eps) {
  return NormRotate::apply(x, weight, factors, eps);
}

std::vector<at::Tensor> token_ranges(const at::Tensor& x,
                                     const std::vector<std::pair<int64_t, int64_t>>& ranges) {
  std::vector<int64_t> bounds;
  for (const auto& [begin, end] : ranges) {
    bounds.push_back(begin);
    bounds.push_back(end);
  }
  return TokenRanges::apply(x, bounds);
}

}  // namespace ultraflash::autograd
