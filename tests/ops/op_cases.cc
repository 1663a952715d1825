#include "ops/op_cases.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

namespace ultraflash::testing {
namespace {

Tensor drawn(uint64_t seed, uint64_t salt, const Shape& shape, float scale, DType storage) {
  Tensor x = Tensor::allocate(DType::kF32, shape);
  fill_normal(make_random_stream(seed, RandomPurpose::kTest, salt), 0,
              {x.mutable_data<float>(), static_cast<size_t>(x.numel())});
  for (int64_t i = 0; i < x.numel(); ++i) x.mutable_data<float>()[i] *= scale;
  return x.to(storage).to(DType::kF32);
}

// make() the first time, the same afterwards; always made when there is no memo.
template <typename T, typename Make>
T remembered(std::map<std::string, T>* memo, const std::string& key, const Make& make) {
  if (memo == nullptr) return make();
  const auto found = memo->find(key);
  return found != memo->end() ? found->second : memo->emplace(key, make()).first->second;
}

Tensor lengths(std::initializer_list<int64_t> values) {
  return Tensor::of<int64_t>({values.begin(), values.size()},
                             {static_cast<int64_t>(values.size())});
}

void add_product_cases(std::vector<OpCase>& cases) {
  struct Size {
    int64_t rows, in, out;
  };
  const auto sizes = {Size{0, 8, 8},      Size{1, 16, 24},    Size{3, 7, 5},
                      Size{113, 33, 203}, Size{799, 64, 31},  Size{180, 192, 576},
                      Size{49, 768, 192}, Size{1, 1536, 9216}};
  for (const Size& s : sizes) {
    for (const Activation activation : {Activation::kNone, Activation::kGeluTanh, Activation::kSilu,
                                        Activation::kRelu, Activation::kGeluErf}) {
      if (activation != Activation::kNone && s.rows != 113) continue;
      cases.push_back(
          {fmt::format("linear_{}x{}x{}_act{}", s.rows, s.in, s.out, static_cast<int>(activation)),
           [s, activation](const OpContext& c) {
             return std::vector<Tensor>{c.executor.linear(
                 c.input({s.rows, s.in}, 1), c.linear({s.out}, s.in, true, 2), activation)};
           },
           5e-6, true, 1, 2.0 * static_cast<double>(s.rows * s.in * s.out)});
    }
  }
  cases.push_back({"linear_three_parts_no_bias", [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.linear(
                         c.input({2, 19, 48}, 1), c.linear({48, 16, 32}, 48, false, 2))};
                   }});
  cases.push_back({"linear_streamed",
                   [](const OpContext& c) {
                     Linear layer = c.linear({700, 41}, 96, true, 2);
                     c.executor.prepare(layer, {.compute = c.compute, .streamed = true});
                     return std::vector<Tensor>{
                         c.executor.linear(c.input({2, 13, 96}, 1), layer, Activation::kGeluTanh)};
                   },
                   5e-6});
  // The second has more rows than an executor may take at once, and a rest.
  for (const int64_t rows : {113, 41'001}) {
    cases.push_back({fmt::format("feed_forward_{}", rows),
                     [rows](const OpContext& c) {
                       return std::vector<Tensor>{c.executor.feed_forward(
                           c.input({1, rows, 16}, 1), c.linear({40}, 16, true, 2),
                           Activation::kGeluTanh, c.linear({24}, 40, true, 3))};
                     },
                     5e-6});
  }
  cases.push_back({"temporal_pool", [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.temporal_pool(
                         c.input({2, 6, 3, 5, 8}, 1), c.linear({8}, 16, false, 2), 2)};
                   }});
  cases.push_back({"temporal_grow", [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.temporal_grow(
                         c.input({2, 3, 4, 5, 12}, 1), c.linear({24}, 12, false, 2), 2)};
                   }});
}

