// 3x3 convolutions of 64 channels for sm_90a as products of shifted pictures, bf16.
//
// A tile is 64 columns by 2 or 4 rows of pixels. Its pixels and a border of one lie in shared
// memory once, a pixel in a row of 128 bytes (swizzled; what lies outside the picture is copied as
// zeros). For every tap a consumer warpgroup multiplies the 64 pixels of a row, read from an
// address shifted by the tap, by the 64 x 64 (or 8 x 64) weights of the tap, which stay in shared
// memory for all tiles of the CTA. Nothing is gathered: the frame before and enlarged frames are
// read in place. A pixel of an enlarged frame needs 2 x 2 taps of summed weights, 4/9 of the
// products.
//
// Shared memory: weights 72 KiB, 144 with the past, 128 enlarged, 9 for 8 channels; pixels 33 or 50
// KiB a stage, 2 stages. Bound by shared memory: a product of 64 x 64 x 16 reads 4 KiB for 32
// clocks of the tensor cores.
#include <cuda_bf16.h>

#include <algorithm>
#include <limits>

#include "ops/cuda/conv_few.h"
#include "ops/cuda/conv_sm90.h"
#include "ops/cuda/sm90/tensor_maps.h"
#include "ops/cuda/sm90/tiles.cuh"

namespace ultraflash::cuda::sm90 {
namespace {

constexpr int kColumns = 64;          // of a tile
constexpr int kPitch = kColumns + 2;  // pixels of a row in shared memory
constexpr int kConsumers = 2;         // warpgroups
constexpr int kConsumerWarps = 4 * kConsumers;
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr uint32_t kAlign = 1024;  // of the swizzle

template <ConvInput INPUT, int OUT>
struct Layout {
  static constexpr bool kEnlarges = INPUT == ConvInput::kEnlarged;
  static constexpr int kParts = INPUT == ConvInput::kWithPast ? 2 : 1;  // of 64 channels
  static constexpr int kSlabs = kEnlarges ? 16 : 9 * kParts;
  static constexpr int kRows = kSlabs > 9 ? 2 : 4;  // of a tile
  static constexpr int kStages = 2;
  static constexpr uint32_t kSlabBytes = OUT * 128;
  static constexpr uint32_t kPixelBytes = (kRows + 2) * kPitch * 128;
  static constexpr uint32_t kStageBytes = (kPixelBytes + kAlign - 1) / kAlign * kAlign;
  static constexpr uint32_t kWeights = 0;
  static constexpr uint32_t kPixels = (kSlabs * kSlabBytes + kAlign - 1) / kAlign * kAlign;
  static constexpr uint32_t kBarriers = kPixels + kStages * kStageBytes;
  static constexpr uint32_t kBytes = kBarriers + 8 * (1 + 2 * kStages);
  static constexpr uint32_t weights_full() { return kBarriers; }
  static constexpr uint32_t full(int s) { return kBarriers + 8 * (1 + s); }
  static constexpr uint32_t empty(int s) { return kBarriers + 8 * (1 + kStages + s); }
};

struct ConvParams {
  const float* bias;
  const __nv_bfloat16* residual;
  __nv_bfloat16* y;
  int frames, height, width;
  int tile_rows, tile_columns, tiles;
  int channels;
  bool relu, has_past;
};

struct Tile {
  int frame, y, x;
};
template <int ROWS>
__device__ __forceinline__ Tile tile_at(const ConvParams& p, int index) {
  const int in_frame = index % (p.tile_rows * p.tile_columns);
  return {index / (p.tile_rows * p.tile_columns), in_frame / p.tile_columns * ROWS,
          in_frame % p.tile_columns * kColumns};
}

template <class LAYOUT, int OUT>
__device__ __forceinline__ void produce(const ConvParams& p, const CUtensorMap* x_map,
                                        const CUtensorMap* past_map, const CUtensorMap* w_map,
                                        uint32_t base) {
  barrier_arrive_expect(base + LAYOUT::weights_full(), LAYOUT::kSlabs * LAYOUT::kSlabBytes);
  for (int slab = 0; slab < LAYOUT::kSlabs; ++slab) {
    copy_box(base + LAYOUT::kWeights + slab * LAYOUT::kSlabBytes, w_map, slab * 64, 0,
             base + LAYOUT::weights_full());
  }
  int stage = 0;
  uint32_t parity = 0;
  for (int index = static_cast<int>(blockIdx.x); index < p.tiles;
       index += static_cast<int>(gridDim.x)) {
    const Tile tile = tile_at<LAYOUT::kRows>(p, index);
#pragma unroll
    for (int part = 0; part < LAYOUT::kParts; ++part) {
      const uint32_t full = base + LAYOUT::full(stage);
      barrier_wait(base + LAYOUT::empty(stage), parity ^ 1);
      barrier_arrive_expect(full, LAYOUT::kPixelBytes);
      // Without a past, frame -1 of x is outside and reads as zeros.
      const bool before = part == 1 && tile.frame == 0 && p.has_past;
      copy_box(base + LAYOUT::kPixels + stage * LAYOUT::kStageBytes, before ? past_map : x_map, 0,
               tile.x - 1, tile.y - 1, before ? 0 : tile.frame - part, full);
      if (++stage == LAYOUT::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

/// Sums of a thread: rows lane / 4 and 8 below of its warp's 16 pixels, columns 8 i + 2 (lane % 4)
/// + {0, 1} at s[4 i + 2 r + {0, 1}].
template <int OUT>
struct Sums {
  float s[OUT / 2];
};

__device__ __forceinline__ void multiply(Sums<64>& sums, uint64_t a, uint64_t b, bool add) {
  product_64x64(sums.s, a, b, add ? 1 : 0);
}
__device__ __forceinline__ void multiply(Sums<8>& sums, uint64_t a, uint64_t b, bool add) {
  product_64x8(sums.s, a, b, add ? 1 : 0);
}

/// sums (+)= 64 pixels from `pixel` on in shared memory times the weights of a tap.
template <int OUT>
__device__ __forceinline__ void multiply_tap(Sums<OUT>& sums, uint32_t pixels, int pixel,
                                             uint32_t weights, bool add) {
  const uint32_t a = tile_start(pixels + pixel * 128, 16);
  const uint32_t b = tile_start(weights, 16);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    multiply(sums, tile_descriptor(a + 2 * k), tile_descriptor(b + 2 * k), add || k > 0);
  }
}

/// Pixel `x` of the 64 of a row is y[first + x * step]; `valid` of them exist.
template <int OUT>
__device__ __forceinline__ void store(const ConvParams& p, Sums<OUT>& sums, int64_t first, int step,
                                      int valid, const float (&bias)[OUT / 4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quarter = lane % 4;
  __nv_bfloat16* to[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int x = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4 + 8 * r;
    to[r] = x < valid ? p.y + (first + int64_t{x} * step) * p.channels : nullptr;
#pragma unroll
    for (int i = 0; i < OUT / 8; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float& sum = sums.s[4 * i + 2 * r + n];
        sum += bias[2 * i + n];
        if (p.relu) sum = fmaxf(sum, 0.0F);
      }
    }
  }
  if constexpr (OUT == 64) {
    store_rows<OUT>(to, sums.s, {1.0F, 1.0F});
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (to[r] == nullptr) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (2 * quarter + n < p.channels) {
          to[r][2 * quarter + n] = __float2bfloat16(sums.s[2 * r + n]);
        }
      }
    }
  }
}

/// What is added to the 64 channels of a thread's two pixels, as it lies in memory.
struct Residual {
  uint4 words[2][2];  // pixel, 32 channels
};
__device__ __forceinline__ void load(const ConvParams& p, Residual& residual, int64_t first,
                                     int valid) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int x = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4 + 8 * r;
    const __nv_bfloat16* from = p.residual + (first + x) * 64 + 8 * (lane % 4);
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      residual.words[r][group] =
          x < valid ? __ldg(reinterpret_cast<const uint4*>(from + 32 * group)) : uint4{};
    }
  }
}
__device__ __forceinline__ void add(const Residual& residual, Sums<64>& sums) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const uint4 in = residual.words[r][group];
      uint32_t w[4] = {in.x, in.y, in.z, in.w};
      transpose_quad(w);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (4 * group + i) + 2 * r;
        sums.s[at] += __uint_as_float(w[i] << 16);
        sums.s[at + 1] += __uint_as_float(w[i] & 0xFFFF0000U);
      }
    }
  }
}

