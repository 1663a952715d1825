#include "reference_ops/reference_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "reference_ops/reference_math.h"

namespace ultraflash::testing {
namespace {

struct Prepared final : PreparedWeight {
  [[nodiscard]] size_t size_bytes() const override { return 0; }
};

}  // namespace

Tensor ReferenceExecutor::do_empty(DType dtype, const Shape& shape) {
  return Tensor::zeros(dtype, shape);
}
Tensor ReferenceExecutor::do_to_device(const Tensor& host, DType dtype) {
  return host.to(dtype).copy();
}
Tensor ReferenceExecutor::do_to_host(const Tensor& x) { return x.copy(); }
void ReferenceExecutor::do_fill_zero(const Tensor& x) {
  std::memset(x.mutable_raw(), 0, x.size_bytes());
}
void ReferenceExecutor::do_copy(const Tensor& destination, const Tensor& source) {
  destination.assign(source);
}
void ReferenceExecutor::do_prepare(Linear& linear, const PrepareOptions& /*options*/) {
  linear.prepared = std::make_shared<Prepared>();
}
void ReferenceExecutor::do_prepare(Conv& conv, const PrepareOptions& /*options*/) {
  conv.prepared = std::make_shared<Prepared>();
}

Tensor ReferenceExecutor::do_linear(const Tensor& x, const Linear& weight, Activation activation) {
  const int64_t in = weight.in_features;
  const int64_t out = weight.out_features;
  Tensor y = make(x.shape().with(-1, out));
  const int64_t rows = x.numel() / in;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t column = 0;
    for (size_t part = 0; part < weight.weights.size(); ++part) {
      const Tensor w = weight.weights[part].to(DType::kF32);
      const Tensor bias = weight.biases.empty() ? Tensor() : weight.biases[part].to(DType::kF32);
      for (int64_t o = 0; o < w.dim(0); ++o, ++column) {
        double sum = bias.defined() ? get(bias, {o}) : 0.0;
        for (int64_t i = 0; i < in; ++i) {
          sum += static_cast<double>(x.data<float>()[r * in + i]) * get(w, {o, i});
        }
        y.mutable_data<float>()[r * out + column] = static_cast<float>(activated(activation, sum));
      }
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) {
  Tensor joined = make({x.dim(0), x.dim(1) / frames, x.dim(2), x.dim(3), x.dim(4) * frames});
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < x.dim(1); ++t)
      for (int64_t h = 0; h < x.dim(2); ++h)
        for (int64_t w = 0; w < x.dim(3); ++w)
          for (int64_t c = 0; c < x.dim(4); ++c)
            at(joined, {b, t / frames, h, w, (t % frames) * x.dim(4) + c}) = at(x, {b, t, h, w, c});
  return do_linear(joined, weight, Activation::kNone);
}

Tensor ReferenceExecutor::do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) {
  const Tensor wide = do_linear(x, weight, Activation::kNone);
  const int64_t channels = weight.out_features / frames;
  Tensor y = make({x.dim(0), x.dim(1) * frames, x.dim(2), x.dim(3), channels});
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < y.dim(1); ++t)
      for (int64_t h = 0; h < x.dim(2); ++h)
        for (int64_t w = 0; w < x.dim(3); ++w)
          for (int64_t c = 0; c < channels; ++c)
            at(y, {b, t, h, w, c}) = at(wide, {b, t / frames, h, w, (t % frames) * channels + c});
  return y;
}

