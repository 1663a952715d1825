// Convolutions: oneDNN's, or rows of gathered patches times a packed weight.
#include <omp.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "ops/cpu/cpu_executor.h"

namespace ultraflash::cpu {
namespace {

// Pixels whose patches are gathered at a time.
constexpr int64_t kPatchBlock = 48;

int64_t out_size(int64_t in, int64_t low, int64_t high, int64_t kernel, int64_t stride) {
  return (in + low + high - kernel) / stride + 1;
}

// [out, in, (time,) h, w] -> rows of `out` with inner order (time, h, w, in), f32.
Tensor reorder_taps(const Tensor& weight, DType compute) {
  const Tensor rounded = weight.to(compute).to(DType::kF32);
  const int64_t out = weight.dim(0);
  const int64_t in = weight.dim(1);
  const int64_t taps = weight.numel() / std::max<int64_t>(out * in, 1);
  Tensor rows = Tensor::allocate(DType::kF32, {out, taps * in});
  const float* w = rounded.data<float>();
  float* r = rows.mutable_data<float>();
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t t = 0; t < taps; ++t) r[(o * taps + t) * in + i] = w[(o * in + i) * taps + t];
    }
  }
  return rows;
}

struct Frame {
  const std::byte* data = nullptr;  // null: zeros
};

// Gathers the patch rows of output pixels [first, first + count) of one output row.
struct PatchGather {
  const Kernels* kernels;
  DType dtype;
  int64_t height, width, channels;  // of the stored frames
  int64_t upsample, stride, kernel_h, kernel_w;
  Padding padding;

  void run(std::span<const Frame> frames, int64_t out_row, int64_t first, int64_t count,
           float* patches) const {
    const auto element = static_cast<int64_t>(dtype_size(dtype));
    const int64_t tall = height * upsample;
    const int64_t wide = width * upsample;
    for (int64_t p = 0; p < count; ++p) {
      float* patch =
          patches + p * kernel_h * kernel_w * channels * static_cast<int64_t>(frames.size());
      // Frames stand for time taps of a 3-D convolution, or for (current, memory) channel groups.
      gather_pixel(frames, out_row, first + p, element, tall, wide, patch);
    }
  }

  bool channels_from_frames = false;  // true: inner order (h, w, frame, channel)

 private:
  void gather_pixel(std::span<const Frame> frames, int64_t out_row, int64_t out_column,
                    int64_t element, int64_t tall, int64_t wide, float* patch) const {
    const auto count = static_cast<int64_t>(frames.size());
    for (int64_t f = 0; f < count; ++f) {
      for (int64_t kh = 0; kh < kernel_h; ++kh) {
        const int64_t y = out_row * stride + kh - padding.top;
        for (int64_t kw = 0; kw < kernel_w; ++kw) {
          const int64_t x = out_column * stride + kw - padding.left;
          const int64_t tap = channels_from_frames ? (kh * kernel_w + kw) * count + f
                                                   : (f * kernel_h + kh) * kernel_w + kw;
          float* target = patch + tap * channels;
          const std::byte* frame = frames[static_cast<size_t>(f)].data;
          if (frame == nullptr || y < 0 || y >= tall || x < 0 || x >= wide) {
            std::memset(target, 0, static_cast<size_t>(channels) * sizeof(float));
            continue;
          }
          const int64_t pixel = (y / upsample) * width + x / upsample;
          kernels->convert(dtype, frame + pixel * channels * element, DType::kF32, target,
                           channels);
        }
      }
    }
  }
};

}  // namespace

size_t CpuConv::size_bytes() const {
  return (bias.defined() ? bias.size_bytes() : 0) + (onednn ? onednn->size_bytes() : 0) +
         (packed.defined() ? packed.size_bytes() : 0);
}