template <class LAYOUT, ConvInput INPUT, int OUT>
__device__ __forceinline__ void consume(const ConvParams& p, uint32_t base) {
  constexpr int kMyRows = LAYOUT::kRows / kConsumers;
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  const bool signals = threadIdx.x % 32 == 0;
  float bias[OUT / 4];
#pragma unroll
  for (int i = 0; i < OUT / 8; ++i) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int column = 8 * i + 2 * (static_cast<int>(threadIdx.x) % 4) + n;
      bias[2 * i + n] = p.bias != nullptr ? p.bias[column] : 0.0F;
    }
  }
  barrier_wait(base + LAYOUT::weights_full(), 0);
  int stage = 0;
  uint32_t parity = 0;
  const auto next_stage = [&] {
    if (signals) barrier_arrive(base + LAYOUT::empty(stage));
    if (++stage == LAYOUT::kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  const auto weights_of = [&](int slab) {
    return base + LAYOUT::kWeights + slab * LAYOUT::kSlabBytes;
  };
  for (int index = static_cast<int>(blockIdx.x); index < p.tiles;
       index += static_cast<int>(gridDim.x)) {
    const Tile tile = tile_at<LAYOUT::kRows>(p, index);
    const int valid = p.width - tile.x;
    const auto pixels = [&] { return base + LAYOUT::kPixels + stage * LAYOUT::kStageBytes; };
    if constexpr (LAYOUT::kEnlarges) {
      static_assert(kMyRows == 1);
      barrier_wait(base + LAYOUT::full(stage), parity);
      const int row = tile.y + consumer;
      Sums<OUT> sums[2];
#pragma unroll
      for (int down = 0; down < 2; ++down) {
#pragma unroll
        for (int right = 0; right < 2; ++right) {
          pin(sums[right].s);
          wgmma_fence();
#pragma unroll
          for (int tap = 0; tap < 4; ++tap) {
            multiply_tap(sums[right], pixels(),
                         (consumer + down + tap / 2) * kPitch + right + tap % 2,
                         weights_of((2 * down + right) * 4 + tap), tap > 0);
          }
          wgmma_commit();
        }
        wgmma_wait<0>();
        pin(sums[0].s);
        pin(sums[1].s);
        if (down == 1) next_stage();
        if (row >= p.height) continue;
        const int64_t first =
            ((int64_t{tile.frame} * p.height + row) * 2 + down) * 2 * p.width + 2 * tile.x;
        store(p, sums[0], first, 2, valid, bias);
        store(p, sums[1], first + 1, 2, valid, bias);
      }
    } else {
      Sums<OUT> sums[kMyRows];
      // Read while the products run.
      constexpr bool kAdds = INPUT == ConvInput::kFrame && OUT == 64;
      Residual residual[kAdds ? kMyRows : 1];
      const auto first_pixel = [&](int r) {
        return (int64_t{tile.frame} * p.height + tile.y + consumer * kMyRows + r) * p.width +
               tile.x;
      };
      if constexpr (kAdds) {
        if (p.residual != nullptr) {
#pragma unroll
          for (int r = 0; r < kMyRows; ++r) {
            const bool inside = tile.y + consumer * kMyRows + r < p.height;
            load(p, residual[r], first_pixel(r), inside ? valid : 0);
          }
        }
      }
#pragma unroll
      for (int part = 0; part < LAYOUT::kParts; ++part) {
        barrier_wait(base + LAYOUT::full(stage), parity);
#pragma unroll
        for (int r = 0; r < kMyRows; ++r) pin(sums[r].s);
        wgmma_fence();
#pragma unroll
        for (int r = 0; r < kMyRows; ++r) {
#pragma unroll
          for (int tap = 0; tap < 9; ++tap) {
            multiply_tap(sums[r], pixels(), (consumer * kMyRows + r + tap / 3) * kPitch + tap % 3,
                         weights_of(tap * LAYOUT::kParts + part), part > 0 || tap > 0);
          }
        }
        wgmma_commit();
        wgmma_wait<0>();
#pragma unroll
        for (int r = 0; r < kMyRows; ++r) pin(sums[r].s);
        next_stage();
      }
#pragma unroll
      for (int r = 0; r < kMyRows; ++r) {
        if constexpr (kAdds) {
          if (p.residual != nullptr) add(residual[r], sums[r]);
        }
        if (tile.y + consumer * kMyRows + r >= p.height) continue;
        store(p, sums[r], first_pixel(r), 1, valid, bias);
      }
    }
  }
}

template <ConvInput INPUT, int OUT>
__global__ void __launch_bounds__(kThreads, 1)
    convolve_kernel(const __grid_constant__ CUtensorMap x_map,
                    const __grid_constant__ CUtensorMap past_map,
                    const __grid_constant__ CUtensorMap w_map,
                    const __grid_constant__ ConvParams p) {
  using L = Layout<INPUT, OUT>;
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + kAlign - 1) & ~(kAlign - 1);
  if (threadIdx.x == 0) {
    barrier_init(base + L::weights_full(), 1);
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(base + L::full(s), 1);
      barrier_init(base + L::empty(s), kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    if (threadIdx.x == 0) produce<L, OUT>(p, &x_map, &past_map, &w_map, base);
  } else {
    consume<L, INPUT, OUT>(p, base);
  }
}

template <ConvInput INPUT, int OUT>
cudaError_t launch(const ConvArgs& a, int multiprocessors, cudaStream_t stream) {
  using L = Layout<INPUT, OUT>;
  constexpr int kBytes = L::kBytes + kAlign;
  static_assert(kBytes <= 227 * 1024, "shared memory of a CTA");
  CUtensorMap x_map;
  CUtensorMap past_map;
  CUtensorMap w_map;
  const void* past = a.past != nullptr ? a.past : a.x;
  if (!map_frames(&x_map, a.x, a.frames, a.height, a.width, kPitch, L::kRows + 2) ||
      !map_frames(&past_map, past, 1, a.height, a.width, kPitch, L::kRows + 2) ||
      !map_taps(&w_map, a.weight, OUT, L::kSlabs)) {
    return cudaErrorInvalidValue;
  }
  ConvParams p{};
  p.bias = a.bias;
  p.residual = static_cast<const __nv_bfloat16*>(a.residual);
  p.y = static_cast<__nv_bfloat16*>(a.y);
  p.frames = static_cast<int>(a.frames);
  p.height = static_cast<int>(a.height);
  p.width = static_cast<int>(a.width);
  p.tile_rows = (p.height + L::kRows - 1) / L::kRows;
  p.tile_columns = (p.width + kColumns - 1) / kColumns;
  p.tiles = p.frames * p.tile_rows * p.tile_columns;
  p.channels = static_cast<int>(a.channels);
  p.relu = a.relu;
  p.has_past = a.past != nullptr;
  auto* kernel = convolve_kernel<INPUT, OUT>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      error != cudaSuccess) {
    return error;
  }
  kernel<<<std::min(p.tiles, multiprocessors), kThreads, kBytes, stream>>>(x_map, past_map, w_map,
                                                                           p);
  return cudaGetLastError();
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

bool conv_supports(const ConvArgs& a) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  const bool known =
      a.channels == 64 || (a.input == ConvInput::kFrame && a.channels > 0 && a.channels <= 8);
  const bool adds = a.input == ConvInput::kFrame && a.channels == 64;
  return known && (adds || a.residual == nullptr) && aligned(a.residual) && a.frames > 0 &&
         a.height > 0 && a.width > 0 && a.frames * a.height * a.width < kMost && aligned(a.x) &&
         aligned(a.past) && aligned(a.weight) && aligned(a.y);
}

