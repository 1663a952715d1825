// Convolutions, latents, text, pictures and plain element-wise operations.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "core/check.h"
#include "ops/autograd/autograd_impl.h"

namespace ultraflash::autograd {
namespace {

const TorchWeight& prepared(const Conv& conv) {
  return static_cast<const TorchWeight&>(*conv.prepared);
}

std::optional<at::Tensor> bias_of(const Conv& conv) {
  const at::Tensor& bias = prepared(conv).bias();
  return bias.defined() ? std::optional(bias) : std::nullopt;
}

// Padding that convolution takes itself; uneven padding becomes part of the input.
std::array<int64_t, 2> pad_evenly(at::Tensor& x, const Padding& padding) {
  if (padding.top == padding.bottom && padding.left == padding.right) {
    return {padding.top, padding.left};
  }
  x = at::constant_pad_nd(x, {padding.left, padding.right, padding.top, padding.bottom});
  return {0, 0};
}

void require_compute(const Tensor& x, const Conv& conv) {
  UF_CHECK(prepared(conv).compute() == x.dtype(), "a convolution prepared for {} meets {}",
           dtype_name(prepared(conv).compute()), x.to_string());
}

}  // namespace

// --- convolutions ------------------------------------------------------------------------------

Tensor AutogradExecutor::do_conv2d(const Tensor& x, const Conv& weight,
                                   const Conv2dOptions& options) {
  require_compute(x, weight);
  const int64_t batch = x.dim(0);
  const int64_t frames = x.dim(1);
  if (frames == 0) {  // a chunk that ended in a pool's waiting frames
    const Padding& p = options.padding;
    const auto size = [&](int64_t in, int64_t before, int64_t after, int64_t kernel) {
      return (in * options.upsample + before + after - kernel) / options.stride + 1;
    };
    const Shape& kernel = weight.weight.shape();
    return do_empty(x.dtype(), {batch, 0, size(x.dim(2), p.top, p.bottom, kernel[2]),
                                size(x.dim(3), p.left, p.right, kernel[3]), kernel[0]});
  }
  at::Tensor input = in(x);
  if (options.with_memory) {
    const at::Tensor first =
        options.memory.defined() ? in(options.memory) : at::zeros_like(input.narrow(1, 0, 1));
    input = at::cat({input, at::cat({first, input.narrow(1, 0, frames - 1)}, 1)}, 4);
  }
  // Frames as a batch; a permuted view is what channels-last kernels take.
  input = input.view({batch * frames, x.dim(2), x.dim(3), input.size(4)}).permute({0, 3, 1, 2});
  if (options.upsample > 1) {
    input =
        at::upsample_nearest2d(input, {x.dim(2) * options.upsample, x.dim(3) * options.upsample});
  }
  const std::array<int64_t, 2> padding = pad_evenly(input, options.padding);
  at::Tensor y = at::conv2d(input, prepared(weight).weight(), bias_of(weight),
                            {options.stride, options.stride}, padding);
  if (options.residual.defined()) {
    const at::Tensor residual = in(options.residual);
    UF_CHECK(residual.numel() == y.numel(), "conv2d: residual {} for a result of {} elements",
             options.residual.to_string(), y.numel());
    y = y + residual.view({batch * frames, y.size(2), y.size(3), y.size(1)}).permute({0, 3, 1, 2});
  }
  y = activated(y, options.activation).permute({0, 2, 3, 1}).contiguous();
  return dense(y.view({batch, frames, y.size(1), y.size(2), y.size(3)}));
}

Tensor AutogradExecutor::do_causal_conv3d(const Tensor& x, const Conv& weight,
                                          const Conv3dOptions& options) {
  require_compute(x, weight);
  at::Tensor input = in(x);
  std::vector<at::Tensor> parts;
  if (options.zeros > 0) {
    const at::IntArrayRef s = input.sizes();
    parts.push_back(at::zeros({s[0], options.zeros, s[2], s[3], s[4]}, input.options()));
  }
  if (options.past.defined()) parts.push_back(in(options.past));
  parts.push_back(input);
  input = (parts.size() == 1 ? input : at::cat(parts, 1)).permute({0, 4, 1, 2, 3});
  const std::array<int64_t, 2> padding = pad_evenly(input, options.padding);
  const at::Tensor y =
      at::conv3d(input, prepared(weight).weight(), bias_of(weight), {options.stride_time, 1, 1},
                 std::array<int64_t, 3>{0, padding[0], padding[1]});
  return dense(y.permute({0, 2, 3, 4, 1}));
}

Tensor AutogradExecutor::do_pixel_shuffle(const Tensor& x, int64_t r, Activation activation) {
  const int64_t channels = x.dim(4) / (r * r);
  const at::Tensor y = in(x)
                           .view({x.dim(0), x.dim(1), x.dim(2), x.dim(3), channels, r, r})
                           .permute({0, 1, 2, 5, 3, 6, 4})
                           .reshape({x.dim(0), x.dim(1), x.dim(2) * r, x.dim(3) * r, channels});
  return dense(activated(y, activation));
}

// --- latents, time and noise -------------------------------------------------------------------

Tensor AutogradExecutor::do_patchify(const Tensor& a, const Tensor& b, DType dtype) {
  at::Tensor x = in(a);
  if (b.defined()) x = at::cat({x, in(b)}, 4);
  const int64_t rows = a.dim(2) / 2;
  const int64_t columns = a.dim(3) / 2;
  const int64_t channels = x.size(4);
  x = x.to(to_torch(dtype)).view({a.dim(0), a.dim(1), rows, 2, columns, 2, channels});
  return dense(x.permute({0, 1, 2, 4, 6, 3, 5})
                   .reshape({a.dim(0), a.dim(1) * rows * columns, channels * 4}));
}

Tensor AutogradExecutor::do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) {
  const int64_t channels = tokens.dim(2) / 4;
  const at::Tensor x =
      in(tokens).view({tokens.dim(0), grid.frames, grid.height, grid.width, 2, 2, channels});
  return dense(x.permute({0, 1, 2, 4, 3, 5, 6})
                   .reshape({tokens.dim(0), grid.frames, grid.height * 2, grid.width * 2, channels})
                   .to(to_torch(dtype)));
}