void add_norm_cases(std::vector<OpCase>& cases) {
  for (const int64_t dim : {1, 3, 64, 113, 192, 799}) {
    cases.push_back({fmt::format("layer_norm_{}", dim),
                     [dim](const OpContext& c) {
                       return std::vector<Tensor>{
                           c.executor.layer_norm(c.input({2, 7, dim}, 1), c.parameter({dim}, 2),
                                                 c.parameter({dim}, 3), 1e-6F)};
                     },
                     // With one element every difference from the mean is rounding noise.
                     dim == 1 ? 1e-5 : 4e-6});
    cases.push_back({fmt::format("rms_norm_{}", dim), [dim](const OpContext& c) {
                       return std::vector<Tensor>{c.executor.rms_norm(
                           c.input({2, 7, dim}, 1), c.parameter({dim}, 2), 1e-6F)};
                     }});
    cases.push_back(
        {fmt::format("channel_norm_{}", dim), [dim](const OpContext& c) {
           return std::vector<Tensor>{
               c.executor.channel_norm(c.input({5, dim}, 1), c.parameter({dim}, 2), true),
               c.executor.channel_norm(c.input({5, dim}, 1), c.parameter({dim}, 2), false)};
         }});
  }
  for (const int64_t rows : {1, 3}) {
    cases.push_back({fmt::format("residual_modulate_{}_rows", rows),
                     [rows](const OpContext& c) {
                       // Rows of a [batch, rows, 6, dim] modulation, as the DiT cuts them.
                       const Tensor m = c.parameter({2, rows, 6, 80}, 3);
                       ResidualNorm r = c.executor.residual_modulate(
                           c.input({2, 9, 80}, 1), c.input({2, 9, 80}, 2), m.select(2, 2),
                           m.select(2, 3), m.select(2, 4), 1e-6F);
                       return std::vector<Tensor>{
                           r.x, r.normalized,
                           c.executor.layer_norm_modulate(c.input({2, 9, 80}, 1), m.select(2, 0),
                                                          m.select(2, 1), 1e-6F)};
                     },
                     4e-6});
  }
  cases.push_back({"residual_layer_norm",
                   [](const OpContext& c) {
                     ResidualNorm r = c.executor.residual_layer_norm(
                         c.input({3, 5, 48}, 1), c.input({3, 5, 48}, 2), {}, c.parameter({48}, 3),
                         c.parameter({48}, 4), 1e-6F);
                     return std::vector<Tensor>{r.x, r.normalized};
                   },
                   4e-6});
  cases.push_back(
      {"gated_residual_shared_batch", [](const OpContext& c) {
         return std::vector<Tensor>{
             c.executor.gated_residual(c.input({3, 8, 20}, 1), c.input({3, 8, 20}, 2),
                                       c.parameter({1, 2, 20}, 3)),
             c.executor.gated_residual(c.input({3, 8, 20}, 1), c.input({3, 8, 20}, 2), {})};
       }});
}

// Keys of a text of which `distinct` are not padding, or the first of it; 0: nothing is said.
void add_cross_attention_cases(std::vector<OpCase>& cases) {
  struct Size {
    int64_t batch, queries, keys, distinct, heads, head_dim;
  };
  const auto sizes = {
      Size{2, 9, 11, 4, 3, 16},    Size{1, 33, 96, 1, 5, 128},   Size{1, 70, 512, 41, 12, 128},
      Size{2, 31, 80, 64, 2, 128}, Size{2, 32, 80, 65, 12, 128}, Size{1, 17, 200, 145, 3, 128},
      Size{1, 16, 70, 70, 1, 128}, Size{1, 40, 70, 0, 2, 128},   Size{1, 5, 7, 3, 13, 128}};
  for (const Size& s : sizes) {
    cases.push_back(
        {fmt::format("cross_attention_{}x{}x{}_{}_{}x{}", s.batch, s.queries, s.keys, s.distinct,
                     s.heads, s.head_dim),
         [s](const OpContext& c) {
           const int64_t dim = s.heads * s.head_dim;
           // Of one text for all samples, or of one each.
           const int64_t texts = s.distinct % 2 == 0 ? 1 : s.batch;
           CrossKeys keys{c.input({texts, s.keys, dim}, 1, 1.5F), c.input({texts, s.keys, dim}, 2)};
           if (s.distinct > 0) {
             keys.distinct = c.executor.to_device(lengths({s.distinct}), DType::kI64);
             for (Tensor* x : {&keys.k, &keys.v}) {
               const Tensor rows = x->slice(1, 0, s.distinct);
               *x = c.executor.empty(rows.dtype(), x->shape());
               c.executor.copy(x->slice(1, 0, s.distinct), rows);
               for (int64_t row = s.distinct; row < s.keys; ++row) {
                 c.executor.copy(x->slice(1, row, row + 1),
                                 rows.slice(1, s.distinct - 1, s.distinct));
               }
             }
           }
           return std::vector<Tensor>{c.executor.cross_attention(
               c.input({s.batch, s.queries, 48}, 3), c.linear({dim}, 48, true, 4),
               c.parameter({dim}, 5), 1e-6F, keys, s.heads, c.linear({24}, dim, true, 6))};
         },
         1e-5, true, 4});
  }
}