void CpuExecutor::do_prepare(Conv& conv, const PrepareOptions& options) {
  if (options.compute != DType::kF32 && options.compute != DType::kBF16) {
    throw_error(StatusCode::kUnsupported,
                "the CPU computes in f32 and bf16, not in {}; pass --dtype f32 or bf16",
                dtype_name(options.compute));
  }
  auto prepared = std::make_shared<CpuConv>();
  prepared->compute = options.compute;
  if (conv.bias.defined()) {
    prepared->bias = conv.bias.to(DType::kF32);
    if (!prepared->bias.storage()->writable()) prepared->bias = prepared->bias.copy();
  }
  if (onednn_ && onednn_->fast(options.compute)) {
    prepared->onednn = onednn_->pack_conv(conv.weight, options.compute);
  } else {
    const Tensor rows = reorder_taps(conv.weight, options.compute);
    prepared->packed =
        Tensor::allocate(DType::kF32, {kernels_->packed_size(rows.dim(0), rows.dim(1))});
    kernels_->pack_columns(rows.data<float>(), rows.dim(1), rows.dim(0), rows.dim(1),
                           prepared->packed.mutable_data<float>());
  }
  conv.prepared = std::move(prepared);
}

// Every frame beside the one before it: channels (x_t, x_{t-1}).
void CpuExecutor::join_memory(const Tensor& x, const Tensor& memory, std::byte* joined) const {
  const int64_t frames = x.dim(1);
  const int64_t height = x.dim(2);
  const int64_t width = x.dim(3);
  const auto bytes = x.dim(4) * static_cast<int64_t>(dtype_size(x.dtype()));
  const int64_t frame_bytes = height * width * bytes;
  parallel_for(x.dim(0) * frames * height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t image = r / height;
      const std::byte* current = x.raw() + r * width * bytes;
      const std::byte* past = nullptr;
      if (image % frames > 0) {
        past = current - frame_bytes;
      } else if (memory.defined()) {
        past = memory.raw() + image / frames * frame_bytes + (r % height) * width * bytes;
      }
      std::byte* out = joined + 2 * r * width * bytes;
      for (int64_t p = 0; p < width; ++p) {
        std::memcpy(out, current, static_cast<size_t>(bytes));
        if (past != nullptr) {
          std::memcpy(out + bytes, past, static_cast<size_t>(bytes));
          past += bytes;
        } else {
          std::memset(out + bytes, 0, static_cast<size_t>(bytes));
        }
        current += bytes;
        out += 2 * bytes;
      }
    }
  });
}

// Every pixel `factor` times in both directions.
void CpuExecutor::enlarge(const Tensor& x, int64_t factor, std::byte* large) const {
  const int64_t width = x.dim(3);
  const auto bytes = x.dim(4) * static_cast<int64_t>(dtype_size(x.dtype()));
  const int64_t line = width * factor * bytes;
  parallel_for(x.dim(0) * x.dim(1) * x.dim(2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const std::byte* pixel = x.raw() + r * width * bytes;
      std::byte* first = large + r * factor * line;
      std::byte* out = first;
      for (int64_t p = 0; p < width; ++p, pixel += bytes) {
        for (int64_t i = 0; i < factor; ++i, out += bytes) {
          std::memcpy(out, pixel, static_cast<size_t>(bytes));
        }
      }
      for (int64_t i = 1; i < factor; ++i) {
        std::memcpy(first + i * line, first, static_cast<size_t>(line));
      }
    }
  });
}