Tensor ReferenceExecutor::do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                        float eps) {
  const int64_t dim = x.dim(-1);
  Tensor y = make(x.shape());
  for (int64_t r = 0; r < x.numel() / dim; ++r) {
    const float* row = x.data<float>() + r * dim;
    double mean = 0;
    for (int64_t i = 0; i < dim; ++i) mean += static_cast<double>(row[i]);
    mean /= static_cast<double>(dim);
    double variance = 0;
    for (int64_t i = 0; i < dim; ++i) {
      variance += (static_cast<double>(row[i]) - mean) * (static_cast<double>(row[i]) - mean);
    }
    variance /= static_cast<double>(dim);
    const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(eps));
    for (int64_t i = 0; i < dim; ++i) {
      double value = (static_cast<double>(row[i]) - mean) * inverse;
      if (weight.defined()) value *= get(weight, {i});
      if (bias.defined()) value += get(bias, {i});
      y.mutable_data<float>()[r * dim + i] = static_cast<float>(value);
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_layer_norm_modulate(const Tensor& x, const Tensor& shift,
                                                 const Tensor& scale, float eps) {
  Tensor y = do_layer_norm(x, {}, {}, eps);
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t n = 0; n < x.dim(1); ++n)
      for (int64_t d = 0; d < x.dim(2); ++d)
        at(y, {b, n, d}) =
            static_cast<float>(get(y, {b, n, d}) * (1.0 + modulation(scale, b, n, x.dim(1), d)) +
                               modulation(shift, b, n, x.dim(1), d));
  return y;
}

Tensor ReferenceExecutor::do_rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  const int64_t dim = x.dim(-1);
  Tensor y = make(x.shape());
  for (int64_t r = 0; r < x.numel() / dim; ++r) {
    const std::vector<double> row =
        rms(x.data<float>() + r * dim, weight.data<float>(), dim, static_cast<double>(eps));
    for (int64_t i = 0; i < dim; ++i) {
      y.mutable_data<float>()[r * dim + i] = static_cast<float>(row[static_cast<size_t>(i)]);
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) {
  Tensor out = x.copy();
  if (!gate.defined()) {
    for (int64_t i = 0; i < x.numel(); ++i) out.mutable_data<float>()[i] += y.data<float>()[i];
    return out;
  }
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t n = 0; n < x.dim(1); ++n)
      for (int64_t d = 0; d < x.dim(2); ++d)
        at(out, {b, n, d}) = static_cast<float>(
            get(x, {b, n, d}) + get(y, {b, n, d}) * modulation(gate, b, n, x.dim(1), d));
  return out;
}

Tensor ReferenceExecutor::do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) {
  const int64_t dim = x.dim(-1);
  Tensor y = make(x.shape());
  for (int64_t r = 0; r < x.numel() / dim; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const auto v = static_cast<double>(x.data<float>()[r * dim + i]);
      sum += v * v;
    }
    const double factor = std::sqrt(static_cast<double>(dim)) / std::max(std::sqrt(sum), 1e-12);
    for (int64_t i = 0; i < dim; ++i) {
      double v = static_cast<double>(x.data<float>()[r * dim + i]) * factor * get(gamma, {i});
      if (silu) v = activated(Activation::kSilu, v);
      y.mutable_data<float>()[r * dim + i] = static_cast<float>(v);
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_conv2d(const Tensor& x, const Conv& conv,
                                    const Conv2dOptions& options) {
  const Tensor weight = conv.weight.to(DType::kF32);
  const Tensor bias = conv.bias.defined() ? conv.bias.to(DType::kF32) : Tensor();
  const int64_t up = options.upsample;
  const int64_t height = x.dim(2) * up;
  const int64_t width = x.dim(3) * up;
  const int64_t channels = x.dim(4);
  const Padding& pad = options.padding;
  const int64_t out_h = (height + pad.top + pad.bottom - weight.dim(2)) / options.stride + 1;
  const int64_t out_w = (width + pad.left + pad.right - weight.dim(3)) / options.stride + 1;
  Tensor y = make({x.dim(0), x.dim(1), out_h, out_w, weight.dim(0)});
  const auto input = [&](int64_t b, int64_t t, int64_t h, int64_t w, int64_t c) -> double {
    if (h < 0 || w < 0 || h >= height || w >= width) return 0.0;
    if (c < channels) return get(x, {b, t, h / up, w / up, c});
    if (t > 0) return get(x, {b, t - 1, h / up, w / up, c - channels});
    return options.memory.defined() ? get(options.memory, {b, 0, h / up, w / up, c - channels})
                                    : 0.0;
  };
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < x.dim(1); ++t)
      for (int64_t h = 0; h < out_h; ++h)
        for (int64_t w = 0; w < out_w; ++w)
          for (int64_t o = 0; o < weight.dim(0); ++o) {
            double sum = bias.defined() ? get(bias, {o}) : 0.0;
            for (int64_t c = 0; c < weight.dim(1); ++c)
              for (int64_t kh = 0; kh < weight.dim(2); ++kh)
                for (int64_t kw = 0; kw < weight.dim(3); ++kw)
                  sum +=
                      get(weight, {o, c, kh, kw}) * input(b, t, h * options.stride + kh - pad.top,
                                                          w * options.stride + kw - pad.left, c);
            if (options.residual.defined()) sum += get(options.residual, {b, t, h, w, o});
            at(y, {b, t, h, w, o}) = static_cast<float>(activated(options.activation, sum));
          }
  return y;
}

Tensor ReferenceExecutor::do_causal_conv3d(const Tensor& x, const Conv& conv,
                                           const Conv3dOptions& options) {
  const Tensor weight = conv.weight.to(DType::kF32);
  const Tensor bias = conv.bias.defined() ? conv.bias.to(DType::kF32) : Tensor();
  const int64_t past = options.past.defined() ? options.past.dim(1) : 0;
  const int64_t frames = options.zeros + past + x.dim(1);
  const Padding& pad = options.padding;
  const int64_t out_t = (frames - weight.dim(2)) / options.stride_time + 1;
  const int64_t out_h = x.dim(2) + pad.top + pad.bottom - weight.dim(3) + 1;
  const int64_t out_w = x.dim(3) + pad.left + pad.right - weight.dim(4) + 1;
  Tensor y = make({x.dim(0), out_t, out_h, out_w, weight.dim(0)});
  const auto input = [&](int64_t b, int64_t t, int64_t h, int64_t w, int64_t c) -> double {
    t -= options.zeros;
    if (t < 0 || h < 0 || w < 0 || h >= x.dim(2) || w >= x.dim(3)) return 0.0;
    return t < past ? get(options.past, {b, t, h, w, c}) : get(x, {b, t - past, h, w, c});
  };
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < out_t; ++t)
      for (int64_t h = 0; h < out_h; ++h)
        for (int64_t w = 0; w < out_w; ++w)
          for (int64_t o = 0; o < weight.dim(0); ++o) {
            double sum = bias.defined() ? get(bias, {o}) : 0.0;
            for (int64_t c = 0; c < weight.dim(1); ++c)
              for (int64_t kt = 0; kt < weight.dim(2); ++kt)
                for (int64_t kh = 0; kh < weight.dim(3); ++kh)
                  for (int64_t kw = 0; kw < weight.dim(4); ++kw)
                    sum += get(weight, {o, c, kt, kh, kw}) * input(b, t * options.stride_time + kt,
                                                                   h + kh - pad.top,
                                                                   w + kw - pad.left, c);
            at(y, {b, t, h, w, o}) = static_cast<float>(sum);
          }
  return y;
}

