#include "ops/cpu/cpu_executor.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"

namespace ultraflash::cpu {
namespace {

constexpr int64_t kElementGrain = 1 << 15;  // elements that are worth a thread

int64_t row_grain(int64_t row_elements) {
  return std::max<int64_t>(1, kElementGrain / std::max<int64_t>(row_elements, 1));
}

const float* optional_data(const Tensor& x) { return x.defined() ? x.data<float>() : nullptr; }

std::byte* at(const Tensor& x, int64_t element) {
  return x.mutable_raw() + element * static_cast<int64_t>(dtype_size(x.dtype()));
}
const std::byte* read_at(const Tensor& x, int64_t element) {
  return x.raw() + element * static_cast<int64_t>(dtype_size(x.dtype()));
}

Arena::Options arena_options(const CpuOptions& options) {
  Arena::Options arena;
  arena.limit_bytes = options.memory_limit_bytes;
  arena.guard_bytes = options.guard_bytes;
  return arena;
}

void require_working_type(DType dtype, const char* op) {
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    throw_error(StatusCode::kUnsupported,
                "{}: the CPU computes in f32 and bf16, not in {}; pass --dtype f32", op,
                dtype_name(dtype));
  }
}

}  // namespace

std::unique_ptr<Executor> make_cpu_executor(const CpuOptions& options) {
  return std::make_unique<CpuExecutor>(options);
}

CpuExecutor::CpuExecutor(const CpuOptions& options)
    : kernels_(find_kernels(options.kernels.empty() ? nullptr : options.kernels.c_str())),
      threads_(options.threads > 0 ? options.threads : omp_get_max_threads()),
      onednn_(options.use_onednn ? OneDnn::create() : nullptr),
      arena_(host_memory(), arena_options(options)),
      scratch_(static_cast<size_t>(threads_)) {
  if (kernels_ == nullptr) {
    throw_error(StatusCode::kUnsupported,
                "kernels '{}' cannot run on this processor; choose generic, avx2 or avx512",
                options.kernels);
  }
}

std::string CpuExecutor::description() const {
  const std::string library = onednn_ ? "oneDNN " + OneDnn::version() : std::string("own products");
  return fmt::format("cpu ({} kernels, {}, {} thread{})", kernels_->name, library, threads_,
                     threads_ == 1 ? "" : "s");
}

float* CpuExecutor::thread_scratch(size_t thread, int64_t count) {
  Scratch& scratch = scratch_[thread];
  UF_CHECK(scratch.memory.defined() && scratch.memory.numel() >= count,
           "{} floats of prepared scratch", count);
  return scratch.memory.mutable_data<float>();
}

void CpuExecutor::prepare_thread_scratch(int64_t count) {
  for (Scratch& scratch : scratch_) {
    if (!scratch.memory.defined() || scratch.memory.numel() < count) {
      scratch.memory = Tensor::allocate(DType::kF32, {count});
    }
  }
}

// --- memory ------------------------------------------------------------------------------------

Tensor CpuExecutor::do_empty(DType dtype, const Shape& shape) {
  return arena_.allocate(dtype, shape);
}

Tensor CpuExecutor::do_to_device(const Tensor& host, DType dtype) {
  const Tensor dense = host.contiguous() ? host : host.copy();
  Tensor out = arena_.allocate(dtype, host.shape());
  convert_elements(dense.dtype(), dense.raw(), dtype, out.mutable_raw(), dense.numel());
  return out;
}

Tensor CpuExecutor::do_to_host(const Tensor& x) { return x.contiguous() ? x : x.copy(); }

void CpuExecutor::do_fill_zero(const Tensor& x) {
  UF_CHECK(x.contiguous(), "zeros: {} is strided", x.to_string());
  std::memset(x.mutable_raw(), 0, x.size_bytes());
}

void CpuExecutor::do_copy(const Tensor& destination, const Tensor& source) {
  destination.assign(source);
}

// --- norms and residuals -----------------------------------------------------------------------

