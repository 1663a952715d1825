// Rearranging latents and frames: every byte is read once and written once.
#include "ops/cuda/device.cuh"

namespace ultraflash::cuda::kernels {
namespace {

template <typename T, typename U>
__global__ void patchify_kernel(PatchifyArgs args, const T* a, const T* b, U* out, int64_t count) {
  const int64_t features = 4 * (args.channels_a + args.channels_b);
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t feature = i % features;
    const int64_t token = i / features;
    const int64_t x = token % args.columns;
    const int64_t row = token / args.columns;  // over frames too
    const int64_t channel = feature / 4;
    const int64_t line = 2 * row + feature / 2 % 2;
    const int64_t pixel = line * 2 * args.columns + 2 * x + feature % 2;
    const float value = channel < args.channels_a
                            ? as_float(a[pixel * args.channels_a + channel])
                            : as_float(b[pixel * args.channels_b + channel - args.channels_a]);
    out[i] = as<U>(value);
  }
}

template <typename T, typename U>
__global__ void unpatchify_kernel(const T* tokens, int64_t columns, int64_t channels, U* out,
                                  int64_t count) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t channel = i % channels;
    const int64_t pixel = i / channels;
    const int64_t x = pixel % (2 * columns);
    const int64_t line = pixel / (2 * columns);  // over frames too
    const int64_t token = line / 2 * columns + x / 2;
    out[i] = as<U>(as_float(tokens[(token * 4 + line % 2 * 2 + x % 2) * channels + channel]));
  }
}

template <typename T>
__global__ void shuffle_kernel(const T* x, int64_t columns, int64_t channels, int64_t factor,
                               Activation activation, T* y, int64_t count) {
  const int64_t wide = columns * factor;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t channel = i % channels;
    const int64_t pixel = i / channels;
    const int64_t column = pixel % wide;
    const int64_t line = pixel / wide;  // over images too: rows are multiples of factor
    const int64_t source = line / factor * columns + column / factor;
    const int64_t feature = (channel * factor + line % factor) * factor + column % factor;
    y[i] = as<T>(apply(activation, as_float(x[source * channels * factor * factor + feature])));
  }
}

template <typename T>
__global__ void swap_kernel(const T* x, int64_t rows, int64_t columns, int64_t run, T* y,
                            int64_t count) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t at = i % run;
    const int64_t row = i / run % rows;  // of the result's inner axis
    const int64_t column = i / (run * rows) % columns;
    const int64_t outer = i / (run * rows * columns);
    y[i] = x[((outer * rows + row) * columns + column) * run + at];
  }
}

template <typename T>
__global__ void gather_frames_kernel(GatherArgs a, int64_t run, const T* x, const T* past, T* out,
                                     int64_t count) {
  const int64_t tall = a.height * a.upsample;
  const int64_t wide = a.width * a.upsample;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t at = i % run;
    int64_t tap = i / run % a.taps;
    const int64_t pixel = i / (run * a.taps);
    const int64_t column = pixel % wide / a.upsample;
    const int64_t row = pixel / wide % tall / a.upsample;
    const int64_t frame_out = pixel / (wide * tall);
    const int64_t sample = frame_out / a.out_frames;
    if (a.reversed) tap = a.taps - 1 - tap;
    int64_t frame = frame_out % a.out_frames * a.stride_time + tap - a.zero_frames;
    T value{};
    if (frame >= a.past_frames) {
      frame -= a.past_frames;
      value = x[(((sample * a.frames + frame) * a.height + row) * a.width + column) * run + at];
    } else if (frame >= 0) {
      value =
          past[(((sample * a.past_frames + frame) * a.height + row) * a.width + column) * run + at];
    }
    out[i] = value;
  }
}

template <typename T>
__global__ void crop_kernel(const T* x, int64_t stored, int64_t channels, T* y, int64_t count) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    y[i] = x[i / channels * stored + i % channels];
  }
}

// Calls body(tag of the widest type that runs of `bytes` at both addresses can be moved in).
template <typename Body>
void with_width(int64_t bytes, const void* a, const void* b, const void* c, const Body& body) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
                         reinterpret_cast<uintptr_t>(c) | static_cast<uintptr_t>(bytes);
  if (bits % 16 == 0) {
    body(uint4{});
  } else if (bits % 4 == 0) {
    body(uint32_t{});
  } else if (bits % 2 == 0) {
    body(uint16_t{});
  } else {
    body(uint8_t{});
  }
}

}  // namespace