void add_attention_cases(std::vector<OpCase>& cases) {
  struct Size {
    int64_t batch, queries, keys, heads, head_dim;
  };
  const auto sizes = {Size{1, 1, 1, 1, 8},      Size{2, 3, 113, 2, 16},   Size{1, 203, 799, 1, 64},
                      Size{2, 33, 129, 3, 20},  Size{1, 64, 128, 2, 128}, Size{1, 40, 50, 1, 384},
                      Size{1, 180, 1260, 3, 64}};
  for (const Size& s : sizes) {
    cases.push_back(
        {fmt::format("attention_{}x{}x{}_{}x{}", s.batch, s.queries, s.keys, s.heads, s.head_dim),
         [s](const OpContext& c) {
           const int64_t dim = s.heads * s.head_dim;
           return std::vector<Tensor>{c.executor.attention(
               c.input({s.batch, s.queries, dim}, 1, 2.0F), c.input({s.batch, s.keys, dim}, 2),
               c.input({s.batch, s.keys, dim}, 3), s.heads)};
         },
         5e-6, true, 1,
         4.0 * static_cast<double>(s.batch * s.queries * s.keys * s.heads * s.head_dim)});
  }
  cases.push_back({"attention_bias_lengths",
                   [](const OpContext& c) {
                     AttentionOptions options;
                     options.scale = 1.0F;
                     options.key_lengths = lengths({11, 40});
                     options.relative_bias = c.parameter({3, 79}, 4);
                     return std::vector<Tensor>{c.executor.attention(
                         c.input({2, 40, 48}, 1, 0.3F), c.input({2, 40, 48}, 2),
                         c.input({2, 40, 48}, 3), 3, options)};
                   },
                   5e-6});
  cases.push_back(
      {"attention_strided_shared_keys",
       [](const OpContext& c) {
         // q, k and v side by side in one tensor, and one set of keys for a batch of 2.
         const Tensor qkv = c.input({2, 21, 96}, 1);
         const Tensor kv = c.input({1, 30, 64}, 2);
         return std::vector<Tensor>{
             c.executor.attention(qkv.slice(2, 0, 32), qkv.slice(2, 32, 64), qkv.slice(2, 64, 96),
                                  2),
             c.executor.attention(qkv.slice(2, 0, 32), kv.slice(2, 0, 32), kv.slice(2, 32, 64), 2)};
       },
       5e-6});
  add_cross_attention_cases(cases);
  for (const int64_t chunk : {1, 5, 20}) {
    cases.push_back({fmt::format("attention_in_chunks_of_{}", chunk),
                     [chunk](const OpContext& c) {
                       // q, k and v side by side, as a training pass has them.
                       const Tensor qkv = c.input({2, 40, 96}, 1);
                       AttentionOptions options;
                       options.chunk_mask = ChunkMask::kChunkCausal;
                       options.chunk_tokens = chunk;
                       AttentionOptions forced = options;
                       forced.chunk_mask = ChunkMask::kTeacherForcing;
                       forced.scale = 0.5F;
                       const Tensor q = qkv.slice(2, 0, 32);
                       const Tensor k = qkv.slice(2, 32, 64);
                       const Tensor v = qkv.slice(2, 64, 96);
                       return std::vector<Tensor>{c.executor.attention(q, k, v, 2, options),
                                                  c.executor.attention(q, k, v, 2, forced)};
                     },
                     5e-6});
  }
  cases.push_back({"qkv_to_cache_repeating_positions",
                   [](const OpContext& c) {
                     ChunkPlace place;
                     place.first_frame = 7;
                     place.ring_end = 4;
                     place.visible_frames = 4;
                     place.position_period = 2;
                     KvCache cache{c.input({2, 24, 32}, 5), c.input({2, 24, 32}, 6)};
                     c.executor.update_place(place);
                     const Tensor q = c.executor.qkv_to_cache(
                         c.input({2, 24, 96}, 1), c.parameter({32}, 2), c.parameter({32}, 3), 1e-6F,
                         {4, 2, 3}, 2, place, cache);
                     return std::vector<Tensor>{q, cache.k, cache.v};
                   },
                   8e-6});
  for (const int64_t head_dim : {16, 64, 128}) {
    cases.push_back({fmt::format("qkv_to_cache_{}", head_dim),
                     [head_dim](const OpContext& c) {
                       const TokenGrid grid{3, 2, 5};
                       const int64_t dim = 2 * head_dim;
                       ChunkPlace place;
                       place.first_frame = 1000;
                       place.first_slot = 4;
                       place.ring_begin = 2;
                       place.ring_end = 6;
                       place.visible_frames = 6;
                       KvCache cache{c.input({2, 60, dim}, 5), c.input({2, 60, dim}, 6)};
                       c.executor.update_place(place);
                       Tensor q = c.executor.qkv_to_cache(
                           c.input({2, 30, 3 * dim}, 1), c.parameter({dim}, 2),
                           c.parameter({dim}, 3), 1e-6F, grid, 2, place, cache);
                       Tensor out = c.executor.attention_cached(q, cache, 2, 10, place);
                       return std::vector<Tensor>{q, cache.k, cache.v, out};
                     },
                     8e-6});
  }
}