ResidualNorm CpuExecutor::residual_norm(Tensor x, const Tensor* y, const Tensor& gate, bool norm,
                                        const Tensor& scale, const Tensor& shift,
                                        bool one_plus_scale, float eps) {
  require_working_type(x.dtype(), "norm");
  ResidualNorm result;
  ResidualNormArgs args;
  args.dtype = x.dtype();
  args.dim = x.dim(-1);
  const int64_t rows = args.dim == 0 ? 0 : x.numel() / args.dim;
  args.tokens = x.rank() == 3 ? x.dim(1) : std::max<int64_t>(rows, 1);
  args.eps = eps;
  args.x = x.raw();
  int64_t modulation_rows = 1;
  const auto bind = [&](const Tensor& m, const float*& data, int64_t& batch_stride,
                        int64_t& row_stride) {
    if (!m.defined()) return;
    data = m.data<float>();
    if (m.rank() != 3) return;  // one vector for all rows
    modulation_rows = m.dim(1);
    batch_stride = m.dim(0) == 1 ? 0 : m.stride(0);
    row_stride = m.stride(1);
  };
  bind(scale, args.scale, args.scale_batch_stride, args.scale_row_stride);
  bind(shift, args.shift, args.shift_batch_stride, args.shift_row_stride);
  bind(gate, args.gate, args.gate_batch_stride, args.gate_row_stride);
  args.tokens_per_row = std::max<int64_t>(args.tokens / modulation_rows, 1);
  args.one_plus_scale = one_plus_scale;
  if (y != nullptr) {
    result.x = x.exclusive() ? std::move(x) : arena_.allocate(args.dtype, x.shape());
    args.y = y->raw();
    args.x_out = result.x.mutable_raw();
  }
  if (norm) {
    result.normalized = arena_.allocate(args.dtype, y != nullptr ? result.x.shape() : x.shape());
    args.n_out = result.normalized.mutable_raw();
  }
  parallel_for(rows, row_grain(args.dim),
               [&](int64_t begin, int64_t end) { kernels_->residual_norm(args, begin, end); });
  return result;
}

Tensor CpuExecutor::do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                  float eps) {
  return residual_norm(x, nullptr, {}, /*norm=*/true, weight, bias, /*one_plus_scale=*/false, eps)
      .normalized;
}

Tensor CpuExecutor::do_layer_norm_modulate(const Tensor& x, const Tensor& shift,
                                           const Tensor& scale, float eps) {
  return residual_norm(x, nullptr, {}, /*norm=*/true, scale, shift, /*one_plus_scale=*/true, eps)
      .normalized;
}

Tensor CpuExecutor::do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) {
  return residual_norm(std::move(x), &y, gate, /*norm=*/false, {}, {}, /*one_plus_scale=*/false,
                       0.0F)
      .x;
}

ResidualNorm CpuExecutor::do_residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                               const Tensor& shift, const Tensor& scale,
                                               float eps) {
  return residual_norm(std::move(x), &y, gate, /*norm=*/true, scale, shift,
                       /*one_plus_scale=*/true, eps);
}

ResidualNorm CpuExecutor::do_residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                                 const Tensor& weight, const Tensor& bias,
                                                 float eps) {
  return residual_norm(std::move(x), &y, gate, /*norm=*/true, weight, bias,
                       /*one_plus_scale=*/false, eps);
}

Tensor CpuExecutor::do_rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  require_working_type(x.dtype(), "rms_norm");
  Tensor y = arena_.allocate(x.dtype(), x.shape());
  const int64_t dim = x.dim(-1);
  parallel_for(x.numel() / std::max<int64_t>(dim, 1), row_grain(dim),
               [&](int64_t begin, int64_t end) {
                 kernels_->rms_norm(x.dtype(), x.raw(), weight.data<float>(), eps, dim,
                                    y.mutable_raw(), begin, end);
               });
  return y;
}

Tensor CpuExecutor::do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) {
  require_working_type(x.dtype(), "channel_norm");
  Tensor y = arena_.allocate(x.dtype(), x.shape());
  const int64_t channels = x.dim(-1);
  parallel_for(x.numel() / std::max<int64_t>(channels, 1), row_grain(channels),
               [&](int64_t begin, int64_t end) {
                 kernels_->channel_norm(x.dtype(), x.raw(), gamma.data<float>(), silu, channels,
                                        y.mutable_raw(), begin, end);
               });
  return y;
}

// --- latents, time and noise ---------------------------------------------------------------------

Tensor CpuExecutor::do_patchify(const Tensor& a, const Tensor& b, DType dtype) {
  const int64_t batch = a.dim(0);
  const int64_t frames = a.dim(1);
  const int64_t rows = a.dim(2) / 2;
  const int64_t columns = a.dim(3) / 2;
  const int64_t channels_a = a.dim(4);
  const int64_t channels_b = b.defined() ? b.dim(4) : 0;
  const int64_t features = (channels_a + channels_b) * 4;
  const int64_t line = a.dim(3);
  // Gathered in f32; converted on the way out.
  const Tensor wide_a = a.dtype() == DType::kF32 ? a : do_cast(a, DType::kF32);
  const Tensor wide_b = !b.defined() || b.dtype() == DType::kF32 ? b : do_cast(b, DType::kF32);
  Tensor tokens = arena_.allocate(DType::kF32, {batch, frames * rows * columns, features});
  float* out = tokens.mutable_data<float>();
  const auto gather = [&](const Tensor& source, int64_t channels, int64_t first, int64_t begin,
                          int64_t end) {
    const float* in = source.data<float>();
    for (int64_t r = begin; r < end; ++r) {  // r counts patch rows over batch and frames
      for (int64_t x = 0; x < columns; ++x) {
        float* token = out + (r * columns + x) * features + first * 4;
        for (int64_t ph = 0; ph < 2; ++ph) {
          for (int64_t pw = 0; pw < 2; ++pw) {
            const float* pixel = in + ((2 * r + ph) * line + 2 * x + pw) * channels;
            for (int64_t c = 0; c < channels; ++c) token[c * 4 + ph * 2 + pw] = pixel[c];
          }
        }
      }
    }
  };
  parallel_for(batch * frames * rows, row_grain(columns * features),
               [&](int64_t begin, int64_t end) {
                 gather(wide_a, channels_a, 0, begin, end);
                 if (channels_b > 0) gather(wide_b, channels_b, channels_a, begin, end);
               });
  return dtype == DType::kF32 ? tokens : do_cast(tokens, dtype);
}

