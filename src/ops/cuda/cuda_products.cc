// Matrix products and convolutions: cuBLASLt and cuDNN where they take the shape, else own kernels.
#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "ops/cuda/conv_sm90.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_impl.h"

namespace ultraflash::cuda {
namespace {

constexpr int64_t kLeastFp8 = 1024;  // width from which on weights are quantised

constexpr int64_t kChannelUnit = 8;  // of bf16: 16 bytes, what tensor-core kernels load at once

int64_t out_size(int64_t in, int64_t low, int64_t high, int64_t kernel, int64_t stride) {
  return (in + low + high - kernel) / stride + 1;
}

const float* floats(const Tensor& x) {
  return x.defined() ? reinterpret_cast<const float*>(x.raw()) : nullptr;
}
const void* bytes(const Tensor& x) { return x.defined() ? x.raw() : nullptr; }
size_t size_of(const Tensor& x) { return x.defined() ? x.size_bytes() : 0; }

void require_compute(DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBF16) refuse_dtype(dtype);
}

// [out, in, (time,) h, w] -> [stored_out, h, w, time, in]: with the frames of a 3-D kernel side by
// side along the channels, every convolution is a 2-D one.
template <typename T>
void reorder_taps(const Tensor& weight, const Tensor& result) {
  const bool has_time = weight.rank() == 5;
  const int64_t out = weight.dim(0);
  const int64_t in = weight.dim(1);
  const int64_t time = has_time ? weight.dim(2) : 1;
  const int64_t area = weight.dim(-1) * weight.dim(-2);
  const T* w = reinterpret_cast<const T*>(weight.raw());
  T* r = reinterpret_cast<T*>(result.mutable_raw());
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t t = 0; t < time; ++t) {
        for (int64_t a = 0; a < area; ++a) {
          r[((o * area + a) * time + t) * in + i] = w[((o * in + i) * time + t) * area + a];
        }
      }
    }
  }
}

}  // namespace

size_t CudaLinear::size_bytes() const {
  return size_of(weight) + size_of(bias) + size_of(bias_f32) + size_of(weight8) + size_of(scales8);
}
size_t CudaConv::size_bytes() const {
  return size_of(weight) + size_of(enlarged) + size_of(bias) + size_of(bias_f32);
}

// The parts stacked along the first axis, on the GPU.
Tensor CudaExecutor::joined_parts(const std::vector<Tensor>& parts, DType dtype) {
  if (parts.size() == 1) return upload(parts[0], dtype);
  int64_t rows = 0;
  for (const Tensor& part : parts) rows += part.dim(0);
  Tensor joined = do_empty(dtype, parts[0].shape().with(0, rows));
  int64_t row = 0;
  for (const Tensor& part : parts) {
    do_copy(joined.slice(0, row, row + part.dim(0)), upload(part, dtype));
    row += part.dim(0);
  }
  return joined;
}

void CudaExecutor::do_prepare(Linear& linear, const PrepareOptions& options) {
  require_compute(options.compute);
  auto prepared = std::make_shared<CudaLinear>();
  prepared->compute = options.compute;
  if (!linear.biases.empty()) {
    prepared->bias_f32 = joined_parts(linear.biases, DType::kF32);
    prepared->bias = cast(prepared->bias_f32, options.compute);
  }
  if (options.streamed) {
    prepared->streamed = linear.weights;
  } else {
    prepared->weight = joined_parts(linear.weights, options.compute);
  }
  // The products of a transformer block; small ones are no faster in fp8.
  if (fp8_ && !options.streamed && !options.few_rows && options.compute == DType::kBF16 &&
      linear.in_features >= kLeastFp8 && linear.out_features >= kLeastFp8 &&
      linear.in_features % 16 == 0 && linear.out_features % 16 == 0 &&
      kernels::quantises(linear.in_features)) {
    prepared->weight8 = do_empty(DType::kF8E4M3, {linear.out_features, linear.in_features});
    prepared->scales8 = do_empty(DType::kF32, {linear.out_features});
    kernels::QuantiseArgs args;
    args.x = prepared->weight.raw();
    args.rows = linear.out_features;
    args.dim = linear.in_features;
    args.y = prepared->weight8.mutable_raw();
    args.scales = reinterpret_cast<float*>(prepared->scales8.mutable_raw());
    kernels::quantise_rows(args, stream_);
    prepared->weight = Tensor();  // in stream order: what takes its place is written later
  }
  synchronize();  // other executors' streams read it
  linear.prepared = std::move(prepared);
}