void patchify(const PatchifyArgs& args, void* tokens, cudaStream_t stream) {
  const int64_t count =
      args.frames * args.rows * args.columns * 4 * (args.channels_a + args.channels_b);
  if (count == 0) return;
  with_storage_type(args.from, [&](auto in) {
    with_type(args.to, [&](auto out) {
      using T = decltype(in);
      using U = decltype(out);
      patchify_kernel<T, U><<<grid_for(count), 256, 0, stream>>>(
          args, static_cast<const T*>(args.a), static_cast<const T*>(args.b),
          static_cast<U*>(tokens), count);
    });
  });
  UF_CUDA_LAUNCHED();
}

void unpatchify(DType from, const void* tokens, int64_t frames, int64_t rows, int64_t columns,
                int64_t channels, DType to, void* latent, cudaStream_t stream) {
  const int64_t count = frames * rows * columns * 4 * channels;
  if (count == 0) return;
  with_type(from, [&](auto in) {
    with_storage_type(to, [&](auto out) {
      using T = decltype(in);
      using U = decltype(out);
      unpatchify_kernel<T, U><<<grid_for(count), 256, 0, stream>>>(
          static_cast<const T*>(tokens), columns, channels, static_cast<U*>(latent), count);
    });
  });
  UF_CUDA_LAUNCHED();
}

void pixel_shuffle(DType dtype, const void* x, int64_t images, int64_t rows, int64_t columns,
                   int64_t channels_out, int64_t factor, Activation activation, void* y,
                   cudaStream_t stream) {
  const int64_t count = images * rows * columns * channels_out * factor * factor;
  if (count == 0) return;
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    shuffle_kernel<T><<<grid_for(count), 256, 0, stream>>>(static_cast<const T*>(x), columns,
                                                           channels_out, factor, activation,
                                                           static_cast<T*>(y), count);
  });
  UF_CUDA_LAUNCHED();
}

void swap_axes(const void* x, int64_t outer, int64_t rows, int64_t columns, int64_t run_bytes,
               void* y, cudaStream_t stream) {
  if (outer * rows * columns * run_bytes == 0) return;
  with_width(run_bytes, x, y, nullptr, [&](auto tag) {
    using T = decltype(tag);
    const auto run = run_bytes / static_cast<int64_t>(sizeof(T));
    const int64_t count = outer * rows * columns * run;
    swap_kernel<T><<<grid_for(count), 256, 0, stream>>>(static_cast<const T*>(x), rows, columns,
                                                        run, static_cast<T*>(y), count);
  });
  UF_CUDA_LAUNCHED();
}

void gather_frames(const GatherArgs& args, void* out, cudaStream_t stream) {
  const int64_t bytes = args.channels * args.element_bytes;
  const int64_t pixels = args.samples * args.out_frames * args.height * args.width * args.upsample *
                         args.upsample * args.taps;
  if (bytes * pixels == 0) return;
  with_width(bytes, args.x, args.past, out, [&](auto tag) {
    using T = decltype(tag);
    const auto run = bytes / static_cast<int64_t>(sizeof(T));
    gather_frames_kernel<T><<<grid_for(pixels * run), 256, 0, stream>>>(
        args, run, static_cast<const T*>(args.x), static_cast<const T*>(args.past),
        static_cast<T*>(out), pixels * run);
  });
  UF_CUDA_LAUNCHED();
}

void crop_channels(const void* x, int64_t pixels, int64_t stored, int64_t channels,
                   int element_bytes, void* y, cudaStream_t stream) {
  const int64_t count = pixels * channels;
  if (count == 0) return;
  if (element_bytes == 2) {
    crop_kernel<<<grid_for(count), 256, 0, stream>>>(static_cast<const uint16_t*>(x), stored,
                                                     channels, static_cast<uint16_t*>(y), count);
  } else {
    crop_kernel<<<grid_for(count), 256, 0, stream>>>(static_cast<const uint32_t*>(x), stored,
                                                     channels, static_cast<uint32_t*>(y), count);
  }
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
