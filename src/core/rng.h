// Random numbers: Philox4x32-10, counter based, with the same bits on every executor.
//
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Normals follow
// Box and Muller; logarithm, sine and cosine are polynomials written with correctly rounded
// operations only (+, *, fma, sqrt), so that a CPU and a GPU that round as IEEE 754 asks agree bit
// for bit. Files that include this must be compiled without contraction of a*b+c.
//
// Element i of a stream depends on (seed, stream, i) alone: the order of draws, the number of
// threads and the shape of the launch do not matter.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#if defined(__CUDACC__)
#define UF_HOST_DEVICE __host__ __device__
#else
#define UF_HOST_DEVICE
#endif

namespace ultraflash {

/// Names one independent stream of random numbers.
struct RandomStream {
  uint64_t seed = 0;
  uint64_t stream = 0;  // purpose and place of use, see make_random_stream
};

/// What random numbers are drawn for. Part of the stream number: never renumber.
enum class RandomPurpose : uint8_t {
  kInitialNoise = 1,    // index: latent frame chunk, step 0
  kRenoise = 2,         // index: chunk, step: denoising step
  kConditionNoise = 3,  // index: SR group
  kRefinerNoise = 4,    // index: SR group
  kWeights = 5,         // index: hash of the tensor name
  kTest = 6,
  kPocketScene = 7,    // index: scene, step: split
  kPocketCaption = 8,  // index: scene, step: variant
  kDegradation = 9,    // index: clip
};

/// Stream for `purpose` at `index` (chunk, group) and `step`.
constexpr RandomStream make_random_stream(uint64_t seed, RandomPurpose purpose, uint64_t index,
                                          uint32_t step = 0) {
  return {seed, (static_cast<uint64_t>(purpose) << 56) |
                    (static_cast<uint64_t>(step & 0xffU) << 48) | (index & 0xffffffffffffULL)};
}

namespace rng {

struct Four {
  uint32_t x[4];
};
struct FourNormals {
  float x[4];
};

UF_HOST_DEVICE inline float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
UF_HOST_DEVICE inline float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
UF_HOST_DEVICE inline float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
UF_HOST_DEVICE inline float square_root(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}

/// The Philox4x32 block function with ten rounds.
UF_HOST_DEVICE inline Four philox(uint64_t counter_low, uint64_t counter_high, uint64_t key) {
  uint32_t c0 = static_cast<uint32_t>(counter_low);
  uint32_t c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high);
  uint32_t c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53U} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57U} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {{c0, c1, c2, c3}};
}

/// Natural logarithm of a normal float in (0, 1], within 2 units in the last place.
UF_HOST_DEVICE inline float portable_log(float u) {
  // u = 2^e * m with m in [sqrt(1/2), sqrt(2)); log u = e ln 2 + log(1 + f), f = m - 1.
  const uint32_t bits = std::bit_cast<uint32_t>(u) - 0x3f3504f3U;
  const auto exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float m = std::bit_cast<float>((bits & 0x007fffffU) + 0x3f3504f3U);
  const float f = add(m, -1.0F);
  const float z = multiply(f, f);
  float p = 7.0376836292e-2F;
  p = fused_multiply_add(p, f, -1.1514610310e-1F);
  p = fused_multiply_add(p, f, 1.1676998740e-1F);
  p = fused_multiply_add(p, f, -1.2420140846e-1F);
  p = fused_multiply_add(p, f, 1.4249322787e-1F);
  p = fused_multiply_add(p, f, -1.6668057665e-1F);
  p = fused_multiply_add(p, f, 2.0000714765e-1F);
  p = fused_multiply_add(p, f, -2.4999993993e-1F);
  p = fused_multiply_add(p, f, 3.3333331174e-1F);
  float y = multiply(multiply(p, f), z);
  y = fused_multiply_add(exponent, -2.12194440e-4F, y);
  y = fused_multiply_add(z, -0.5F, y);
  return fused_multiply_add(exponent, 0.693359375F, add(f, y));
}

struct SinCos {
  float sine;
  float cosine;
};

/// Sine and cosine of a uniformly distributed angle made from 32 random bits: the two top bits
/// choose the quadrant, the rest an angle in [-pi/4, pi/4) around its axis.
UF_HOST_DEVICE inline SinCos portable_sincos(uint32_t bits) {
  const auto offset = static_cast<float>(static_cast<int32_t>(bits & 0x3fffffffU) - 0x20000000);
  const float a = multiply(offset, 1.4629180792671596e-9F);  // pi/2 * 2^-30
  const float z = multiply(a, a);
  float s = -1.9515295891e-4F;
  s = fused_multiply_add(s, z, 8.3321608736e-3F);
  s = fused_multiply_add(s, z, -1.6666654611e-1F);
  s = fused_multiply_add(multiply(s, z), a, a);
  float c = 2.443315711809948e-5F;
  c = fused_multiply_add(c, z, -1.388731625493765e-3F);
  c = fused_multiply_add(c, z, 4.166664568298827e-2F);
  c = fused_multiply_add(multiply(c, z), z, fused_multiply_add(z, -0.5F, 1.0F));
  const uint32_t quadrant = bits >> 30;
  const float swapped_s = (quadrant & 1U) != 0 ? c : s;
  const float swapped_c = (quadrant & 1U) != 0 ? s : c;
  // Quadrants 0..3: (s, c), (c, -s), (-s, -c), (-c, s).
  return {(quadrant & 2U) != 0 ? -swapped_s : swapped_s,
          ((quadrant + 1U) & 2U) != 0 ? -swapped_c : swapped_c};
}

/// Four standard normals: elements 4*block .. 4*block + 3 of `stream`.
UF_HOST_DEVICE inline FourNormals normals(RandomStream stream, uint64_t block) {
  const Four r = philox(block, stream.stream, stream.seed);
  FourNormals out;
  for (int pair = 0; pair < 2; ++pair) {
    const float u = fused_multiply_add(static_cast<float>(r.x[2 * pair]), 0x1p-32F, 0x1p-33F);
    const float radius = square_root(multiply(-2.0F, portable_log(u)));
    const SinCos angle = portable_sincos(r.x[2 * pair + 1]);
    out.x[2 * pair] = multiply(radius, angle.cosine);
    out.x[2 * pair + 1] = multiply(radius, angle.sine);
  }
  return out;
}

/// Uniform float in [0, 1) from 32 random bits (24 of them are used).
UF_HOST_DEVICE inline float uniform(uint32_t bits) {
  return multiply(static_cast<float>(bits >> 8), 0x1p-24F);
}

}  // namespace rng

/// Elements [offset, offset + out.size()) of the stream of standard normals.
void fill_normal(RandomStream stream, int64_t offset, std::span<float> out);
/// Elements [offset, offset + out.size()) of the stream of uniform numbers in [0, 1).
void fill_uniform(RandomStream stream, int64_t offset, std::span<float> out);

/// FNV-1a of a text, to derive a stream number from a tensor name.
uint64_t hash_name(std::span<const char> text);

}  // namespace ultraflash
