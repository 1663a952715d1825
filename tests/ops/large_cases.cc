#include <fmt/format.h>

#include "ops/op_cases.h"

namespace ultraflash::testing {
namespace {

void add_products(std::vector<OpCase>& cases) {
  struct Size {
    int64_t rows, in, out;
  };
  // Pocket generator, a quarter of a 480p chunk at the width of Wan2.1-1.3B, and single rows.
  for (const Size& s :
       {Size{180, 192, 576}, Size{180, 192, 768}, Size{180, 768, 192}, Size{1170, 1536, 4608},
        Size{1170, 1536, 8960}, Size{1170, 8960, 1536}, Size{1, 1536, 9216}}) {
    cases.push_back({fmt::format("linear/{}x{}x{}", s.rows, s.in, s.out),
                     [s](const OpContext& c) {
                       return std::vector<Tensor>{c.executor.linear(
                           c.input({1, s.rows, s.in}, 1), c.linear({s.out}, s.in, true, 2))};
                     },
                     5e-6, true, 1, 2.0 * static_cast<double>(s.rows * s.in * s.out)});
  }
  cases.push_back({"linear_gelu/1170x1536x8960",
                   [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.linear(c.input({1, 1170, 1536}, 1),
                                                                  c.linear({8960}, 1536, true, 2),
                                                                  Activation::kGeluTanh)};
                   },
                   5e-6, true, 1, 2.0 * 1170 * 1536 * 8960});
}

void add_attention(std::vector<OpCase>& cases) {
  struct Size {
    int64_t queries, keys, heads, head_dim;
  };
  for (const Size& s : {Size{180, 1260, 3, 64}, Size{180, 48, 3, 64}, Size{1170, 8190, 12, 128},
                        Size{1170, 512, 12, 128}}) {
    cases.push_back(
        {fmt::format("attention/{}x{}_{}x{}", s.queries, s.keys, s.heads, s.head_dim),
         [s](const OpContext& c) {
           const int64_t dim = s.heads * s.head_dim;
           return std::vector<Tensor>{c.executor.attention(c.input({1, s.queries, dim}, 1),
                                                           c.input({1, s.keys, dim}, 2),
                                                           c.input({1, s.keys, dim}, 3), s.heads)};
         },
         5e-6, true, 1, 4.0 * static_cast<double>(s.queries * s.keys * s.heads * s.head_dim)});
  }
  cases.push_back(
      {"qkv_to_cache/1170_12x128", [](const OpContext& c) {
         const TokenGrid grid{3, 15, 26};
         ChunkPlace place;
         place.first_frame = 100;
         place.first_slot = 18;
         place.ring_end = 21;
         place.visible_frames = 21;
         KvCache cache{c.input({1, 21 * 390, 1536}, 5), c.input({1, 21 * 390, 1536}, 6)};
         c.executor.update_place(place);
         return std::vector<Tensor>{
             c.executor.qkv_to_cache(c.input({1, 1170, 3 * 1536}, 1), c.parameter({1536}, 2),
                                     c.parameter({1536}, 3), 1e-6F, grid, 12, place, cache)};
       }});
  // A group of 6 latent frames of a quarter of 1K, 3 temporal blocks cached.
  const WindowGrid grid{{6, 30, 52}, {2, 8, 8}};
  const auto place = GroupPlace{6, 3, 0, 6, {}};
  cases.push_back(
      {"qkv_to_windows_select/9360_12x128", [grid, place](const OpContext& c) {
         const int64_t blocks = place.capacity_blocks * grid.spatial_blocks();
         WindowCache cache{c.input({1, blocks, 128, 1536}, 5), c.input({1, blocks, 128, 1536}, 6),
                           c.input({1, blocks, 1536}, 7)};
         GroupPlace here = place;
         c.executor.update_place(here);
         const WindowedQueries q = c.executor.qkv_to_windows(
             c.input({1, grid.grid.tokens(), 3 * 1536}, 1), c.parameter({1536}, 2),
             c.parameter({1536}, 3), 1e-6F, grid, 12, here, cache);
         const BlockMask mask = c.executor.select_blocks(q, cache, grid, 12, here, {9, 200, 1});
         return std::vector<Tensor>{q.q, mask.mask};
       }});
}

void add_element_wise(std::vector<OpCase>& cases) {
  cases.push_back({"residual_modulate/1170x1536", [](const OpContext& c) {
                     const Tensor m = c.parameter({1, 1, 6, 1536}, 3);
                     const ResidualNorm r = c.executor.residual_modulate(
                         c.input({1, 1170, 1536}, 1), c.input({1, 1170, 1536}, 2), m.select(2, 2),
                         m.select(2, 3), m.select(2, 4), 1e-6F);
                     return std::vector<Tensor>{r.x, r.normalized};
                   }});
  cases.push_back({"rms_norm/1170x1536", [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.rms_norm(c.input({1, 1170, 1536}, 1),
                                                                    c.parameter({1536}, 2), 1e-6F)};
                   }});
  cases.push_back(
      {"to_rgb8/4x192x320", [](const OpContext& c) {
         return std::vector<Tensor>{c.executor.to_rgb8(c.input({4, 192, 320, 3}, 1), 0.0F, 1.0F)};
       }});
  cases.push_back(
      {"normal/3x60x104x16", [](const OpContext& c) {
         return std::vector<Tensor>{c.executor.normal({3, 4}, {3, 60, 104, 16}, c.compute)};
       }});
}