void CudaExecutor::do_prepare(Conv& conv, const PrepareOptions& options) {
  require_compute(options.compute);
  auto prepared = std::make_shared<CudaConv>();
  prepared->compute = options.compute;
  prepared->out = conv.weight.dim(0);
  const bool pad = options.compute == DType::kBF16 && cudnn_ != nullptr;
  prepared->stored_out =
      pad ? (prepared->out + kChannelUnit - 1) / kChannelUnit * kChannelUnit : prepared->out;
  const int64_t time = conv.weight.rank() == 5 ? conv.weight.dim(2) : 1;
  const Tensor source = conv.weight.contiguous() ? conv.weight.to(options.compute)
                                                 : conv.weight.copy().to(options.compute);
  const Tensor ordered = Tensor::zeros(
      options.compute,
      {prepared->stored_out, conv.weight.dim(-2), conv.weight.dim(-1), time * conv.weight.dim(1)});
  if (options.compute == DType::kBF16) {
    reorder_taps<uint16_t>(source, ordered);
  } else {
    reorder_taps<float>(source, ordered);
  }
  prepared->weight = upload(ordered, options.compute);
  if (hopper_ && !plain_ && options.compute == DType::kBF16 &&
      conv.weight.shape() == Shape{64, 64, 3, 3}) {
    const Tensor exact =
        conv.weight.contiguous() ? conv.weight.to(DType::kF32) : conv.weight.copy().to(DType::kF32);
    const Tensor taps = Tensor::zeros(DType::kF32, {64, 9, 64});
    reorder_taps<float>(exact, taps);
    const Tensor enlarged = Tensor::zeros(DType::kF32, {64, 16, 64});
    sm90::enlarged_weights(floats(taps), reinterpret_cast<float*>(enlarged.mutable_raw()));
    prepared->enlarged = upload(enlarged, options.compute);
  }
  if (conv.bias.defined()) {
    const Tensor bias = Tensor::zeros(DType::kF32, {prepared->stored_out});
    bias.slice(0, 0, prepared->out).assign(conv.bias.to(DType::kF32));
    prepared->bias_f32 = upload(bias, DType::kF32);
    prepared->bias = cast(prepared->bias_f32, options.compute);
  }
  synchronize();
  conv.prepared = std::move(prepared);
}

Tensor CudaExecutor::empty_fp8(const Shape& shape) {
  const int64_t rows = shape.numel() / std::max<int64_t>(shape[shape.rank() - 1], 1);
  const auto scale_bytes = rows * static_cast<int64_t>(sizeof(float));
  return do_empty(DType::kF8E4M3, {shape.numel() + scale_bytes})
      .slice(0, 0, shape.numel())
      .reshape(shape);
}

float* CudaExecutor::scales_of(const Tensor& x) {
  return reinterpret_cast<float*>(x.mutable_raw() + x.numel());
}

CudaExecutor::Fp8Rows CudaExecutor::fp8_rows(const Tensor& x, int64_t rows, int64_t dim) {
  if (x.dtype() == DType::kF8E4M3) return {x.reshape({rows, dim}), scales_of(x)};
  const Tensor made = empty_fp8({rows, dim});
  kernels::QuantiseArgs args;
  args.x = x.raw();
  args.rows = rows;
  args.dim = dim;
  args.y = made.mutable_raw();
  args.scales = scales_of(made);
  kernels::quantise_rows(args, stream_);
  return {made, args.scales};
}

void CudaExecutor::product_in_fp8(const Fp8Rows& x, const CudaLinear& weight, Activation activation,
                                  const Tensor& y) {
  ProductArgs args;
  args.dtype = DType::kBF16;
  args.x = x.values.raw();
  args.w = weight.weight8.raw();
  args.x_scales = x.scales;
  args.w_scales = floats(weight.scales8);
  args.fast_sums = fp8_fast_sums_;
  args.y = y.mutable_raw();
  args.rows = x.values.dim(0);
  args.in = weight.weight8.dim(1);
  args.out = weight.weight8.dim(0);
  args.bias = bytes(weight.bias);
  args.activation = activation;
  void* workspace = workspace_.mutable_raw();
  const size_t size = workspace_.size_bytes();
  if (blas_->fuses(args.dtype, activation) && blas_->product(args, workspace, size, stream_))
    return;
  args.activation = Activation::kNone;
  if (activation != Activation::kNone && blas_->product(args, workspace, size, stream_)) {
    kernels::finish_product(y.mutable_raw(), nullptr, args.rows, args.out, activation, stream_);
    return;
  }
  args.bias = nullptr;
  if (!blas_->product(args, workspace, size, stream_)) {
    throw_error(
        StatusCode::kUnsupported,
        "cuBLASLt has no product in fp8 of {} rows with a weight [{}, {}]; use --dtype bf16",
        args.rows, args.out, args.in);
  }
  if (weight.bias.defined() || activation != Activation::kNone) {
    kernels::finish_product(y.mutable_raw(), floats(weight.bias_f32), args.rows, args.out,
                            activation, stream_);
  }
}

