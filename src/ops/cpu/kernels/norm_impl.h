// Row norms, gated residuals and the query/key preparation. See kernels.h.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd.h"

namespace ultraflash::cpu {
namespace {

// Calls body(offset, lanes) over [0, dim): full vectors, then one partial one.
template <typename Body>
inline void for_vectors(int64_t dim, const Body& body) {
  int64_t i = 0;
  for (; i + kWidth <= dim; i += kWidth) body(i, kWidth);
  if (i < dim) body(i, dim - i);
}

template <typename T>
inline Vf load_lanes(const T* p, int64_t lanes) {
  return lanes == kWidth ? load(p) : load_some(p, lanes);
}
template <typename T>
inline void store_lanes(T* p, Vf v, int64_t lanes) {
  if (lanes == kWidth) {
    store(p, v);
  } else {
    store_some(p, v, lanes);
  }
}

inline const float* row_of(const float* base, int64_t batch, int64_t batch_stride, int64_t row,
                           int64_t row_stride) {
  return base == nullptr ? nullptr : base + batch * batch_stride + row * row_stride;
}

template <typename T>
void residual_norm_rows(const ResidualNormArgs& a, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t batch = t / a.tokens;
    const int64_t row = t % a.tokens / a.tokens_per_row;
    const float* gate = row_of(a.gate, batch, a.gate_batch_stride, row, a.gate_row_stride);
    const float* scale = row_of(a.scale, batch, a.scale_batch_stride, row, a.scale_row_stride);
    const float* shift = row_of(a.shift, batch, a.shift_batch_stride, row, a.shift_row_stride);
    const T* x = static_cast<const T*>(a.x) + t * a.dim;
    const T* y = a.y == nullptr ? nullptr : static_cast<const T*>(a.y) + t * a.dim;
    T* x_out = a.x_out == nullptr ? nullptr : static_cast<T*>(a.x_out) + t * a.dim;

    Vf sum = {};
    for_vectors(a.dim, [&](int64_t i, int64_t lanes) {
      Vf v = load_lanes(x + i, lanes);
      if (y != nullptr) {
        const Vf update = load_lanes(y + i, lanes);
        v += gate == nullptr ? update : update * load_lanes(gate + i, lanes);
        store_lanes(x_out + i, v, lanes);
        // The norm sees what was stored, as the next reader of x does.
        v = load_lanes(x_out + i, lanes);
      }
      sum += v;
    });
    if (a.n_out == nullptr) continue;

    const T* source = y != nullptr ? x_out : x;
    const float mean = sum_lanes(sum) / static_cast<float>(a.dim);
    Vf squares = {};
    for_vectors(a.dim, [&](int64_t i, int64_t lanes) {
      Vf d = load_lanes(source + i, lanes) - splat(mean);
      if (lanes != kWidth) {
        float partial[kWidth] = {};
        store_some(partial, d, lanes);
        d = load(partial);
      }
      squares += d * d;
    });
    const float variance = sum_lanes(squares) / static_cast<float>(a.dim);
    const float inverse = 1.0F / __builtin_sqrtf(variance + a.eps);
    T* n = static_cast<T*>(a.n_out) + t * a.dim;
    const float one = a.one_plus_scale ? 1.0F : 0.0F;
    for_vectors(a.dim, [&](int64_t i, int64_t lanes) {
      Vf v = (load_lanes(source + i, lanes) - splat(mean)) * splat(inverse);
      if (scale != nullptr) v *= load_lanes(scale + i, lanes) + splat(one);
      if (shift != nullptr) v += load_lanes(shift + i, lanes);
      store_lanes(n + i, v, lanes);
    });
  }
}

void residual_norm(const ResidualNormArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == DType::kBF16) {
    residual_norm_rows<BFloat16>(a, begin, end);
  } else {
    residual_norm_rows<float>(a, begin, end);
  }
}

template <typename T>
inline float sum_of_squares(const T* x, int64_t dim) {
  Vf sum = {};
  for_vectors(dim, [&](int64_t i, int64_t lanes) {
    const Vf v = load_lanes(x + i, lanes);
    sum += v * v;
  });
  return sum_lanes(sum);
}