struct WindowCase {
  WindowGrid grid;
  GroupPlace place;
  int64_t heads, head_dim;
  BlockSelection selection;
};

std::vector<Tensor> run_windows(const OpContext& c, const WindowCase& w, bool own_mask) {
  const int64_t dim = w.heads * w.head_dim;
  const int64_t blocks = w.place.capacity_blocks * w.grid.spatial_blocks();
  WindowCache cache{c.input({1, blocks, w.grid.window.tokens(), dim}, 5),
                    c.input({1, blocks, w.grid.window.tokens(), dim}, 6),
                    c.input({1, blocks, dim}, 7, 0.3F)};
  GroupPlace place = w.place;
  c.executor.update_place(place);
  WindowedQueries q = c.executor.qkv_to_windows(c.input({1, w.grid.grid.tokens(), 3 * dim}, 1),
                                                c.parameter({dim}, 2), c.parameter({dim}, 3), 1e-6F,
                                                w.grid, w.heads, place, cache);
  const int64_t keys = (place.cached_blocks + w.grid.temporal_blocks()) * w.grid.spatial_blocks();
  Tensor bits = Tensor::zeros(DType::kU8, {1, w.heads, w.grid.blocks(), keys});
  for (int64_t i = 0; i < bits.numel(); ++i) {
    bits.mutable_data<uint8_t>()[i] = (i * 2654435761U >> 7) % 3 == 0 ? 1 : 0;
  }
  BlockMask given = c.executor.block_mask_from(bits);
  std::vector<Tensor> results = {
      q.q,
      q.pooled,
      cache.k,
      cache.v,
      cache.pooled_k,
      c.executor.block_sparse_attention(q, cache, given, w.grid, w.heads, place)};
  if (own_mask) {
    results.push_back(c.executor.select_blocks(q, cache, w.grid, w.heads, place, w.selection).mask);
  }
  return results;
}