void CudaExecutor::product(const Tensor& x, int64_t rows, const CudaLinear& weight, int64_t in,
                           int64_t out, Activation activation, const Tensor& y) {
  if (rows * out == 0) return;
  if (weight.weight8.defined()) {
    product_in_fp8(fp8_rows(x, rows, in), weight, activation, y);
    return;
  }
  UF_CHECK(x.dtype() == weight.compute, "a product of {} with a weight in {}", x.to_string(),
           dtype_name(weight.compute));
  const Tensor w =
      weight.streamed.empty() ? weight.weight : joined_parts(weight.streamed, weight.compute);
  ProductArgs args;
  args.dtype = weight.compute;
  args.x = x.raw();
  args.w = w.raw();
  args.bias = bytes(weight.bias);
  args.y = y.mutable_raw();
  args.rows = rows;
  args.in = in;
  args.out = out;
  const bool fused = blas_->fuses(weight.compute, activation);
  args.activation = fused ? activation : Activation::kNone;
  if (blas_->product(args, workspace_.mutable_raw(), workspace_.size_bytes(), stream_)) {
    if (!fused) {
      kernels::activate(weight.compute, activation, y.raw(), y.mutable_raw(), y.numel(), stream_);
    }
    return;
  }
  kernels::ConvArgs plain;
  plain.dtype = weight.compute;
  plain.x = x.raw();
  plain.w = w.raw();
  plain.bias = floats(weight.bias_f32);
  plain.y = y.mutable_raw();
  plain.width = plain.out_w = rows;
  plain.channels = in;
  plain.out_channels = out;
  plain.activation = activation;
  kernels::convolve(plain, stream_);
}

Tensor CudaExecutor::do_linear(const Tensor& x, const Linear& weight, Activation activation) {
  const auto& prepared = static_cast<const CudaLinear&>(*weight.prepared);
  const bool ready = x.dtype() == prepared.compute || x.dtype() == DType::kF8E4M3;
  const Tensor input = ready ? x : do_cast(x, prepared.compute);
  Tensor y = do_empty(prepared.compute, x.shape().with(-1, weight.out_features));
  product(input, x.numel() / std::max<int64_t>(weight.in_features, 1), prepared, weight.in_features,
          weight.out_features, activation, y);
  return y;
}

Tensor CudaExecutor::do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) {
  if (frames == 1) return do_linear(x, weight, Activation::kNone);
  // [b * t, frames, h * w, c] -> [b * t, h * w, frames, c]
  const Tensor joined =
      do_empty(x.dtype(), {x.dim(0), x.dim(1) / frames, x.dim(2), x.dim(3), x.dim(4) * frames});
  const auto element = static_cast<int64_t>(dtype_size(x.dtype()));
  kernels::swap_axes(x.raw(), x.dim(0) * x.dim(1) / frames, frames, x.dim(2) * x.dim(3),
                     x.dim(4) * element, joined.mutable_raw(), stream_);
  return do_linear(joined, weight, Activation::kNone);
}

Tensor CudaExecutor::do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) {
  Tensor grown = do_linear(x, weight, Activation::kNone);  // [b, t, h, w, frames * c]
  if (frames == 1) return grown;
  const int64_t channels = weight.out_features / frames;
  Tensor out = do_empty(grown.dtype(), {x.dim(0), x.dim(1) * frames, x.dim(2), x.dim(3), channels});
  const auto element = static_cast<int64_t>(dtype_size(grown.dtype()));
  kernels::swap_axes(grown.raw(), x.dim(0) * x.dim(1), x.dim(2) * x.dim(3), frames,
                     channels * element, out.mutable_raw(), stream_);
  return out;
}

