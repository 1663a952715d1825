// Loops over elements: one thread per pack of elements, bound by bytes.
#include "ops/cuda/device.cuh"

namespace ultraflash::cuda::kernels {
namespace {

// 16 bytes where both sides are aligned, else one element.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// out[i] = f(i, x[i]); f also gets the index.
template <typename T, typename U, int N, typename F>
__global__ void map1_kernel(const T* x, U* out, int64_t packs, int64_t count, F f) {
  for (int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; p < packs;
       p += int64_t{gridDim.x} * blockDim.x) {
    const int64_t first = p * N;
    if (first + N <= count) {
      const Pack<T, N> in = *reinterpret_cast<const Pack<T, N>*>(x + first);
      Pack<U, N> result;
#pragma unroll
      for (int i = 0; i < N; ++i) result.x[i] = f(first + i, as_float(in.x[i]));
      *reinterpret_cast<Pack<U, N>*>(out + first) = result;
    } else {
      for (int64_t i = first; i < count; ++i) out[i] = f(i, as_float(x[i]));
    }
  }
}
template <typename T, typename U, typename F>
void map1(const void* x, void* out, int64_t count, cudaStream_t stream, F f) {
  if (count == 0) return;
  constexpr int N = sizeof(T) >= sizeof(U) ? kPack<T> : kPack<U>;
  if (aligned(x) && aligned(out)) {
    const int64_t packs = (count + N - 1) / N;
    map1_kernel<T, U, N><<<grid_for(packs), 256, 0, stream>>>(
        static_cast<const T*>(x), static_cast<U*>(out), packs, count, f);
  } else {
    map1_kernel<T, U, 1><<<grid_for(count), 256, 0, stream>>>(
        static_cast<const T*>(x), static_cast<U*>(out), count, count, f);
  }
  UF_CUDA_LAUNCHED();
}

template <typename T, int N, typename F>
__global__ void map2_kernel(const T* x, const T* y, T* out, int64_t packs, int64_t count, F f) {
  for (int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; p < packs;
       p += int64_t{gridDim.x} * blockDim.x) {
    const int64_t first = p * N;
    if (first + N <= count) {
      const Pack<T, N> a = *reinterpret_cast<const Pack<T, N>*>(x + first);
      const Pack<T, N> b = *reinterpret_cast<const Pack<T, N>*>(y + first);
      Pack<T, N> result;
#pragma unroll
      for (int i = 0; i < N; ++i) result.x[i] = as<T>(f(as_float(a.x[i]), as_float(b.x[i])));
      *reinterpret_cast<Pack<T, N>*>(out + first) = result;
    } else {
      for (int64_t i = first; i < count; ++i) out[i] = as<T>(f(as_float(x[i]), as_float(y[i])));
    }
  }
}
template <typename F>
void map2(DType dtype, const void* x, const void* y, void* out, int64_t count, cudaStream_t stream,
          F f) {
  if (count == 0) return;
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = kPack<T>;
    const auto* a = static_cast<const T*>(x);
    const auto* b = static_cast<const T*>(y);
    auto* o = static_cast<T*>(out);
    if (aligned(x) && aligned(y) && aligned(out)) {
      const int64_t packs = (count + N - 1) / N;
      map2_kernel<T, N><<<grid_for(packs), 256, 0, stream>>>(a, b, o, packs, count, f);
    } else {
      map2_kernel<T, 1><<<grid_for(count), 256, 0, stream>>>(a, b, o, count, count, f);
    }
  });
  UF_CUDA_LAUNCHED();
}