Tensor CpuExecutor::do_conv2d(const Tensor& x_any, const Conv& weight,
                              const Conv2dOptions& options) {
  const auto& prepared = static_cast<const CpuConv&>(*weight.prepared);
  omp_set_num_threads(threads_);
  const Tensor x = x_any.dtype() == prepared.compute ? x_any : do_cast(x_any, prepared.compute);
  UF_CHECK(!options.memory.defined() || options.memory.dtype() == x.dtype(),
           "conv2d: memory {} beside x {}", options.memory.to_string(), x.to_string());
  if (!prepared.onednn) return conv_own(x, weight, options);

  const int64_t factor = options.upsample;
  const int64_t height = x.dim(2) * factor;
  const int64_t width = x.dim(3) * factor;
  const int64_t channels = x.dim(4) * (options.with_memory ? 2 : 1);
  const Padding& pad = options.padding;
  const Shape shape = {x.dim(0), x.dim(1),
                       out_size(height, pad.top, pad.bottom, weight.weight.dim(2), options.stride),
                       out_size(width, pad.left, pad.right, weight.weight.dim(3), options.stride),
                       weight.weight.dim(0)};
  OneDnnConvCall call;
  call.height = height;
  call.width = width;
  call.stride = options.stride;
  call.padding = pad;
  call.bias = prepared.bias.defined() ? prepared.bias.data<float>() : nullptr;
  call.activation = options.activation;
  call.accumulate = options.residual.defined();
  Tensor y;
  if (call.accumulate) {
    UF_CHECK(options.residual.shape() == shape && options.residual.dtype() == x.dtype() &&
                 options.residual.contiguous(),
             "conv2d: residual {} for a result {}", options.residual.to_string(),
             shape.to_string());
    y = options.residual.exclusive() ? options.residual : arena_.allocate(x.dtype(), shape);
    if (!options.residual.exclusive()) do_copy(y, options.residual);
  } else {
    y = arena_.allocate(x.dtype(), shape);
  }
  if (y.numel() == 0) return y;

  call.images = x.dim(0) * x.dim(1);
  Tensor input = x;
  if (options.with_memory) {
    input = arena_.allocate(x.dtype(), x.shape().with(4, channels));
    join_memory(x, options.memory, input.mutable_raw());
  }
  if (factor > 1) {
    Tensor large = arena_.allocate(x.dtype(), {x.dim(0), x.dim(1), height, width, channels});
    enlarge(input, factor, large.mutable_raw());
    input = large;
  }
  call.x = input.raw();
  call.y = y.mutable_raw();
  onednn_->conv(*prepared.onednn, call);
  return y;
}

Tensor CpuExecutor::conv_own(const Tensor& x, const Conv& weight, const Conv2dOptions& options) {
  const auto& prepared = static_cast<const CpuConv&>(*weight.prepared);
  PatchGather gather{};
  gather.kernels = kernels_;
  gather.dtype = x.dtype();
  gather.height = x.dim(2);
  gather.width = x.dim(3);
  gather.channels = x.dim(4);
  gather.upsample = options.upsample;
  gather.stride = options.stride;
  gather.kernel_h = weight.weight.dim(2);
  gather.kernel_w = weight.weight.dim(3);
  gather.padding = options.padding;
  gather.channels_from_frames = true;
  const Padding& pad = options.padding;
  const int64_t out_h = out_size(gather.height * options.upsample, pad.top, pad.bottom,
                                 gather.kernel_h, options.stride);
  const int64_t out_w = out_size(gather.width * options.upsample, pad.left, pad.right,
                                 gather.kernel_w, options.stride);
  const int64_t out_c = weight.weight.dim(0);
  const int64_t frames = x.dim(1);
  const int64_t inner = weight.weight.numel() / out_c;
  Tensor y = arena_.allocate(x.dtype(), {x.dim(0), frames, out_h, out_w, out_c});
  const auto element = static_cast<int64_t>(dtype_size(x.dtype()));
  const int64_t frame_bytes = gather.height * gather.width * gather.channels * element;
  const Activation in_product = options.residual.defined() ? Activation::kNone : options.activation;
  prepare_thread_scratch(kPatchBlock * inner);
  parallel_for(x.dim(0) * frames * out_h, 1, [&](int64_t begin, int64_t end) {
    float* patches = thread_scratch(static_cast<size_t>(omp_get_thread_num()), kPatchBlock * inner);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t frame = r / out_h;  // over batch and time
      const std::byte* current = x.raw() + frame * frame_bytes;
      Frame sources[2] = {{current}, {nullptr}};
      if (options.with_memory) {
        if (frame % frames > 0) {
          sources[1].data = current - frame_bytes;
        } else if (options.memory.defined()) {
          sources[1].data = options.memory.raw() + frame / frames * frame_bytes;
        }
      }
      for (int64_t first = 0; first < out_w; first += kPatchBlock) {
        const int64_t count = std::min(kPatchBlock, out_w - first);
        gather.run(std::span<const Frame>(sources, options.with_memory ? 2 : 1), r % out_h, first,
                   count, patches);
        PackedGemmArgs args;
        args.x = patches;
        args.x_stride = inner;
        args.rows = count;
        args.inner = inner;
        args.packed = prepared.packed.data<float>();
        args.bias = prepared.bias.defined() ? prepared.bias.data<float>() : nullptr;
        args.columns = out_c;
        args.activation = in_product;
        args.y = y.mutable_raw() + (r * out_w + first) * out_c * element;
        args.y_dtype = y.dtype();
        args.y_stride = out_c;
        kernels_->packed_gemm(args);
      }
    }
  });
  if (!options.residual.defined()) return y;
  UF_CHECK(options.residual.shape() == y.shape(), "conv2d: residual {} for a result {}",
           options.residual.to_string(), y.to_string());
  const Tensor sum = do_add(y, options.residual);
  return options.activation == Activation::kNone ? sum : do_activate(sum, options.activation);
}