// x is what the taps read: frames of a time kernel and the memory lie along its channels already.
Tensor CudaExecutor::convolution(const Tensor& x, const CudaConv& weight, int64_t kernel_h,
                                 int64_t kernel_w, const Padding& pad, int64_t stride,
                                 Activation activation, const Tensor& residual) {
  kernels::ConvArgs args;
  args.dtype = x.dtype();
  args.x = x.raw();
  args.w = weight.weight.raw();
  args.bias = floats(weight.bias_f32);
  args.images = x.dim(0) * x.dim(1);
  args.height = x.dim(2);
  args.width = x.dim(3);
  args.channels = x.dim(4);
  args.kernel_h = kernel_h;
  args.kernel_w = kernel_w;
  args.stride = stride;
  args.pad_top = pad.top;
  args.pad_left = pad.left;
  args.activation = activation;
  args.out_h = out_size(args.height, pad.top, pad.bottom, kernel_h, stride);
  args.out_w = out_size(args.width, pad.left, pad.right, kernel_w, stride);
  const Shape shape{x.dim(0), x.dim(1), args.out_h, args.out_w, weight.out};
  if (residual.defined()) {
    UF_CHECK(residual.shape() == shape && residual.dtype() == x.dtype() && residual.contiguous(),
             "conv2d: residual {} for a result {}", residual.to_string(), shape.to_string());
  }
  Tensor y = residual.exclusive() ? residual : do_empty(x.dtype(), shape);
  if (y.numel() == 0) return y;

  // cuDNN may not write where it reads, and its result has the stored channels.
  const bool cropped = weight.stored_out != weight.out;
  if (cudnn_ != nullptr && x.dtype() == DType::kBF16 && args.channels % kChannelUnit == 0 &&
      !(cropped && residual.defined())) {
    args.out_channels = weight.stored_out;
    args.residual = bytes(residual);
    const bool fused = activation == Activation::kNone || activation == Activation::kRelu;
    if (!fused) args.activation = Activation::kNone;
    const int64_t needed = cudnn_->plan_convolution(args, pad.bottom, pad.right);
    if (needed >= 0) {
      Tensor full = y;
      if (cropped) {
        full = do_empty(x.dtype(), shape.with(4, weight.stored_out));
      } else if (residual.defined()) {
        full = y = do_empty(x.dtype(), shape);
      }
      args.y = full.mutable_raw();
      const Tensor larger =
          needed > workspace_.numel() ? do_empty(DType::kU8, {needed}) : workspace_;
      cudnn_->convolution(args, bytes(weight.bias), pad.bottom, pad.right, larger.mutable_raw(),
                          stream_);
      if (cropped) {
        kernels::crop_channels(full.raw(), y.numel() / weight.out, weight.stored_out, weight.out,
                               static_cast<int>(dtype_size(x.dtype())), y.mutable_raw(), stream_);
      }
      if (!fused)
        kernels::activate(x.dtype(), activation, y.raw(), y.mutable_raw(), y.numel(), stream_);
      return y;
    }
    args.activation = activation;
  }
  args.out_channels = weight.out;
  args.residual = bytes(residual);
  args.y = y.mutable_raw();
  kernels::convolve(args, stream_);
  return y;
}

bool CudaExecutor::convolution_sm90(const Tensor& x, const Conv& conv, const Conv2dOptions& options,
                                    Tensor& y) {
  const auto& prepared = static_cast<const CudaConv&>(*conv.prepared);
  const Padding& pad = options.padding;
  if (!hopper_ || plain_ || x.dtype() != DType::kBF16 || prepared.compute != DType::kBF16 ||
      x.dim(0) != 1 || x.dim(4) != 64 || !x.contiguous() || conv.weight.dim(2) != 3 ||
      conv.weight.dim(3) != 3 || conv.weight.dim(1) != (options.with_memory ? 128 : 64) ||
      (prepared.stored_out != 64 && prepared.stored_out != 8) || options.stride != 1 ||
      pad.top != 1 || pad.bottom != 1 || pad.left != 1 || pad.right != 1 || options.upsample > 2 ||
      (options.upsample == 2 && (options.with_memory || !prepared.enlarged.defined())) ||
      (options.activation != Activation::kNone && options.activation != Activation::kRelu)) {
    return false;
  }
  const Shape shape{1, x.dim(1), x.dim(2) * options.upsample, x.dim(3) * options.upsample,
                    prepared.out};
  if (options.residual.defined() &&
      (options.residual.shape() != shape || options.residual.dtype() != DType::kBF16 ||
       !options.residual.contiguous())) {
    return false;  // convolution() says what is wrong
  }
  sm90::ConvArgs args;
  args.input = options.with_memory     ? sm90::ConvInput::kWithPast
               : options.upsample == 2 ? sm90::ConvInput::kEnlarged
                                       : sm90::ConvInput::kFrame;
  args.x = x.raw();
  args.past = bytes(options.memory);
  args.residual = bytes(options.residual);
  args.weight = options.upsample == 2 ? prepared.enlarged.raw() : prepared.weight.raw();
  args.bias = floats(prepared.bias_f32);
  args.frames = x.dim(1);
  args.height = x.dim(2);
  args.width = x.dim(3);
  args.channels = prepared.out;
  args.relu = options.activation == Activation::kRelu;
  if (!sm90::conv_supports(args)) return false;
  y = do_empty(DType::kBF16, shape);
  args.y = y.mutable_raw();
  UF_CUDA_TRY(sm90::convolve(args, multiprocessors_, stream_));
  return true;
}