void add_window_cases(std::vector<OpCase>& cases) {
  const auto add = [&](const std::string& name, const WindowCase& w) {
    cases.push_back({name + "_select",
                     [w](const OpContext& c) { return run_windows(c, w, /*own_mask=*/true); }, 8e-6,
                     /*has_bf16=*/false});
    cases.push_back({name + "_given_mask",
                     [w](const OpContext& c) { return run_windows(c, w, /*own_mask=*/false); },
                     8e-6, true, 2});
  };
  WindowCase first{{{4, 11, 12}, {2, 8, 8}}, {0, 0, 0, 5, {}}, 2, 32, {3, 9, 1}};
  add("windows_first_group", first);
  WindowCase later = first;
  later.place = {100, 4, 2, 5, {}};
  add("windows_later_group", later);
  WindowCase odd = later;
  odd.grid.grid = {3, 9, 17};
  odd.selection = {4, 40, 2};
  odd.head_dim = 16;
  add("windows_odd", odd);
  WindowCase large_window = odd;
  large_window.grid.window = {3, 8, 8};
  large_window.selection = {9, 5, 1};
  add("windows_192_tokens", large_window);
}

void add_conv_cases(std::vector<OpCase>& cases) {
  struct Size {
    int64_t frames, height, width, in, out;
  };
  for (const Size& s : {Size{3, 9, 13, 16, 24}, Size{1, 1, 1, 3, 5}, Size{2, 12, 20, 32, 3},
                        Size{2, 7, 50, 24, 40}, Size{3, 24, 40, 48, 48}}) {
    cases.push_back({fmt::format("conv2d_{}x{}x{}_{}_{}", s.frames, s.height, s.width, s.in, s.out),
                     [s](const OpContext& c) {
                       Conv2dOptions options;
                       options.activation = Activation::kRelu;
                       return std::vector<Tensor>{
                           c.executor.conv2d(c.input({1, s.frames, s.height, s.width, s.in}, 1),
                                             c.conv({s.out, s.in, 3, 3}, true, 2), options)};
                     },
                     5e-6, true, 1,
                     18.0 * static_cast<double>(s.frames * s.height * s.width * s.in * s.out)});
  }
  cases.push_back({"conv2d_memory_residual",
                   [](const OpContext& c) {
                     Conv2dOptions with_state;
                     with_state.with_memory = true;
                     with_state.memory = c.input({2, 1, 6, 7, 20}, 3);
                     Conv2dOptions from_zero;
                     from_zero.with_memory = true;
                     from_zero.residual = c.input({2, 3, 6, 7, 12}, 4);
                     from_zero.activation = Activation::kRelu;
                     const Conv conv = c.conv({12, 40, 3, 3}, true, 2);
                     const Tensor x = c.input({2, 3, 6, 7, 20}, 1);
                     return std::vector<Tensor>{c.executor.conv2d(x, conv, with_state),
                                                c.executor.conv2d(x, conv, from_zero)};
                   },
                   5e-6});
  cases.push_back({"conv2d_stride_upsample_padding",
                   [](const OpContext& c) {
                     const Tensor x = c.input({1, 2, 8, 10, 16}, 1);
                     Conv2dOptions stride;
                     stride.stride = 2;
                     Conv2dOptions lopsided = stride;
                     lopsided.padding = {0, 1, 0, 1};
                     Conv2dOptions upsample;
                     upsample.upsample = 2;
                     Conv2dOptions pointwise;
                     pointwise.padding = {0, 0, 0, 0};
                     const Conv conv = c.conv({16, 16, 3, 3}, false, 2);
                     return std::vector<Tensor>{
                         c.executor.conv2d(x, conv, stride), c.executor.conv2d(x, conv, lopsided),
                         c.executor.conv2d(x, conv, upsample),
                         c.executor.conv2d(x, c.conv({5, 16, 1, 1}, true, 3), pointwise)};
                   },
                   5e-6});
  cases.push_back({"causal_conv3d",
                   [](const OpContext& c) {
                     const Tensor x = c.input({1, 3, 5, 6, 16}, 1);
                     Conv3dOptions first;
                     first.zeros = 2;
                     Conv3dOptions later;
                     later.past = c.input({1, 2, 5, 6, 16}, 3);
                     Conv3dOptions mixed;
                     mixed.zeros = 1;
                     mixed.past = c.input({1, 1, 5, 6, 16}, 4);
                     mixed.padding = {0, 0, 0, 0};
                     Conv3dOptions strided = mixed;
                     strided.zeros = 0;
                     strided.stride_time = 2;
                     const Conv conv = c.conv({8, 16, 3, 3, 3}, true, 2);
                     const Conv time = c.conv({32, 16, 3, 1, 1}, true, 5);
                     return std::vector<Tensor>{c.executor.causal_conv3d(x, conv, first),
                                                c.executor.causal_conv3d(x, conv, later),
                                                c.executor.causal_conv3d(x, time, mixed),
                                                c.executor.causal_conv3d(x, time, strided)};
                   },
                   5e-6});
  cases.push_back({"causal_conv3d_batch",
                   [](const OpContext& c) {
                     Conv3dOptions options;
                     options.zeros = 1;
                     options.past = c.input({2, 1, 4, 4, 16}, 4);
                     return std::vector<Tensor>{
                         c.executor.causal_conv3d(c.input({2, 2, 4, 4, 16}, 1),
                                                  c.conv({16, 16, 3, 3, 3}, true, 2), options)};
                   },
                   5e-6});
  cases.push_back(
      {"pixel_shuffle", [](const OpContext& c) {
         return std::vector<Tensor>{
             c.executor.pixel_shuffle(c.input({1, 2, 3, 4, 36}, 1), 3),
             c.executor.pixel_shuffle(c.input({2, 1, 3, 5, 20}, 2), 2, Activation::kRelu)};
       }});
}

