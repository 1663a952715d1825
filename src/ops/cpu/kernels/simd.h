// Vectors of floats in the GNU vector extension, UF_SIMD_WIDTH lanes wide. Included by the kernel
// sources only; everything has internal linkage (see kernels.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

#ifndef UF_SIMD_WIDTH
#error "define UF_SIMD_WIDTH before including simd.h"
#endif

namespace ultraflash::cpu {
namespace {

constexpr int64_t kWidth = UF_SIMD_WIDTH;

using Vf = float __attribute__((vector_size(UF_SIMD_WIDTH * 4)));
using Vi = int32_t __attribute__((vector_size(UF_SIMD_WIDTH * 4)));
using Vu = uint32_t __attribute__((vector_size(UF_SIMD_WIDTH * 4)));
using Vh = uint16_t __attribute__((vector_size(UF_SIMD_WIDTH * 2)));
using Vb = uint8_t __attribute__((vector_size(UF_SIMD_WIDTH)));

inline Vf splat(float x) { return Vf{} + x; }
inline Vf bits_to_float(Vi x) {
  Vf y;
  __builtin_memcpy(&y, &x, sizeof(y));
  return y;
}
inline Vi float_to_bits(Vf x) {
  Vi y;
  __builtin_memcpy(&y, &x, sizeof(y));
  return y;
}

inline Vf load(const float* p) {
  Vf v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, Vf v) { __builtin_memcpy(p, &v, sizeof(v)); }

inline Vf widen_bf16(Vh half) {
  Vu wide = __builtin_convertvector(half, Vu) << 16;
  Vf v;
  __builtin_memcpy(&v, &wide, sizeof(v));
  return v;
}
// Round to nearest even; NaN becomes a quiet NaN.
inline Vh narrow_bf16(Vf v) {
  Vu bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  const Vu rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const Vu is_nan = static_cast<Vu>((bits & 0x7fffffffU) > 0x7f800000U);
  const Vu quiet = (bits >> 16) | 0x40U;
  return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), Vh);
}
inline Vf load(const BFloat16* p) {
  Vh half;
  __builtin_memcpy(&half, p, sizeof(half));
  return widen_bf16(half);
}
inline void store(BFloat16* p, Vf v) {
  const Vh half = narrow_bf16(v);
  __builtin_memcpy(static_cast<void*>(p), &half, sizeof(half));
}

// Half floats by integer arithmetic: exact for every value, on every machine.
inline Vf widen_f16(Vh half) {
  const Vu h = __builtin_convertvector(half, Vu);
  const Vu sign = (h & 0x8000U) << 16;
  const Vu magnitude = (h & 0x7fffU) << 13;
  // Adding 112 to the exponent of a normal number; infinity and NaN get 112 more.
  const Vu is_normal = static_cast<Vu>(magnitude >= 0x00800000U);
  const Vu is_special = static_cast<Vu>(magnitude >= 0x0f800000U);
  const Vu normal = magnitude + 0x38000000U + (is_special & 0x38000000U);
  const Vf subnormal = __builtin_convertvector(h & 0x3ffU, Vf) * 0x1p-24F;
  Vu small;
  __builtin_memcpy(&small, &subnormal, sizeof(small));
  const Vu bits = sign | (normal & is_normal) | (small & ~is_normal);
  Vf v;
  __builtin_memcpy(&v, &bits, sizeof(v));
  return v;
}
inline Vf load(const Float16* p) {
  Vh half;
  __builtin_memcpy(&half, p, sizeof(half));
  return widen_f16(half);
}

inline uint16_t narrow_f16_scalar(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  uint32_t half;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U;
  } else if (magnitude >= 0x477ff000U) {
    half = 0x7c00U;
  } else if (magnitude < 0x38800000U) {
    // Adding 1/2 aligns the mantissa, so that the addition rounds to the grid of subnormal halves.
    float small;
    __builtin_memcpy(&small, &magnitude, sizeof(small));
    const float aligned = small + 0.5F;
    uint32_t aligned_bits;
    __builtin_memcpy(&aligned_bits, &aligned, sizeof(aligned_bits));
    half = aligned_bits - 0x3f000000U;
  } else {
    half = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - 0x38000000U) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}
inline void store(Float16* p, Vf v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int64_t i = 0; i < kWidth; ++i) p[i].bits = narrow_f16_scalar(lanes[i]);
}

// The first `count` lanes; the others are zero on loading and untouched on storing.
template <typename T>
inline Vf load_some(const T* p, int64_t count) {
  T buffer[kWidth] = {};
  __builtin_memcpy(static_cast<void*>(buffer), p, static_cast<size_t>(count) * sizeof(T));
  return load(buffer);
}
template <typename T>
inline void store_some(T* p, Vf v, int64_t count) {
  T buffer[kWidth];
  store(buffer, v);
  __builtin_memcpy(static_cast<void*>(p), buffer, static_cast<size_t>(count) * sizeof(T));
}

inline Vf select(Vi condition, Vf a, Vf b) {
  return bits_to_float((float_to_bits(a) & condition) | (float_to_bits(b) & ~condition));
}
inline Vf max(Vf a, Vf b) { return select(a > b, a, b); }
inline Vf min(Vf a, Vf b) { return select(a < b, a, b); }

inline float sum_lanes(Vf v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int64_t half = kWidth / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

inline Vf square_root(Vf v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int64_t i = 0; i < kWidth; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
  return load(lanes);
}

// 2^x for x <= 127, within 2 units in the last place; very negative x gives 0.
inline Vf exp2(Vf x) {
  const Vf clamped = max(x, splat(-127.0F));
  const Vf magic = splat(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  const Vf shifted = clamped + magic;
  const Vf n = shifted - magic;
  const Vf f = clamped - n;  // [-0.5, 0.5]
  Vf p = splat(1.535336188319500e-4F);
  p = p * f + splat(1.339887440266574e-3F);
  p = p * f + splat(9.618437357674640e-3F);
  p = p * f + splat(5.550332471162809e-2F);
  p = p * f + splat(2.402264791363012e-1F);
  p = p * f + splat(6.931472028550421e-1F);
  p = p * f + splat(1.0F);
  const Vi exponent = (float_to_bits(shifted) << 23) + (127 << 23);
  const Vi tiny = x < splat(-126.0F);
  return bits_to_float(float_to_bits(p * bits_to_float(exponent)) & ~tiny);
}
inline Vf exp(Vf x) { return exp2(x * 1.44269504088896341F); }

inline Vf tanh(Vf x) {
  // Near 0 the quotient below cancels: use the odd polynomial there.
  const Vf limited = min(max(x, splat(-9.0F)), splat(9.0F));
  const Vf e = exp2(limited * 2.88539008177792681F);
  const Vf large = (e - 1.0F) / (e + 1.0F);
  const Vf z = x * x;
  Vf p = splat(-0.053968254F);
  p = p * z + splat(0.13333334F);
  p = p * z + splat(-0.33333334F);
  const Vf small = x + x * z * p;
  const Vi is_small = (z < splat(0.03F));
  return select(is_small, small, large);
}
inline Vf sigmoid(Vf x) {
  const Vf limited = max(x, splat(-87.0F));
  return 1.0F / (1.0F + exp(-limited));
}

}  // namespace
}  // namespace ultraflash::cpu