template <typename U>
struct Convert {
  __device__ U operator()(int64_t, float x) const { return as<U>(x); }
};
template <typename T>
struct Activate {
  Activation activation;
  __device__ T operator()(int64_t, float x) const { return as<T>(apply(activation, x)); }
};
template <typename T>
struct SoftClamp {
  float limit;
  __device__ T operator()(int64_t, float x) const { return as<T>(tanhf(x / limit) * limit); }
};
template <typename T>
struct ChannelAffine {
  const float* scale;
  const float* shift;
  int64_t channels;
  __device__ T operator()(int64_t i, float x) const {
    const int64_t c = i % channels;
    return as<T>(x * scale[c] + shift[c]);
  }
};
struct ToRgb8 {
  float low;
  float factor;
  __device__ uint8_t operator()(int64_t, float x) const {
    const float unit = __fmul_rn(__fsub_rn(x, low), factor);
    return static_cast<uint8_t>(__fmul_rn(fminf(fmaxf(unit, 0.0F), 1.0F), 255.0F));
  }
};
struct Axpby {
  float a, b;
  __device__ float operator()(float x, float y) const {
    return __fadd_rn(__fmul_rn(a, x), __fmul_rn(b, y));
  }
};
struct FlowToX0 {
  double sigma;
  __device__ float operator()(float x, float v) const {
    return static_cast<float>(static_cast<double>(x) - sigma * static_cast<double>(v));
  }
};
struct Multiply {
  __device__ float operator()(float x, float y) const { return x * y; }
};

template <typename T>
__global__ void normal_kernel(RandomStream random, T* out, int64_t count) {
  const int64_t blocks = (count + 3) / 4;
  for (int64_t b = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; b < blocks;
       b += int64_t{gridDim.x} * blockDim.x) {
    const rng::FourNormals four = rng::normals(random, static_cast<uint64_t>(b));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * b + i < count) out[4 * b + i] = as<T>(four.x[i]);
    }
  }
}

// Offsets of element `index` in both operands.
__device__ void offsets(const Strided& s, int64_t index, int64_t& a, int64_t& b) {
  a = 0;
  b = 0;
  for (int axis = s.rank - 1; axis >= 0; --axis) {
    const int64_t i = index % s.size[axis];
    index /= s.size[axis];
    a += i * s.a[axis];
    b += i * s.b[axis];
  }
}
template <typename T>
__global__ void copy_kernel(Strided s, int64_t count, T* out, const T* in) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    int64_t a;
    int64_t b;
    offsets(s, i, a, b);
    out[a] = in[b];
  }
}
template <typename T>
__global__ void add_kernel(Strided s, int64_t count, const T* x, const T* y, T* out) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    int64_t a;
    int64_t b;
    offsets(s, i, a, b);
    out[i] = as<T>(as_float(x[i]) + as_float(y[b]));
  }
}

int64_t elements(const Strided& s) {
  int64_t count = 1;
  for (int i = 0; i < s.rank; ++i) count *= s.size[static_cast<size_t>(i)];
  return count;
}

template <typename T, typename U>
__global__ void gather_kernel(const T* table, const int64_t* ids, int64_t count, int64_t dim,
                              U* out) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    out[i] = as<U>(as_float(table[ids[i / dim] * dim + i % dim]));
  }
}

__global__ void count_others(const uint8_t* data, int64_t count, uint8_t value, uint32_t* others) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    if (data[i] != value) atomicAdd(others, 1U);
  }
}

}  // namespace

void convert(DType from, const void* x, DType to, void* y, int64_t count, cudaStream_t stream) {
  with_storage_type(from, [&](auto in) {
    with_storage_type(to, [&](auto out) {
      using T = decltype(in);
      using U = decltype(out);
      map1<T, U>(x, y, count, stream, Convert<U>{});
    });
  });
}

void activate(DType dtype, Activation activation, const void* x, void* y, int64_t count,
              cudaStream_t stream) {
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    map1<T, T>(x, y, count, stream, Activate<T>{activation});
  });
}

void axpby(DType dtype, float a, const void* x, float b, const void* y, void* out, int64_t count,
           cudaStream_t stream) {
  map2(dtype, x, y, out, count, stream, Axpby{a, b});
}