void add_element_cases(std::vector<OpCase>& cases) {
  cases.push_back({"patchify", [](const OpContext& c) {
                     return std::vector<Tensor>{
                         c.executor.patchify(c.input({2, 3, 4, 6, 16}, 1), {}, c.compute),
                         c.executor.patchify(c.input({1, 3, 4, 6, 16}, 1),
                                             c.input({1, 3, 4, 6, 5}, 2), c.compute)};
                   }});
  cases.push_back({"unpatchify", [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.unpatchify(
                         c.input({2, 3 * 4 * 5, 64}, 1), {3, 4, 5}, c.compute)};
                   }});
  cases.push_back({"sinusoid",
                   [](const OpContext& c) {
                     const std::vector<double> t = {0.0, 625.0, 833.3333129882812, 937.5, 1000.0};
                     return std::vector<Tensor>{c.executor.sinusoid(t, 256)};
                   },
                   2e-6, /*has_bf16=*/false});
  for (const int64_t size : {0, 1, 3, 113, 799, 100003}) {
    cases.push_back({fmt::format("elements_{}", size), [size](const OpContext& c) {
                       const Tensor x = c.input({size}, 1);
                       const Tensor y = c.input({size}, 2);
                       return std::vector<Tensor>{c.executor.axpby(0.25F, x, -1.5F, y),
                                                  c.executor.flow_to_x0(x, y, 0.8333),
                                                  c.executor.multiply(x, y),
                                                  c.executor.soft_clamp(x, 3.0F),
                                                  c.executor.activate(x, Activation::kSilu),
                                                  c.executor.activate(x, Activation::kGeluTanh)};
                     }});
  }
  cases.push_back({"add_broadcast", [](const OpContext& c) {
                     const Tensor a = c.input({2, 3, 4, 5}, 1);
                     return std::vector<Tensor>{c.executor.add(a, c.input({2, 3, 4, 5}, 2)),
                                                c.executor.add(a, c.input({5}, 2)),
                                                c.executor.add(a, c.input({1, 4, 5}, 2)),
                                                c.executor.add(a, c.input({2, 1, 4, 5}, 2)),
                                                c.executor.add(a, c.input({3, 1, 1}, 2))};
                   }});
  cases.push_back({"channel_affine", [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.channel_affine(
                         c.input({3, 5, 16}, 1), c.parameter({16}, 2), c.parameter({16}, 3))};
                   }});
  cases.push_back({"casts", [](const OpContext& c) {
                     const Tensor x = c.input({257}, 1);
                     return std::vector<Tensor>{c.executor.cast(x, DType::kF32),
                                                c.executor.cast(x, DType::kBF16),
                                                c.executor.cast(x, DType::kF16)};
                   }});
  cases.push_back({"normal",
                   [](const OpContext& c) {
                     return std::vector<Tensor>{c.executor.normal({3, 4}, {5, 1001}, DType::kF32)};
                   },
                   0.0, /*has_bf16=*/false});
  cases.push_back(
      {"embedding_mask_rows", [](const OpContext& c) {
         const Tensor ids = Tensor::of<int64_t>(std::vector<int64_t>{3, 0, 6, 6, 1, 2}, {2, 3});
         Tensor x = c.executor.embedding(ids, c.host({7, 33}, 1), c.compute);
         return std::vector<Tensor>{
             x, c.executor.mask_rows(c.executor.embedding(ids, c.host({7, 33}, 1), c.compute),
                                     lengths({1, 3}))};
       }});
  cases.push_back({"to_rgb8",
                   [](const OpContext& c) {
                     return std::vector<Tensor>{
                         c.executor.to_rgb8(c.input({2, 5, 7, 3}, 1), -1.0F, 1.0F),
                         c.executor.to_rgb8(c.input({2, 5, 7, 3}, 1), 0.0F, 1.0F)};
                   },
                   // A value that falls on a boundary may truncate either way: one step in 255.
                   1e-3});
}

}  // namespace