void enlarged_weights(const float* weight, float* enlarged) {
  // Taps that read the first and the second pixel of the two, by the place of the result.
  constexpr int kBegin[2][2] = {{0, 1}, {0, 2}};
  constexpr int kEnd[2][2] = {{1, 3}, {2, 3}};
  for (int out = 0; out < 64; ++out) {
    for (int tap = 0; tap < 16; ++tap) {
      const int down = tap / 8;
      const int right = tap / 4 % 2;
      const int row = tap / 2 % 2;
      const int column = tap % 2;
      for (int in = 0; in < 64; ++in) {
        float sum = 0.0F;
        for (int y = kBegin[down][row]; y < kEnd[down][row]; ++y) {
          for (int x = kBegin[right][column]; x < kEnd[right][column]; ++x) {
            sum += weight[(out * 9 + 3 * y + x) * 64 + in];
          }
        }
        enlarged[(out * 16 + tap) * 64 + in] = sum;
      }
    }
  }
}

cudaError_t convolve(const ConvArgs& a, int multiprocessors, cudaStream_t stream) {
  if (!conv_supports(a)) return cudaErrorNotSupported;
  const ConvFewArgs few{a.x,      a.weight, a.bias,     a.y,   a.frames,
                        a.height, a.width,  a.channels, a.relu};
  if (a.input == ConvInput::kFrame && conv_few_supports(few)) return convolve_few(few, stream);
  switch (a.input) {
    case ConvInput::kWithPast:
      return launch<ConvInput::kWithPast, 64>(a, multiprocessors, stream);
    case ConvInput::kEnlarged:
      return launch<ConvInput::kEnlarged, 64>(a, multiprocessors, stream);
    case ConvInput::kFrame:
      break;
  }
  return a.channels == 64 ? launch<ConvInput::kFrame, 64>(a, multiprocessors, stream)
                          : launch<ConvInput::kFrame, 8>(a, multiprocessors, stream);
}

}  // namespace ultraflash::cuda::sm90