Tensor CpuExecutor::do_causal_conv3d(const Tensor& x_any, const Conv& weight,
                                     const Conv3dOptions& options) {
  const auto& prepared = static_cast<const CpuConv&>(*weight.prepared);
  omp_set_num_threads(threads_);
  const Tensor x = x_any.dtype() == prepared.compute ? x_any : do_cast(x_any, prepared.compute);
  if (!prepared.onednn) return conv3d_own(x, weight, options);
  const int64_t past = options.past.defined() ? options.past.dim(1) : 0;
  const int64_t before = options.zeros + past;
  Tensor input = x;
  if (before > 0) {
    input = arena_.allocate(x.dtype(), x.shape().with(1, before + x.dim(1)));
    if (options.zeros > 0) {
      for (int64_t b = 0; b < x.dim(0); ++b)
        do_fill_zero(input.select(0, b).slice(0, 0, options.zeros));
    }
    if (past > 0) input.slice(1, options.zeros, before).assign(options.past);
    input.slice(1, before, before + x.dim(1)).assign(x);
  }
  OneDnnConvCall call;
  call.x = input.raw();
  call.images = x.dim(0);
  call.frames = input.dim(1);
  call.height = x.dim(2);
  call.width = x.dim(3);
  call.stride_time = options.stride_time;
  call.padding = options.padding;
  call.bias = prepared.bias.defined() ? prepared.bias.data<float>() : nullptr;
  const Padding& pad = options.padding;
  Tensor y = arena_.allocate(
      x.dtype(),
      {x.dim(0), out_size(call.frames, 0, 0, weight.weight.dim(2), options.stride_time),
       out_size(x.dim(2), pad.top, pad.bottom, weight.weight.dim(3), 1),
       out_size(x.dim(3), pad.left, pad.right, weight.weight.dim(4), 1), weight.weight.dim(0)});
  call.y = y.mutable_raw();
  if (y.numel() > 0) onednn_->conv(*prepared.onednn, call);
  return y;
}