Tensor OpContext::input(const Shape& shape, uint64_t salt, float scale) const {
  const auto make = [&] {
    return executor.to_device(drawn(seed, salt, shape, scale, storage), compute);
  };
  return remembered(memo ? &memo->tensors : nullptr, fmt::format("i{}{}", salt, shape.to_string()),
                    make);
}

Tensor OpContext::parameter(const Shape& shape, uint64_t salt, float scale) const {
  const auto make = [&] {
    return executor.to_device(drawn(seed, salt, shape, scale, DType::kF32), DType::kF32);
  };
  return remembered(memo ? &memo->tensors : nullptr, fmt::format("p{}{}", salt, shape.to_string()),
                    make);
}

Tensor OpContext::host(const Shape& shape, uint64_t salt, float scale) const {
  return drawn(seed, salt, shape, scale, storage);
}

Linear OpContext::linear(std::vector<int64_t> outs, int64_t in, bool bias, uint64_t salt) const {
  const auto make = [&] {
    Linear layer;
    for (const int64_t out : outs) {
      layer.weights.push_back(host({out, in}, 1000 * salt + layer.weights.size(),
                                   1.0F / std::sqrt(static_cast<float>(in))));
      if (bias) layer.biases.push_back(host({out}, 2000 * salt + layer.biases.size()));
    }
    executor.prepare(layer, {.compute = compute});
    return layer;
  };
  return remembered(memo ? &memo->linears : nullptr,
                    fmt::format("{} {} {}", salt, in, fmt::join(outs, ",")), make);
}

Conv OpContext::conv(const Shape& weight, bool bias, uint64_t salt) const {
  const auto make = [&] {
    Conv conv;
    const float fan_in = static_cast<float>(weight.numel()) / static_cast<float>(weight[0]);
    conv.weight = host(weight, 3000 * salt, 1.0F / std::sqrt(fan_in));
    if (bias) conv.bias = host({weight[0]}, 4000 * salt);
    executor.prepare(conv, {.compute = compute});
    return conv;
  };
  return remembered(memo ? &memo->convs : nullptr, fmt::format("{}{}", salt, weight.to_string()),
                    make);
}

const std::vector<OpCase>& op_cases() {
  static const std::vector<OpCase> kCases = [] {
    std::vector<OpCase> cases;
    add_product_cases(cases);
    add_norm_cases(cases);
    add_attention_cases(cases);
    add_window_cases(cases);
    add_conv_cases(cases);
    add_element_cases(cases);
    return cases;
  }();
  return kCases;
}

}  // namespace ultraflash::testing