void add_convolutions(std::vector<OpCase>& cases) {
  struct Size {
    int64_t frames, height, width, in, out, upsample;
  };
  // The pocket decoder's stages, and two of the published decoder.
  for (const Size& s :
       {Size{2, 24, 40, 64, 64, 1}, Size{2, 48, 80, 48, 48, 1}, Size{4, 96, 160, 32, 32, 1},
        Size{8, 192, 320, 24, 24, 1}, Size{8, 192, 320, 24, 3, 1}, Size{3, 30, 52, 256, 256, 1},
        Size{3, 60, 104, 128, 128, 2}}) {
    cases.push_back({fmt::format("conv2d/{}x{}x{}_{}_{}_up{}", s.frames, s.height, s.width, s.in,
                                 s.out, s.upsample),
                     [s](const OpContext& c) {
                       Conv2dOptions options;
                       options.activation = Activation::kRelu;
                       options.upsample = s.upsample;
                       return std::vector<Tensor>{
                           c.executor.conv2d(c.input({1, s.frames, s.height, s.width, s.in}, 1),
                                             c.conv({s.out, s.in, 3, 3}, true, 2), options)};
                     },
                     5e-6, true, 1,
                     18.0 * static_cast<double>(s.frames * s.height * s.width * s.upsample *
                                                s.upsample * s.in * s.out)});
  }
  cases.push_back({"conv2d_memory/8x192x320_24",
                   [](const OpContext& c) {
                     Conv2dOptions options;
                     options.activation = Activation::kRelu;
                     options.with_memory = true;
                     options.memory = c.input({1, 1, 192, 320, 24}, 3);
                     return std::vector<Tensor>{c.executor.conv2d(c.input({1, 8, 192, 320, 24}, 1),
                                                                  c.conv({24, 48, 3, 3}, true, 2),
                                                                  options)};
                   },
                   5e-6, true, 1, 18.0 * 8 * 192 * 320 * 48 * 24});
  cases.push_back({"causal_conv3d/4x24x40_192",
                   [](const OpContext& c) {
                     Conv3dOptions options;
                     options.past = c.input({1, 2, 24, 40, 192}, 3);
                     return std::vector<Tensor>{
                         c.executor.causal_conv3d(c.input({1, 4, 24, 40, 192}, 1),
                                                  c.conv({192, 192, 3, 3, 3}, true, 2), options)};
                   },
                   5e-6, true, 1, 54.0 * 4 * 24 * 40 * 192 * 192});
}

}  // namespace

const std::vector<OpCase>& large_op_cases() {
  static const std::vector<OpCase> kCases = [] {
    std::vector<OpCase> cases;
    add_products(cases);
    add_attention(cases);
    add_convolutions(cases);
    add_element_wise(cases);
    return cases;
  }();
  return kCases;
}

}  // namespace ultraflash::testing
