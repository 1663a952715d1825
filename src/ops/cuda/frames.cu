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

// blockIdx.y: where in the outer axis; the inner ones fit 32-bit arithmetic, as a 64-bit division
// costs more than the 16 bytes that it finds.
template <typename T>
__global__ void swap_kernel(const T* x, uint32_t rows, uint32_t columns, uint32_t run, T* y) {
  const int64_t outer = blockIdx.y;
  const uint32_t count = rows * columns * run;
  x += outer * count;
  y += outer * count;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const uint32_t at = i % run;
    const uint32_t row = i / run % rows;  // of the result's inner axis
    const uint32_t column = i / (run * rows);
    y[i] = x[(row * columns + column) * run + at];
  }
}

// blockIdx.y: a row of the result; blockIdx.z: its frame.
template <typename T>
__global__ void gather_frames_kernel(GatherArgs a, uint32_t run, const T* x, const T* past,
                                     T* out) {
  const auto upsample = static_cast<uint32_t>(a.upsample);
  const auto taps = static_cast<uint32_t>(a.taps);
  const auto width = static_cast<uint32_t>(a.width);
  const int64_t sample = blockIdx.z / a.out_frames;
  const int64_t first_frame = blockIdx.z % a.out_frames * a.stride_time - a.zero_frames;
  const uint32_t row = blockIdx.y / upsample;
  const uint32_t count = width * upsample * taps * run;
  out += (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * count;
  const int64_t line = int64_t{width} * run;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const uint32_t at = i % run;
    uint32_t tap = i / run % taps;
    const uint32_t column = i / (run * taps) / upsample;
    if (a.reversed) tap = taps - 1 - tap;
    int64_t frame = first_frame + tap;
    T value{};
    if (frame >= a.past_frames) {
      frame += sample * a.frames - a.past_frames;
      value = x[(frame * a.height + row) * line + column * run + at];
    } else if (frame >= 0) {
      frame += sample * a.past_frames;
      value = past[(frame * a.height + row) * line + column * run + at];
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

// A thread per pixel of 8 stored channels of 2 bytes.
__global__ void crop_pixels(const uint4* x, uint32_t channels, uint16_t* y, int64_t pixels) {
  for (int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; p < pixels;
       p += int64_t{gridDim.x} * blockDim.x) {
    const uint4 in = x[p];
    const uint32_t words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
    for (uint32_t c = 0; c < 8; ++c) {
      if (c < channels) y[p * channels + c] = static_cast<uint16_t>(words[c / 2] >> c % 2 * 16);
    }
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
    require(outer <= 65535 && rows * columns * run < int64_t{1} << 31, "swap_axes: sizes");
    const dim3 grid(grid_for(rows * columns * run), static_cast<unsigned>(outer));
    swap_kernel<T><<<grid, 256, 0, stream>>>(static_cast<const T*>(x), static_cast<uint32_t>(rows),
                                             static_cast<uint32_t>(columns),
                                             static_cast<uint32_t>(run), static_cast<T*>(y));
  });
  UF_CUDA_LAUNCHED();
}

void gather_frames(const GatherArgs& args, void* out, cudaStream_t stream) {
  const int64_t bytes = args.channels * args.element_bytes;
  const int64_t images = args.samples * args.out_frames;
  const int64_t rows = args.height * args.upsample;
  const int64_t columns = args.width * args.upsample;
  if (bytes * images * rows * columns * args.taps == 0) return;
  with_width(bytes, args.x, args.past, out, [&](auto tag) {
    using T = decltype(tag);
    const auto run = bytes / static_cast<int64_t>(sizeof(T));
    const int64_t count = columns * args.taps * run;
    require(images <= 65535 && rows <= 65535 && count < int64_t{1} << 31, "gather_frames: sizes");
    // Some elements for each thread, since the addresses of a row are worked out once.
    const dim3 grid(ceil_div(count, 256 * 8), static_cast<unsigned>(rows),
                    static_cast<unsigned>(images));
    gather_frames_kernel<T>
        <<<grid, 256, 0, stream>>>(args, static_cast<uint32_t>(run), static_cast<const T*>(args.x),
                                   static_cast<const T*>(args.past), static_cast<T*>(out));
  });
  UF_CUDA_LAUNCHED();
}

void crop_channels(const void* x, int64_t pixels, int64_t stored, int64_t channels,
                   int element_bytes, void* y, cudaStream_t stream) {
  const int64_t count = pixels * channels;
  if (count == 0) return;
  if (element_bytes == 2 && stored == 8 && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
    crop_pixels<<<grid_for(pixels), 256, 0, stream>>>(static_cast<const uint4*>(x),
                                                      static_cast<uint32_t>(channels),
                                                      static_cast<uint16_t*>(y), pixels);
  } else if (element_bytes == 2) {
    crop_kernel<<<grid_for(count), 256, 0, stream>>>(static_cast<const uint16_t*>(x), stored,
                                                     channels, static_cast<uint16_t*>(y), count);
  } else {
    crop_kernel<<<grid_for(count), 256, 0, stream>>>(static_cast<const uint32_t*>(x), stored,
                                                     channels, static_cast<uint32_t*>(y), count);
  }
  UF_CUDA_LAUNCHED();
}

}  // namespace ultraflash::cuda::kernels