Tensor ReferenceExecutor::do_pixel_shuffle(const Tensor& x, int64_t r, Activation activation) {
  const int64_t channels = x.dim(4) / (r * r);
  Tensor y = make({x.dim(0), x.dim(1), x.dim(2) * r, x.dim(3) * r, channels});
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < x.dim(1); ++t)
      for (int64_t h = 0; h < y.dim(2); ++h)
        for (int64_t w = 0; w < y.dim(3); ++w)
          for (int64_t c = 0; c < channels; ++c)
            at(y, {b, t, h, w, c}) = static_cast<float>(
                activated(activation, get(x, {b, t, h / r, w / r, (c * r + h % r) * r + w % r})));
  return y;
}

Tensor ReferenceExecutor::do_patchify(const Tensor& a, const Tensor& b, DType dtype) {
  const int64_t ca = a.dim(4);
  const int64_t cb = b.defined() ? b.dim(4) : 0;
  const int64_t rows = a.dim(2) / 2;
  const int64_t columns = a.dim(3) / 2;
  Tensor tokens = make({a.dim(0), a.dim(1) * rows * columns, (ca + cb) * 4});
  const Tensor fa = a.to(DType::kF32);
  const Tensor fb = b.defined() ? b.to(DType::kF32) : b;
  for (int64_t s = 0; s < a.dim(0); ++s)
    for (int64_t f = 0; f < a.dim(1); ++f)
      for (int64_t h = 0; h < a.dim(2); ++h)
        for (int64_t w = 0; w < a.dim(3); ++w)
          for (int64_t c = 0; c < ca + cb; ++c)
            at(tokens, {s, (f * rows + h / 2) * columns + w / 2, c * 4 + h % 2 * 2 + w % 2}) =
                c < ca ? at(fa, {s, f, h, w, c}) : at(fb, {s, f, h, w, c - ca});
  return tokens.to(dtype);
}

Tensor ReferenceExecutor::do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) {
  const int64_t channels = tokens.dim(2) / 4;
  const Tensor in = tokens.to(DType::kF32);
  Tensor y = make({tokens.dim(0), grid.frames, grid.height * 2, grid.width * 2, channels});
  for (int64_t s = 0; s < y.dim(0); ++s)
    for (int64_t f = 0; f < grid.frames; ++f)
      for (int64_t h = 0; h < y.dim(2); ++h)
        for (int64_t w = 0; w < y.dim(3); ++w)
          for (int64_t c = 0; c < channels; ++c)
            at(y, {s, f, h, w, c}) = at(in, {s, (f * grid.height + h / 2) * grid.width + w / 2,
                                             (h % 2 * 2 + w % 2) * channels + c});
  return y.to(dtype);
}

