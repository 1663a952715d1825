// Matrix products: oneDNN's where it is fast, else the packed product of the kernel table; and
// weights that stay in the file and are converted panel by panel.
#include <omp.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "ops/cpu/cpu_executor.h"

namespace ultraflash::cpu {
namespace {

// Rows of a streamed weight that are converted at a time: a few MB for the widest layers.
constexpr int64_t kStreamPanel = 512;

// The parts stacked along the output, contiguous, in the compute type.
Tensor stack_parts(const std::vector<Tensor>& parts, int64_t out, int64_t in, DType dtype) {
  Tensor stacked = Tensor::allocate(dtype, {out, in});
  int64_t row = 0;
  for (const Tensor& part : parts) {
    const Tensor dense = part.contiguous() ? part : part.copy();
    convert_elements(dense.dtype(), dense.raw(), dtype,
                     stacked.slice(0, row, row + part.dim(0)).mutable_raw(), dense.numel());
    row += part.dim(0);
  }
  return stacked;
}

}  // namespace

size_t CpuLinear::size_bytes() const {
  return (bias.defined() ? bias.size_bytes() : 0) + (onednn ? onednn->size_bytes() : 0) +
         (packed.defined() ? packed.size_bytes() : 0);
}

void CpuExecutor::do_prepare(Linear& linear, const PrepareOptions& options) {
  if (options.compute != DType::kF32 && options.compute != DType::kBF16) {
    throw_error(StatusCode::kUnsupported,
                "the CPU computes in f32 and bf16, not in {}; pass --dtype f32 or bf16",
                dtype_name(options.compute));
  }
  omp_set_num_threads(threads_);
  auto prepared = std::make_shared<CpuLinear>();
  prepared->compute = options.compute;
  if (!linear.biases.empty()) {
    prepared->bias = Tensor::allocate(DType::kF32, {linear.out_features});
    int64_t row = 0;
    for (const Tensor& bias : linear.biases) {
      prepared->bias.slice(0, row, row + bias.dim(0)).assign(bias.to(DType::kF32));
      row += bias.dim(0);
    }
  }
  const bool library = onednn_ && onednn_->fast(options.compute);
  if (options.streamed) {
    prepared->streamed = linear.weights;
  } else if (library) {
    const Tensor& only = linear.weights[0];
    const bool as_is =
        linear.weights.size() == 1 && only.dtype() == options.compute && only.contiguous();
    prepared->onednn =
        onednn_->pack_linear(as_is ? only
                                   : stack_parts(linear.weights, linear.out_features,
                                                 linear.in_features, options.compute));
  } else {
    // Rounded to the compute type first, so that both paths multiply the same numbers.
    const Tensor rounded =
        stack_parts(linear.weights, linear.out_features, linear.in_features, options.compute)
            .to(DType::kF32);
    prepared->packed = Tensor::allocate(
        DType::kF32, {kernels_->packed_size(linear.out_features, linear.in_features)});
    kernels_->pack_columns(rounded.data<float>(), linear.in_features, linear.out_features,
                           linear.in_features, prepared->packed.mutable_data<float>());
  }
  linear.prepared = std::move(prepared);
}

void CpuExecutor::own_gemm(const void* x, int64_t rows, const float* packed, const float* bias,
                           int64_t in, int64_t out, DType dtype, Activation activation, void* y,
                           int64_t y_stride) {
  constexpr int64_t kBlock = 48;  // rows that are converted and multiplied at a time
  const bool convert = dtype != DType::kF32;
  if (convert) prepare_thread_scratch(kBlock * in);
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    const auto thread = static_cast<size_t>(omp_get_thread_num());
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock;
      PackedGemmArgs args;
      args.rows = std::min(kBlock, rows - first);
      const auto* source = static_cast<const std::byte*>(x) + first * in * element;
      if (convert) {
        float* wide = thread_scratch(thread, kBlock * in);
        kernels_->convert(dtype, source, DType::kF32, wide, args.rows * in);
        args.x = wide;
      } else {
        args.x = reinterpret_cast<const float*>(source);
      }
      args.x_stride = in;
      args.inner = in;
      args.packed = packed;
      args.bias = bias;
      args.columns = out;
      args.activation = activation;
      args.y = static_cast<std::byte*>(y) + first * y_stride * element;
      args.y_dtype = dtype;
      args.y_stride = y_stride;
      kernels_->packed_gemm(args);
    }
  });
}

