// Loops over elements. See kernels.h.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/norm_impl.h"
#include "ops/cpu/kernels/simd.h"

namespace ultraflash::cpu {
namespace {

inline Vf gelu_tanh(Vf x) {
  const Vf inner = (x + x * x * x * 0.044715F) * 0.797884560802865356F;
  return 0.5F * x * (1.0F + tanh(inner));
}

inline Vf gelu_erf(Vf x) {
  float lanes[kWidth];
  store(lanes, x);
  for (int64_t i = 0; i < kWidth; ++i) {
    lanes[i] = 0.5F * lanes[i] * (1.0F + __builtin_erff(lanes[i] * 0.707106781186547524F));
  }
  return load(lanes);
}

inline Vf apply_activation(Activation activation, Vf x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return max(x, Vf{});
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kGeluErf:
      return gelu_erf(x);
  }
  return x;
}

template <typename T, typename Function>
inline void map1(const void* x_any, void* out_any, int64_t count, const Function& function) {
  const T* x = static_cast<const T*>(x_any);
  T* out = static_cast<T*>(out_any);
  for_vectors(count, [&](int64_t i, int64_t lanes) {
    store_lanes(out + i, function(load_lanes(x + i, lanes)), lanes);
  });
}
template <typename T, typename Function>
inline void map2(const void* x_any, const void* y_any, void* out_any, int64_t count,
                 const Function& function) {
  const T* x = static_cast<const T*>(x_any);
  const T* y = static_cast<const T*>(y_any);
  T* out = static_cast<T*>(out_any);
  for_vectors(count, [&](int64_t i, int64_t lanes) {
    store_lanes(out + i, function(load_lanes(x + i, lanes), load_lanes(y + i, lanes)), lanes);
  });
}
template <typename Function>
inline void map1(DType dtype, const void* x, void* out, int64_t count, const Function& function) {
  if (dtype == DType::kBF16) {
    map1<BFloat16>(x, out, count, function);
  } else {
    map1<float>(x, out, count, function);
  }
}
template <typename Function>
inline void map2(DType dtype, const void* x, const void* y, void* out, int64_t count,
                 const Function& function) {
  if (dtype == DType::kBF16) {
    map2<BFloat16>(x, y, out, count, function);
  } else {
    map2<float>(x, y, out, count, function);
  }
}

void activate(DType dtype, Activation activation, const void* x, void* y, int64_t count) {
  map1(dtype, x, y, count, [&](Vf v) { return apply_activation(activation, v); });
}

void axpby(DType dtype, float a, const void* x, float b, const void* y, void* out, int64_t count) {
  map2(dtype, x, y, out, count, [&](Vf u, Vf v) { return u * a + v * b; });
}

void add(DType dtype, const void* a, const void* b, void* out, int64_t count) {
  map2(dtype, a, b, out, count, [](Vf u, Vf v) { return u + v; });
}

void multiply(DType dtype, const void* a, const void* b, void* out, int64_t count) {
  map2(dtype, a, b, out, count, [](Vf u, Vf v) { return u * v; });
}

void soft_clamp(DType dtype, float limit, const void* x, void* y, int64_t count) {
  map1(dtype, x, y, count, [&](Vf v) { return tanh(v / limit) * limit; });
}

template <typename T>
void channel_affine_rows(const void* x_any, const float* scale, const float* shift,
                         int64_t channels, void* y_any, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(x_any);
  T* y = static_cast<T*>(y_any);
  for (int64_t row = begin; row < end; ++row) {
    for_vectors(channels, [&](int64_t i, int64_t lanes) {
      const int64_t at = row * channels + i;
      store_lanes(
          y + at,
          load_lanes(x + at, lanes) * load_lanes(scale + i, lanes) + load_lanes(shift + i, lanes),
          lanes);
    });
  }
}

void channel_affine(DType dtype, const void* x, const float* scale, const float* shift,
                    int64_t channels, void* y, int64_t begin, int64_t end) {
  if (dtype == DType::kBF16) {
    channel_affine_rows<BFloat16>(x, scale, shift, channels, y, begin, end);
  } else {
    channel_affine_rows<float>(x, scale, shift, channels, y, begin, end);
  }
}

inline float scalar_of(float x) { return x; }
inline float scalar_of(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
inline void set_scalar(float* p, float value) { *p = value; }
inline void set_scalar(BFloat16* p, float value) { store_some(p, splat(value), 1); }

template <typename T>
void flow_to_x0_of(const void* x_any, const void* v_any, double sigma, void* out_any,
                   int64_t count) {
  const T* x = static_cast<const T*>(x_any);
  const T* v = static_cast<const T*>(v_any);
  T* out = static_cast<T*>(out_any);
  for (int64_t i = 0; i < count; ++i) {
    const double value =
        static_cast<double>(scalar_of(x[i])) - sigma * static_cast<double>(scalar_of(v[i]));
    set_scalar(out + i, static_cast<float>(value));
  }
}

void flow_to_x0(DType dtype, const void* x, const void* v, double sigma, void* out, int64_t count) {
  if (dtype == DType::kBF16) {
    flow_to_x0_of<BFloat16>(x, v, sigma, out, count);
  } else {
    flow_to_x0_of<float>(x, v, sigma, out, count);
  }
}

template <typename From, typename To>
void convert_of(const void* x_any, void* y_any, int64_t count) {
  const From* x = static_cast<const From*>(x_any);
  To* y = static_cast<To*>(y_any);
  for_vectors(count, [&](int64_t i, int64_t lanes) {
    store_lanes(y + i, load_lanes(x + i, lanes), lanes);
  });
}
template <typename From>
void convert_from(const void* x, DType to, void* y, int64_t count) {
  if (to == DType::kBF16) {
    convert_of<From, BFloat16>(x, y, count);
  } else if (to == DType::kF16) {
    convert_of<From, Float16>(x, y, count);
  } else {
    convert_of<From, float>(x, y, count);
  }
}
void convert(DType from, const void* x, DType to, void* y, int64_t count) {
  if (from == DType::kBF16) {
    convert_from<BFloat16>(x, to, y, count);
  } else if (from == DType::kF16) {
    convert_from<Float16>(x, to, y, count);
  } else {
    convert_from<float>(x, to, y, count);
  }
}

template <typename T>
void to_rgb8_of(const void* x_any, float low, float high, uint8_t* y, int64_t count) {
  const T* x = static_cast<const T*>(x_any);
  const float factor = 1.0F / (high - low);
  for_vectors(count, [&](int64_t i, int64_t lanes) {
    const Vf unit = (load_lanes(x + i, lanes) - low) * factor;
    const Vf clamped = min(max(unit, Vf{}), splat(1.0F));
    const Vb bytes = __builtin_convertvector(__builtin_convertvector(clamped * 255.0F, Vi), Vb);
    if (lanes == kWidth) {
      __builtin_memcpy(y + i, &bytes, sizeof(bytes));
    } else {
      __builtin_memcpy(y + i, &bytes, static_cast<size_t>(lanes));
    }
  });
}

void to_rgb8(DType dtype, const void* x, float low, float high, uint8_t* y, int64_t count) {
  if (dtype == DType::kBF16) {
    to_rgb8_of<BFloat16>(x, low, high, y, count);
  } else {
    to_rgb8_of<float>(x, low, high, y, count);
  }
}

}  // namespace
}  // namespace ultraflash::cpu