Tensor ReferenceExecutor::do_sinusoid(std::span<const double> timesteps, int64_t dim) {
  Tensor y = make({static_cast<int64_t>(timesteps.size()), dim});
  for (size_t n = 0; n < timesteps.size(); ++n) {
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double angle =
          timesteps[n] / std::pow(10000.0, static_cast<double>(i) / static_cast<double>(dim / 2));
      at(y, {static_cast<int64_t>(n), i}) = static_cast<float>(std::cos(angle));
      at(y, {static_cast<int64_t>(n), dim / 2 + i}) = static_cast<float>(std::sin(angle));
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_axpby(float a, const Tensor& x, float b, const Tensor& y) {
  Tensor out = make(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.mutable_data<float>()[i] =
        static_cast<float>(static_cast<double>(a) * static_cast<double>(x.data<float>()[i]) +
                           static_cast<double>(b) * static_cast<double>(y.data<float>()[i]));
  }
  return out;
}

Tensor ReferenceExecutor::do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) {
  Tensor out = make(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.mutable_data<float>()[i] = static_cast<float>(
        static_cast<double>(x.data<float>()[i]) - sigma * static_cast<double>(v.data<float>()[i]));
  }
  return out;
}

Tensor ReferenceExecutor::do_normal(RandomStream stream, const Shape& shape, DType dtype) {
  Tensor out = make(shape);
  fill_normal(stream, 0, {out.mutable_data<float>(), static_cast<size_t>(out.numel())});
  return out.to(dtype);
}

Tensor ReferenceExecutor::do_cast(const Tensor& x, DType dtype) { return x.to(dtype); }

Tensor ReferenceExecutor::do_activate(const Tensor& x, Activation activation) {
  return map(x, [&](double v) { return activated(activation, v); });
}

Tensor ReferenceExecutor::do_add(const Tensor& a, const Tensor& b) {
  Tensor out = make(a.shape());
  for (int64_t i = 0; i < a.numel(); ++i) {
    int64_t rest = i;
    int64_t offset = 0;
    int64_t stride = 1;
    for (int axis = 1; axis <= a.rank(); ++axis) {
      const int64_t index = rest % a.dim(-axis);
      rest /= a.dim(-axis);
      if (axis > b.rank()) continue;
      if (b.dim(-axis) != 1) offset += index * stride;
      stride *= b.dim(-axis);
    }
    out.mutable_data<float>()[i] = a.data<float>()[i] + b.data<float>()[offset];
  }
  return out;
}

Tensor ReferenceExecutor::do_multiply(const Tensor& a, const Tensor& b) {
  Tensor out = make(a.shape());
  for (int64_t i = 0; i < a.numel(); ++i) {
    out.mutable_data<float>()[i] = a.data<float>()[i] * b.data<float>()[i];
  }
  return out;
}

Tensor ReferenceExecutor::do_soft_clamp(const Tensor& x, float limit) {
  return map(x, [&](double v) {
    return static_cast<double>(limit) * std::tanh(v / static_cast<double>(limit));
  });
}

Tensor ReferenceExecutor::do_channel_affine(const Tensor& x, const Tensor& scale,
                                            const Tensor& shift) {
  Tensor out = make(x.shape());
  const int64_t channels = x.dim(-1);
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.mutable_data<float>()[i] =
        static_cast<float>(static_cast<double>(x.data<float>()[i]) * get(scale, {i % channels}) +
                           get(shift, {i % channels}));
  }
  return out;
}

Tensor ReferenceExecutor::do_embedding(const Tensor& ids, const Tensor& table, DType dtype) {
  const Tensor rows = table.to(DType::kF32);
  Tensor out = make({ids.dim(0), ids.dim(1), table.dim(1)});
  for (int64_t i = 0; i < ids.numel(); ++i) {
    for (int64_t d = 0; d < table.dim(1); ++d) {
      out.mutable_data<float>()[i * table.dim(1) + d] = at(rows, {ids.data<int64_t>()[i], d});
    }
  }
  return out.to(dtype);
}

Tensor ReferenceExecutor::do_mask_rows(Tensor x, const Tensor& lengths) {
  Tensor out = x.copy();
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t n = 0; n < x.dim(1); ++n)
      for (int64_t d = 0; d < x.dim(2); ++d)
        if (n >= lengths.data<int64_t>()[b]) at(out, {b, n, d}) = 0.0F;
  return out;
}

Tensor ReferenceExecutor::do_to_rgb8(const Tensor& x, float low, float high) {
  Tensor out = Tensor::zeros(DType::kU8, x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double unit = (static_cast<double>(x.data<float>()[i]) - static_cast<double>(low)) /
                        (static_cast<double>(high) - static_cast<double>(low));
    out.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(255.0 * std::clamp(unit, 0.0, 1.0));
  }
  return out;
}

}  // namespace ultraflash::testing