void flow_to_x0(DType dtype, const void* x, const void* v, double sigma, void* out, int64_t count,
                cudaStream_t stream) {
  map2(dtype, x, v, out, count, stream, FlowToX0{sigma});
}

void multiply(DType dtype, const void* x, const void* y, void* out, int64_t count,
              cudaStream_t stream) {
  map2(dtype, x, y, out, count, stream, Multiply{});
}

void soft_clamp(DType dtype, float limit, const void* x, void* y, int64_t count,
                cudaStream_t stream) {
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    map1<T, T>(x, y, count, stream, SoftClamp<T>{limit});
  });
}

void channel_affine(DType dtype, const void* x, const float* scale, const float* shift,
                    int64_t channels, void* y, int64_t count, cudaStream_t stream) {
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    map1<T, T>(x, y, count, stream, ChannelAffine<T>{scale, shift, channels});
  });
}

void to_rgb8(DType dtype, const void* x, float low, float high, uint8_t* y, int64_t count,
             cudaStream_t stream) {
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    map1<T, uint8_t>(x, y, count, stream, ToRgb8{low, 1.0F / (high - low)});
  });
}

void normal(RandomStream random, DType dtype, void* out, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  with_storage_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    normal_kernel<T>
        <<<grid_for((count + 3) / 4), 256, 0, stream>>>(random, static_cast<T*>(out), count);
  });
  UF_CUDA_LAUNCHED();
}

void copy_strided(const Strided& shape, int element_bytes, void* out, const void* in,
                  cudaStream_t stream) {
  const int64_t count = elements(shape);
  if (count == 0) return;
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    copy_kernel<T><<<grid_for(count), 256, 0, stream>>>(shape, count, static_cast<T*>(out),
                                                        static_cast<const T*>(in));
  };
  switch (element_bytes) {
    case 1:
      run(uint8_t{});
      break;
    case 2:
      run(uint16_t{});
      break;
    case 4:
      run(uint32_t{});
      break;
    case 8:
      run(uint64_t{});
      break;
    default:
      run(uint4{});
  }
  UF_CUDA_LAUNCHED();
}

void add_strided(DType dtype, const Strided& shape, const void* x, const void* y, void* out,
                 cudaStream_t stream) {
  const int64_t count = elements(shape);
  if (count == 0) return;
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    add_kernel<T><<<grid_for(count), 256, 0, stream>>>(
        shape, count, static_cast<const T*>(x), static_cast<const T*>(y), static_cast<T*>(out));
  });
  UF_CUDA_LAUNCHED();
}

void gather_rows(DType from, const void* table, const int64_t* ids, int64_t rows, int64_t dim,
                 DType to, void* out, cudaStream_t stream) {
  if (rows * dim == 0) return;
  with_storage_type(from, [&](auto in) {
    with_storage_type(to, [&](auto result) {
      using T = decltype(in);
      using U = decltype(result);
      gather_kernel<T, U><<<grid_for(rows * dim), 256, 0, stream>>>(
          static_cast<const T*>(table), ids, rows * dim, dim, static_cast<U*>(out));
    });
  });
  UF_CUDA_LAUNCHED();
}

bool all_bytes_are(const void* data, int64_t count, uint8_t value, uint32_t* scratch,
                   cudaStream_t stream) {
  if (count == 0) return true;
  UF_CUDA_TRY(cudaMemsetAsync(scratch, 0, sizeof(uint32_t), stream));
  count_others<<<grid_for(count), 256, 0, stream>>>(static_cast<const uint8_t*>(data), count, value,
                                                    scratch);
  UF_CUDA_LAUNCHED();
  uint32_t others = 1;
  UF_CUDA_TRY(cudaMemcpyAsync(&others, scratch, sizeof(others), cudaMemcpyDeviceToHost, stream));
  UF_CUDA_TRY(cudaStreamSynchronize(stream));
  return others == 0;
}

}  // namespace ultraflash::cuda::kernels