Tensor CpuExecutor::conv3d_own(const Tensor& x, const Conv& weight, const Conv3dOptions& options) {
  const auto& prepared = static_cast<const CpuConv&>(*weight.prepared);
  PatchGather gather{};
  gather.kernels = kernels_;
  gather.dtype = x.dtype();
  gather.height = x.dim(2);
  gather.width = x.dim(3);
  gather.channels = x.dim(4);
  gather.upsample = 1;
  gather.stride = 1;
  gather.kernel_h = weight.weight.dim(3);
  gather.kernel_w = weight.weight.dim(4);
  gather.padding = options.padding;
  const int64_t kernel_t = weight.weight.dim(2);
  const int64_t past = options.past.defined() ? options.past.dim(1) : 0;
  const int64_t before = options.zeros + past;
  const Padding& pad = options.padding;
  const int64_t out_t = out_size(before + x.dim(1), 0, 0, kernel_t, options.stride_time);
  const int64_t out_h = out_size(gather.height, pad.top, pad.bottom, gather.kernel_h, 1);
  const int64_t out_w = out_size(gather.width, pad.left, pad.right, gather.kernel_w, 1);
  const int64_t out_c = weight.weight.dim(0);
  const int64_t inner = weight.weight.numel() / out_c;
  Tensor y = arena_.allocate(x.dtype(), {x.dim(0), out_t, out_h, out_w, out_c});
  const auto element = static_cast<int64_t>(dtype_size(x.dtype()));
  const int64_t frame_bytes = gather.height * gather.width * gather.channels * element;
  constexpr int64_t kMaxTaps = 8;
  UF_CHECK(kernel_t <= kMaxTaps, "causal_conv3d: a kernel of {} frames", kernel_t);
  prepare_thread_scratch(kPatchBlock * inner);
  parallel_for(x.dim(0) * out_t * out_h, 1, [&](int64_t begin, int64_t end) {
    float* patches = thread_scratch(static_cast<size_t>(omp_get_thread_num()), kPatchBlock * inner);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t sample = r / (out_t * out_h);
      const int64_t t = r / out_h % out_t;
      Frame sources[kMaxTaps];
      for (int64_t k = 0; k < kernel_t; ++k) {
        const int64_t frame = t * options.stride_time + k - options.zeros;
        if (frame < 0) continue;
        sources[k].data = frame < past ? options.past.raw() + (sample * past + frame) * frame_bytes
                                       : x.raw() + (sample * x.dim(1) + frame - past) * frame_bytes;
      }
      for (int64_t first = 0; first < out_w; first += kPatchBlock) {
        const int64_t count = std::min(kPatchBlock, out_w - first);
        gather.run(std::span<const Frame>(sources, static_cast<size_t>(kernel_t)), r % out_h, first,
                   count, patches);
        PackedGemmArgs args;
        args.x = patches;
        args.x_stride = inner;
        args.rows = count;
        args.inner = inner;
        args.packed = prepared.packed.data<float>();
        args.bias = prepared.bias.defined() ? prepared.bias.data<float>() : nullptr;
        args.columns = out_c;
        args.y = y.mutable_raw() + (r * out_w + first) * out_c * element;
        args.y_dtype = y.dtype();
        args.y_stride = out_c;
        kernels_->packed_gemm(args);
      }
    }
  });
  return y;
}

Tensor CpuExecutor::do_pixel_shuffle(const Tensor& x, int64_t factor, Activation activation) {
  const int64_t height = x.dim(2);
  const int64_t width = x.dim(3);
  const int64_t channels = x.dim(4) / (factor * factor);
  Tensor y =
      arena_.allocate(x.dtype(), {x.dim(0), x.dim(1), height * factor, width * factor, channels});
  const auto shuffle = [&](auto tag) {
    using T = decltype(tag);
    const T* in = reinterpret_cast<const T*>(x.raw());
    T* out = reinterpret_cast<T*>(y.mutable_raw());
    parallel_for(x.dim(0) * x.dim(1) * height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t i = 0; i < factor; ++i) {
          T* line = out + (r * factor + i) * width * factor * channels;
          for (int64_t p = 0; p < width; ++p) {
            const T* pixel = in + (r * width + p) * channels * factor * factor;
            for (int64_t j = 0; j < factor; ++j) {
              T* target = line + (p * factor + j) * channels;
              for (int64_t c = 0; c < channels; ++c) {
                target[c] = pixel[(c * factor + i) * factor + j];
              }
            }
          }
        }
        if (activation != Activation::kNone) {
          T* block = out + r * factor * factor * width * channels;
          kernels_->activate(y.dtype(), activation, block, block,
                             factor * factor * width * channels);
        }
      }
    });
  };
  if (dtype_size(x.dtype()) == 2) {
    shuffle(uint16_t{});
  } else {
    shuffle(float{});
  }
  return y;
}

}  // namespace ultraflash::cpu