Tensor AutogradExecutor::do_sinusoid(std::span<const double> timesteps, int64_t dim) {
  at::Tensor t = device_timesteps_;
  if (!t.defined()) {
    t = at::empty({static_cast<int64_t>(timesteps.size())}, at::kDouble);
    std::copy(timesteps.begin(), timesteps.end(), t.data_ptr<double>());
    t = t.to(torch_device_);
  }
  UF_CHECK(t.numel() == static_cast<int64_t>(timesteps.size()) && t.scalar_type() == at::kDouble,
           "{} timesteps of the device for {} of the host", t.numel(), timesteps.size());
  at::Tensor& scale = wavelengths_[dim];
  if (!scale.defined()) {
    at::Tensor host = at::empty({dim / 2}, at::kDouble);
    for (int64_t i = 0; i < dim / 2; ++i) {
      host.data_ptr<double>()[i] =
          std::pow(10000.0, static_cast<double>(i) / static_cast<double>(dim / 2));
    }
    scale = host.to(torch_device_);
  }
  const at::Tensor angle = t.reshape({-1, 1}) / scale;
  return from_torch(at::cat({at::cos(angle), at::sin(angle)}, 1).to(at::kFloat));
}

Tensor AutogradExecutor::do_axpby(float a, const Tensor& x, float b, const Tensor& y) {
  const at::Tensor sum = at::add(in(x).to(at::kFloat) * static_cast<double>(a),
                                 in(y).to(at::kFloat), static_cast<double>(b));
  return from_torch(sum.to(to_torch(x.dtype())));
}

Tensor AutogradExecutor::do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) {
  return from_torch(
      at::sub(in(x).to(at::kDouble), in(v).to(at::kDouble), sigma).to(to_torch(x.dtype())));
}

// The numbers of a stream are the same on every executor, so they are drawn on the host.
Tensor AutogradExecutor::do_normal(RandomStream stream, const Shape& shape, DType dtype) {
  Tensor host = Tensor::allocate(DType::kF32, shape);
  fill_normal(stream, 0, {host.mutable_data<float>(), static_cast<size_t>(host.numel())});
  return from_torch(to_torch(host).to(torch_device_, to_torch(dtype), /*non_blocking=*/false,
                                      /*copy=*/true));
}

Tensor AutogradExecutor::do_cast(const Tensor& x, DType dtype) {
  return from_torch(in(x).to(to_torch(dtype)));
}

Tensor AutogradExecutor::do_activate(const Tensor& x, Activation activation) {
  return from_torch(activated(in(x), activation));
}

Tensor AutogradExecutor::do_add(const Tensor& a, const Tensor& b) {
  return from_torch(in(a) + in(b));
}

Tensor AutogradExecutor::do_multiply(const Tensor& a, const Tensor& b) {
  return from_torch(in(a)*in(b));
}

Tensor AutogradExecutor::do_soft_clamp(const Tensor& x, float limit) {
  const auto l = static_cast<double>(limit);
  return from_torch((at::tanh(in(x).to(at::kFloat) / l) * l).to(to_torch(x.dtype())));
}

Tensor AutogradExecutor::do_channel_affine(const Tensor& x, const Tensor& scale,
                                           const Tensor& shift) {
  return from_torch(
      at::addcmul(in(shift), in(x).to(at::kFloat), in(scale)).to(to_torch(x.dtype())));
}

// --- text and pictures -------------------------------------------------------------------------

Tensor AutogradExecutor::do_embedding(const Tensor& ids, const Tensor& table, DType dtype) {
  return from_torch(at::embedding(in(table), in(ids)).to(to_torch(dtype)));
}

Tensor AutogradExecutor::do_mask_rows(Tensor x, const Tensor& lengths) {
  const at::Tensor row = at::arange(x.dim(1), at::TensorOptions(at::kLong).device(torch_device_));
  const at::Tensor outside = row.unsqueeze(0) >= in(lengths).unsqueeze(1);  // [batch, rows]
  return from_torch(in(x).masked_fill(outside.unsqueeze(2), 0.0));
}

Tensor AutogradExecutor::do_to_rgb8(const Tensor& x, float low, float high) {
  at::NoGradGuard no_graph;
  const auto l = static_cast<double>(low);
  const at::Tensor unit =
      ((in(x).to(at::kFloat) - l) / (static_cast<double>(high) - l)).clamp(0.0, 1.0);
  return from_torch((unit * 255.0).to(at::kByte));
}

}  // namespace ultraflash::autograd