template <typename T>
void rms_norm_rows(const void* x_any, const float* weight, float eps, int64_t dim, void* y_any,
                   int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(x_any) + row * dim;
    T* y = static_cast<T*>(y_any) + row * dim;
    const float mean = sum_of_squares(x, dim) / static_cast<float>(dim);
    const float inverse = 1.0F / __builtin_sqrtf(mean + eps);
    for_vectors(dim, [&](int64_t i, int64_t lanes) {
      store_lanes(y + i, load_lanes(x + i, lanes) * splat(inverse) * load_lanes(weight + i, lanes),
                  lanes);
    });
  }
}

void rms_norm(DType dtype, const void* x, const float* weight, float eps, int64_t dim, void* y,
              int64_t begin, int64_t end) {
  if (dtype == DType::kBF16) {
    rms_norm_rows<BFloat16>(x, weight, eps, dim, y, begin, end);
  } else {
    rms_norm_rows<float>(x, weight, eps, dim, y, begin, end);
  }
}

template <typename T>
void channel_norm_rows(const void* x_any, const float* gamma, bool silu, int64_t channels,
                       void* y_any, int64_t begin, int64_t end) {
  const float root = __builtin_sqrtf(static_cast<float>(channels));
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(x_any) + row * channels;
    T* y = static_cast<T*>(y_any) + row * channels;
    const float norm = __builtin_sqrtf(sum_of_squares(x, channels));
    const float factor = root / (norm > 1e-12F ? norm : 1e-12F);
    for_vectors(channels, [&](int64_t i, int64_t lanes) {
      Vf v = load_lanes(x + i, lanes) * splat(factor) * load_lanes(gamma + i, lanes);
      if (silu) v *= sigmoid(v);
      store_lanes(y + i, v, lanes);
    });
  }
}

void channel_norm(DType dtype, const void* x, const float* gamma, bool silu, int64_t channels,
                  void* y, int64_t begin, int64_t end) {
  if (dtype == DType::kBF16) {
    channel_norm_rows<BFloat16>(x, gamma, silu, channels, y, begin, end);
  } else {
    channel_norm_rows<float>(x, gamma, silu, channels, y, begin, end);
  }
}

inline Vf swap_pairs(Vf v) {
  Vi index;
  for (int64_t i = 0; i < kWidth; ++i) index[i] = static_cast<int32_t>(i ^ 1);
#if defined(__clang__)
  Vf out;
  for (int64_t i = 0; i < kWidth; ++i) out[i] = v[index[i]];
  return out;
#else
  return __builtin_shuffle(v, index);
#endif
}

// y = rotate(x * inverse * weight): pairs (a, b) -> (a cos - b sin, a sin + b cos).
template <typename T>
inline void norm_and_rotate(const T* x, const float* weight, float inverse, int64_t dim,
                            int64_t head_dim, const float* cosine, const float* sine, T* y) {
  for (int64_t head = 0; head < dim; head += head_dim) {
    for_vectors(head_dim, [&](int64_t i, int64_t lanes) {
      const Vf v =
          load_lanes(x + head + i, lanes) * splat(inverse) * load_lanes(weight + head + i, lanes);
      const Vf rotated =
          v * load_lanes(cosine + i, lanes) + swap_pairs(v) * load_lanes(sine + i, lanes);
      store_lanes(y + head + i, rotated, lanes);
    });
  }
}

template <typename T>
void qkv_token_of(const QkvTokenArgs& a) {
  const T* q = static_cast<const T*>(a.qkv);
  const T* k = q + a.dim;
  const float size = static_cast<float>(a.dim);
  const float inverse_q = 1.0F / __builtin_sqrtf(sum_of_squares(q, a.dim) / size + a.eps);
  const float inverse_k = 1.0F / __builtin_sqrtf(sum_of_squares(k, a.dim) / size + a.eps);
  norm_and_rotate(q, a.norm_q, inverse_q, a.dim, a.head_dim, a.cosine, a.sine,
                  static_cast<T*>(a.q_out));
  norm_and_rotate(k, a.norm_k, inverse_k, a.dim, a.head_dim, a.cosine, a.sine,
                  static_cast<T*>(a.k_out));
  __builtin_memcpy(a.v_out, k + a.dim, static_cast<size_t>(a.dim) * sizeof(T));
}

void qkv_token(const QkvTokenArgs& a) {
  if (a.dtype == DType::kBF16) {
    qkv_token_of<BFloat16>(a);
  } else {
    qkv_token_of<float>(a);
  }
}

}  // namespace
}  // namespace ultraflash::cpu