Tensor CpuExecutor::do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) {
  const Tensor wide = tokens.dtype() == DType::kF32 ? tokens : do_cast(tokens, DType::kF32);
  const int64_t batch = tokens.dim(0);
  const int64_t channels = tokens.dim(2) / 4;
  Tensor latent =
      arena_.allocate(DType::kF32, {batch, grid.frames, 2 * grid.height, 2 * grid.width, channels});
  const float* in = wide.data<float>();
  float* out = latent.mutable_data<float>();
  parallel_for(batch * grid.frames * grid.height, row_grain(grid.width * channels * 4),
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) {
                   for (int64_t x = 0; x < grid.width; ++x) {
                     const float* token = in + (r * grid.width + x) * channels * 4;
                     for (int64_t ph = 0; ph < 2; ++ph) {
                       // Both pixels of a patch row lie next to each other on both sides.
                       std::memcpy(out + ((2 * r + ph) * 2 * grid.width + 2 * x) * channels,
                                   token + ph * 2 * channels,
                                   static_cast<size_t>(2 * channels) * sizeof(float));
                     }
                   }
                 }
               });
  return dtype == DType::kF32 ? latent : do_cast(latent, dtype);
}

Tensor CpuExecutor::do_sinusoid(std::span<const double> timesteps, int64_t dim) {
  const auto count = static_cast<int64_t>(timesteps.size());
  Tensor out = arena_.allocate(DType::kF32, {count, dim});
  float* row = out.mutable_data<float>();
  const int64_t half = dim / 2;
  for (const double t : timesteps) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          t * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
    row += dim;
  }
  return out;
}

Tensor CpuExecutor::do_axpby(float a, const Tensor& x, float b, const Tensor& y) {
  require_working_type(x.dtype(), "axpby");
  Tensor out = arena_.allocate(x.dtype(), x.shape());
  parallel_for(x.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
    kernels_->axpby(x.dtype(), a, read_at(x, begin), b, read_at(y, begin), at(out, begin),
                    end - begin);
  });
  return out;
}

Tensor CpuExecutor::do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) {
  require_working_type(x.dtype(), "flow_to_x0");
  Tensor out = arena_.allocate(x.dtype(), x.shape());
  parallel_for(x.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
    kernels_->flow_to_x0(x.dtype(), read_at(x, begin), read_at(v, begin), sigma, at(out, begin),
                         end - begin);
  });
  return out;
}

Tensor CpuExecutor::do_normal(RandomStream stream, const Shape& shape, DType dtype) {
  Tensor out = arena_.allocate(DType::kF32, shape);
  float* values = out.mutable_data<float>();
  parallel_for(out.numel(), 1 << 12, [&](int64_t begin, int64_t end) {
    fill_normal(stream, begin, {values + begin, static_cast<size_t>(end - begin)});
  });
  return dtype == DType::kF32 ? out : do_cast(out, dtype);
}

Tensor CpuExecutor::do_cast(const Tensor& x, DType dtype) {
  Tensor out = arena_.allocate(dtype, x.shape());
  const auto fast = [](DType t) {
    return t == DType::kF32 || t == DType::kBF16 || t == DType::kF16;
  };
  if (!fast(x.dtype()) || !fast(dtype)) {
    convert_elements(x.dtype(), x.raw(), dtype, out.mutable_raw(), x.numel());
    return out;
  }
  parallel_for(x.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
    kernels_->convert(x.dtype(), read_at(x, begin), dtype, at(out, begin), end - begin);
  });
  return out;
}

Tensor CpuExecutor::do_activate(const Tensor& x, Activation activation) {
  require_working_type(x.dtype(), "activate");
  Tensor out = arena_.allocate(x.dtype(), x.shape());
  parallel_for(x.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
    kernels_->activate(x.dtype(), activation, read_at(x, begin), at(out, begin), end - begin);
  });
  return out;
}