Tensor CudaExecutor::do_conv2d(const Tensor& x_any, const Conv& weight,
                               const Conv2dOptions& options) {
  const auto& prepared = static_cast<const CudaConv&>(*weight.prepared);
  const Tensor x = x_any.dtype() == prepared.compute ? x_any : do_cast(x_any, prepared.compute);
  UF_CHECK(!options.memory.defined() || options.memory.dtype() == x.dtype(),
           "conv2d: memory {} beside x {}", options.memory.to_string(), x.to_string());
  if (Tensor y; convolution_sm90(x, weight, options, y)) return y;
  Tensor input = x;
  if (options.with_memory || options.upsample > 1) {
    kernels::GatherArgs gather;
    gather.x = x.raw();
    gather.past = bytes(options.memory);
    gather.samples = x.dim(0);
    gather.frames = gather.out_frames = x.dim(1);
    gather.height = x.dim(2);
    gather.width = x.dim(3);
    gather.channels = x.dim(4);
    gather.upsample = options.upsample;
    gather.element_bytes = static_cast<int>(dtype_size(x.dtype()));
    if (options.with_memory) {
      gather.taps = 2;
      gather.reversed = true;  // (x_t, x_{t-1})
      (options.memory.defined() ? gather.past_frames : gather.zero_frames) = 1;
    }
    input = do_empty(x.dtype(), {x.dim(0), x.dim(1), x.dim(2) * options.upsample,
                                 x.dim(3) * options.upsample, x.dim(4) * gather.taps});
    kernels::gather_frames(gather, input.mutable_raw(), stream_);
  }
  return convolution(input, prepared, weight.weight.dim(2), weight.weight.dim(3), options.padding,
                     options.stride, options.activation, options.residual);
}

Tensor CudaExecutor::do_causal_conv3d(const Tensor& x_any, const Conv& weight,
                                      const Conv3dOptions& options) {
  const auto& prepared = static_cast<const CudaConv&>(*weight.prepared);
  const Tensor x = x_any.dtype() == prepared.compute ? x_any : do_cast(x_any, prepared.compute);
  const int64_t time = weight.weight.dim(2);
  kernels::GatherArgs gather;
  gather.x = x.raw();
  gather.past = bytes(options.past);
  gather.samples = x.dim(0);
  gather.frames = x.dim(1);
  gather.past_frames = options.past.defined() ? options.past.dim(1) : 0;
  gather.zero_frames = options.zeros;
  gather.height = x.dim(2);
  gather.width = x.dim(3);
  gather.channels = x.dim(4);
  gather.taps = time;
  gather.stride_time = options.stride_time;
  gather.out_frames = out_size(gather.zero_frames + gather.past_frames + gather.frames, 0, 0, time,
                               options.stride_time);
  gather.element_bytes = static_cast<int>(dtype_size(x.dtype()));
  const Tensor input =
      do_empty(x.dtype(), {x.dim(0), gather.out_frames, x.dim(2), x.dim(3), x.dim(4) * time});
  kernels::gather_frames(gather, input.mutable_raw(), stream_);
  return convolution(input, prepared, weight.weight.dim(3), weight.weight.dim(4), options.padding,
                     /*stride=*/1, Activation::kNone, {});
}

}  // namespace ultraflash::cuda