void CpuExecutor::streamed_linear(const void* x, int64_t rows, const CpuLinear& weight, int64_t in,
                                  int64_t out, Activation activation, void* y) {
  const bool library = onednn_ && onednn_->fast(weight.compute);
  const auto element = static_cast<int64_t>(dtype_size(weight.compute));
  const int64_t packed_size = library ? 0 : kernels_->packed_size(kStreamPanel, in);
  const Tensor panel = arena_.allocate(weight.compute, {kStreamPanel, in});
  const Tensor wide =
      library ? Tensor() : arena_.allocate(DType::kF32, {kStreamPanel * in + packed_size});
  int64_t column = 0;
  for (const Tensor& part : weight.streamed) {
    for (int64_t first = 0; first < part.dim(0); first += kStreamPanel) {
      const int64_t count = std::min(kStreamPanel, part.dim(0) - first);
      const Tensor rows_of_part = part.slice(0, first, first + count);
      const bool in_place = library && part.dtype() == weight.compute && part.contiguous();
      if (!in_place) {
        const Tensor dense = rows_of_part.contiguous() ? rows_of_part : rows_of_part.copy();
        parallel_for(count, 16, [&](int64_t begin, int64_t end) {
          convert_elements(
              dense.dtype(),
              dense.raw() + begin * in * static_cast<int64_t>(dtype_size(dense.dtype())),
              weight.compute, panel.mutable_raw() + begin * in * element, (end - begin) * in);
        });
      }
      const float* bias = weight.bias.defined() ? weight.bias.data<float>() + column : nullptr;
      void* target = static_cast<std::byte*>(y) + column * element;
      if (library) {
        OneDnnLinearCall call;
        call.x = x;
        call.rows = rows;
        call.bias = bias;
        call.activation = activation;
        call.y = target;
        call.y_stride = out;
        onednn_->plain_linear(in_place ? rows_of_part.raw() : panel.raw(), count, in,
                              weight.compute, call);
      } else {
        float* rounded = wide.mutable_data<float>();
        float* packed = rounded + kStreamPanel * in;
        kernels_->convert(weight.compute, panel.raw(), DType::kF32, rounded, count * in);
        kernels_->pack_columns(rounded, in, count, in, packed);
        own_gemm(x, rows, packed, bias, in, count, weight.compute, activation, target, out);
      }
      column += count;
    }
  }
}

void CpuExecutor::linear_into(const void* x, int64_t rows, const CpuLinear& weight, int64_t in,
                              int64_t out, Activation activation, void* y) {
  if (rows == 0) return;
  omp_set_num_threads(threads_);
  const float* bias = weight.bias.defined() ? weight.bias.data<float>() : nullptr;
  if (!weight.streamed.empty()) {
    streamed_linear(x, rows, weight, in, out, activation, y);
  } else if (weight.onednn) {
    UF_CHECK(onednn_ != nullptr, "the weight was prepared by an executor with oneDNN");
    OneDnnLinearCall call;
    call.x = x;
    call.rows = rows;
    call.bias = bias;
    call.activation = activation;
    call.y = y;
    call.y_stride = out;
    onednn_->linear(*weight.onednn, call);
  } else {
    own_gemm(x, rows, weight.packed.data<float>(), bias, in, out, weight.compute, activation, y,
             out);
  }
}

Tensor CpuExecutor::do_linear(const Tensor& x, const Linear& weight, Activation activation) {
  const auto& prepared = static_cast<const CpuLinear&>(*weight.prepared);
  const Tensor input = x.dtype() == prepared.compute ? x : do_cast(x, prepared.compute);
  Tensor y = arena_.allocate(prepared.compute, x.shape().with(-1, weight.out_features));
  linear_into(input.raw(), x.numel() / std::max<int64_t>(weight.in_features, 1), prepared,
              weight.in_features, weight.out_features, activation, y.mutable_raw());
  return y;
}

Tensor CpuExecutor::do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) {
  if (frames == 1) return do_linear(x, weight, Activation::kNone);
  // Channels of `frames` neighbours side by side: [b, t, frames, hw, c] -> [b, t, hw, frames, c].
  const int64_t pixels = x.dim(2) * x.dim(3);
  const int64_t channels = x.dim(4);
  const auto element = static_cast<int64_t>(dtype_size(x.dtype()));
  Tensor joined = arena_.allocate(
      x.dtype(), {x.dim(0), x.dim(1) / frames, x.dim(2), x.dim(3), channels * frames});
  parallel_for(x.dim(0) * x.dim(1), 1, [&](int64_t begin, int64_t end) {
    for (int64_t frame = begin; frame < end; ++frame) {
      const std::byte* in = x.raw() + frame * pixels * channels * element;
      std::byte* out = joined.mutable_raw() +
                       ((frame / frames) * pixels * frames + frame % frames) * channels * element;
      for (int64_t p = 0; p < pixels; ++p) {
        std::memcpy(out + p * frames * channels * element, in + p * channels * element,
                    static_cast<size_t>(channels * element));
      }
    }
  });
  return do_linear(joined, weight, Activation::kNone);
}

Tensor CpuExecutor::do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) {
  Tensor grown = do_linear(x, weight, Activation::kNone);  // [b, t, h, w, frames * c]
  if (frames == 1) return grown;
  const int64_t pixels = x.dim(2) * x.dim(3);
  const int64_t channels = weight.out_features / frames;
  const auto element = static_cast<int64_t>(dtype_size(grown.dtype()));
  Tensor out =
      arena_.allocate(grown.dtype(), {x.dim(0), x.dim(1) * frames, x.dim(2), x.dim(3), channels});
  parallel_for(x.dim(0) * x.dim(1) * frames, 1, [&](int64_t begin, int64_t end) {
    for (int64_t frame = begin; frame < end; ++frame) {
      const std::byte* in =
          grown.raw() + ((frame / frames) * pixels * frames + frame % frames) * channels * element;
      std::byte* target = out.mutable_raw() + frame * pixels * channels * element;
      for (int64_t p = 0; p < pixels; ++p) {
        std::memcpy(target + p * channels * element, in + p * frames * channels * element,
                    static_cast<size_t>(channels * element));
      }
    }
  });
  return out;
}

}  // namespace ultraflash::cpu