Tensor CpuExecutor::do_add(const Tensor& a, const Tensor& b) {
  require_working_type(a.dtype(), "add");
  Tensor out = arena_.allocate(a.dtype(), a.shape());
  if (a.numel() == 0) return out;
  // The longest suffix of axes that b shares with a is added as one run; the axes before it are
  // walked with b's index standing still along its size-1 axes.
  int shared = 0;
  int64_t run = 1;
  while (shared < b.rank() && b.dim(-1 - shared) == a.dim(-1 - shared)) {
    run *= a.dim(-1 - shared);
    ++shared;
  }
  const int64_t runs = a.numel() / run;
  parallel_for(runs, row_grain(run), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t rest = r;
      int64_t offset = 0;
      int64_t stride = run;
      for (int i = shared; i < a.rank(); ++i) {
        const int64_t index = rest % a.dim(-1 - i);
        rest /= a.dim(-1 - i);
        if (i < b.rank() && b.dim(-1 - i) != 1) {
          offset += index * stride;
          stride *= b.dim(-1 - i);
        }
      }
      kernels_->add(a.dtype(), read_at(a, r * run), read_at(b, offset), at(out, r * run), run);
    }
  });
  return out;
}

Tensor CpuExecutor::do_multiply(const Tensor& a, const Tensor& b) {
  require_working_type(a.dtype(), "multiply");
  Tensor out = arena_.allocate(a.dtype(), a.shape());
  parallel_for(a.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
    kernels_->multiply(a.dtype(), read_at(a, begin), read_at(b, begin), at(out, begin),
                       end - begin);
  });
  return out;
}

Tensor CpuExecutor::do_soft_clamp(const Tensor& x, float limit) {
  require_working_type(x.dtype(), "soft_clamp");
  Tensor out = arena_.allocate(x.dtype(), x.shape());
  parallel_for(x.numel(), kElementGrain / 4, [&](int64_t begin, int64_t end) {
    kernels_->soft_clamp(x.dtype(), limit, read_at(x, begin), at(out, begin), end - begin);
  });
  return out;
}

Tensor CpuExecutor::do_channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  require_working_type(x.dtype(), "channel_affine");
  Tensor out = arena_.allocate(x.dtype(), x.shape());
  const int64_t channels = x.dim(-1);
  parallel_for(x.numel() / std::max<int64_t>(channels, 1), row_grain(channels),
               [&](int64_t begin, int64_t end) {
                 kernels_->channel_affine(x.dtype(), x.raw(), optional_data(scale),
                                          optional_data(shift), channels, out.mutable_raw(), begin,
                                          end);
               });
  return out;
}

// --- text and pictures ---------------------------------------------------------------------------

Tensor CpuExecutor::do_embedding(const Tensor& ids, const Tensor& table, DType dtype) {
  const int64_t dim = table.dim(1);
  Tensor out = arena_.allocate(dtype, {ids.dim(0), ids.dim(1), dim});
  const auto index = ids.span<int64_t>();
  // A table that is read more often than it has elements (UMT5's position bias) is converted first.
  const bool often = table.numel() <= ids.numel();
  const Tensor rows = often ? table.to(dtype) : table;
  const size_t row_bytes = static_cast<size_t>(dim) * dtype_size(dtype);
  parallel_for(ids.numel(), row_grain(dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::byte* row = read_at(rows, index[static_cast<size_t>(i)] * dim);
      if (often) {
        std::memcpy(at(out, i * dim), row, row_bytes);
      } else {
        convert_elements(table.dtype(), row, dtype, at(out, i * dim), dim);
      }
    }
  });
  return out;
}

Tensor CpuExecutor::do_mask_rows(Tensor x, const Tensor& lengths) {
  Tensor out = x.exclusive() ? std::move(x) : x.copy();
  const int64_t rows = out.dim(1);
  const int64_t dim = out.dim(2);
  const auto length = lengths.span<int64_t>();
  for (int64_t b = 0; b < out.dim(0); ++b) {
    const int64_t keep = std::clamp<int64_t>(length[static_cast<size_t>(b)], 0, rows);
    std::memset(at(out, (b * rows + keep) * dim), 0,
                static_cast<size_t>((rows - keep) * dim) * dtype_size(out.dtype()));
  }
  return out;
}

Tensor CpuExecutor::do_to_rgb8(const Tensor& x, float low, float high) {
  require_working_type(x.dtype(), "to_rgb8");
  Tensor out = arena_.allocate(DType::kU8, x.shape());
  parallel_for(x.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
    kernels_->to_rgb8(x.dtype(), read_at(x, begin), low, high,
                      reinterpret_cast<uint8_t*>(at(out, begin)), end - begin);
  });
  return out;
}

}  // namespace ultraflash::cpu
