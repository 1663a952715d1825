// Making the executor, its memory, and the operations on elements and rows.
#include "ops/cuda/cuda_executor.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "core/exceptions.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_impl.h"

namespace ultraflash::cuda {
namespace {

// What cuBLASLt and cuDNN work in; NVIDIA's advice for Hopper is 32 MiB.
constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
// A slab holds the small tensors of a pass; larger ones get slabs of their own.
constexpr size_t kSlabBytes = size_t{64} << 20;

int bytes_of(const Tensor& x) { return static_cast<int>(dtype_size(x.dtype())); }

// Types that kernels convert among one another.
bool converts(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 ||
         dtype == DType::kF8E4M3;
}

// Axes of two tensors of one shape, neighbours merged where both allow it, size-1 axes dropped.
kernels::Strided merge_axes(const Tensor& a, const Tensor& b) {
  kernels::Strided s;
  for (int i = 0; i < a.rank(); ++i) {
    const int64_t size = a.dim(i);
    if (size == 1) continue;
    const auto last = static_cast<size_t>(s.rank) - 1;
    if (s.rank > 0 && s.a[last] == a.stride(i) * size && s.b[last] == b.stride(i) * size) {
      s.size[last] *= size;
      s.a[last] = a.stride(i);
      s.b[last] = b.stride(i);
      continue;
    }
    const auto next = static_cast<size_t>(s.rank++);
    s.size[next] = size;
    s.a[next] = a.stride(i);
    s.b[next] = b.stride(i);
  }
  return s;
}

}  // namespace

CudaExecutor::CudaExecutor(const CudaOptions& options, std::unique_ptr<Blas> blas,
                           std::unique_ptr<Cudnn> cudnn, std::string name)
    : device_(options.device),
      plain_(options.plain_kernels),
      fp8_(options.fp8_products),
      fp8_fast_sums_(options.fp8_fast_sums),
      fp8_attention_(options.fp8_attention),
      name_(std::move(name)),
      graphs_(options.graphs),
      blas_(std::move(blas)),
      cudnn_(std::move(cudnn)) {
  int major = 0;
  UF_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_));
  UF_CUDA_TRY(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device_));
  hopper_ = major == 9 && !plain_;
  int least = 0;
  int greatest = 0;
  UF_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  UF_CUDA_TRY(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                           options.urgent ? greatest : least));
  UF_CUDA_TRY(cudaStreamCreateWithPriority(&copy_stream_, cudaStreamNonBlocking, greatest));
  events_ = std::make_shared<EventPool>();
  uploader_ = std::make_unique<Uploader>(stream_);
  Arena::Options arena;
  arena.limit_bytes = options.memory_limit_bytes;
  arena.guard_bytes = options.guard_bytes;
  arena.slab_bytes = kSlabBytes;
  arena_ = std::make_unique<Arena>(cuda::device_memory(device_), arena);
  pass_arena_ = std::make_unique<Arena>(cuda::device_memory(device_), arena);
  current_arena_ = arena_.get();
  host_arena_ = std::make_unique<Arena>(pinned_memory());
  workspace_ = arena_->allocate(DType::kU8, {kWorkspaceBytes});
  sparse_ticket_ = zeros(DType::kI32, {2});
}

CudaExecutor::~CudaExecutor() {
  // What is queued may still read memory that goes back now.
  static_cast<void>(cudaStreamSynchronize(stream_));
  static_cast<void>(cudaStreamSynchronize(copy_stream_));
  uploader_.reset();
  static_cast<void>(cudaStreamDestroy(copy_stream_));
  static_cast<void>(cudaStreamDestroy(stream_));
}

Result<std::unique_ptr<Executor>> make_cuda_executor(const CudaOptions& options) {
  return without_exceptions([&]() -> Result<std::unique_ptr<Executor>> {
    const std::vector<CudaDevice> devices = list_cuda_devices();
    const std::string wanted = fmt::format("cuda:{}", options.device);
    const auto found = std::find_if(devices.begin(), devices.end(),
                                    [&](const CudaDevice& d) { return d.name == wanted; });
    if (found == devices.end()) {
      if (devices[0].name == "cuda") {  // none at all: the entry says why
        return Status(StatusCode::kUnsupported, devices[0].description);
      }
      return make_status(StatusCode::kUnsupported, "there is no GPU {}; the CUDA driver names {}",
                         options.device, devices.size());
    }
    if (!found->usable) return Status(StatusCode::kUnsupported, found->description);
    UF_CUDA_TRY(cudaSetDevice(options.device));
    int major = 0;
    UF_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device));
    if (options.fp8_attention && (major != 9 || options.plain_kernels)) {
      return make_status(StatusCode::kUnsupported,
                         "attention in fp8 needs a GPU of compute capability 9.0; {} is {}", wanted,
                         found->description);
    }
    if (options.fp8_fast_sums && major != 9) {
      return make_status(StatusCode::kUnsupported,
                         "fast sums of products in fp8 need a GPU of compute capability 9.0; {} is "
                         "{}",
                         wanted, found->description);
    }
    std::string why;
    std::unique_ptr<Blas> blas = Blas::create(why);
    if (blas == nullptr) return Status(StatusCode::kUnsupported, why);
    std::unique_ptr<Cudnn> cudnn;
    if (!options.plain_kernels) cudnn = Cudnn::create(why);
    std::string name =
        fmt::format("cuda:{}, {}, cuBLASLt {}, {}", options.device, found->description,
                    blas->version(), cudnn != nullptr ? "cuDNN " + cudnn->version() : "no cuDNN");
    return std::unique_ptr<Executor>(std::make_unique<CudaExecutor>(
        options, std::move(blas), std::move(cudnn), std::move(name)));
  });
}

void CudaExecutor::use_device() const {
  // The current device belongs to a thread, and a session works on a thread of its own.
  thread_local int current = -1;
  if (current == device_) return;
  UF_CUDA_TRY(cudaSetDevice(device_));
  current = device_;
}

void CudaExecutor::synchronize() {
  use_device();
  UF_CUDA_TRY(cudaStreamSynchronize(stream_));
  UF_CUDA_TRY(cudaStreamSynchronize(copy_stream_));
}

void CudaExecutor::update_place(ChunkPlace& place) {
  if (!place.device.defined()) {
    place.device = do_empty(DType::kI64, {sizeof(kernels::PlaceNumbers) / sizeof(int64_t)});
  }
  kernels::PlaceNumbers numbers;
  numbers.first_frame = place.first_frame;
  numbers.first_slot = place.first_slot;
  numbers.ring_begin = place.ring_begin;
  numbers.ring_end = place.ring_end;
  numbers.visible_frames = place.visible_frames;
  numbers.position_period = place.position_period;
  kernels::store_place(numbers, place.device.mutable_raw(), stream_);
}

void CudaExecutor::update_place(GroupPlace& place) {
  if (!place.device.defined()) {
    place.device = do_empty(DType::kI64, {sizeof(kernels::PlaceNumbers) / sizeof(int64_t)});
  }
  kernels::PlaceNumbers numbers;
  numbers.first_frame = place.first_frame;
  numbers.first_slot = place.first_slot;
  numbers.cached_blocks = place.cached_blocks;
  numbers.capacity_blocks = place.capacity_blocks;
  group_rotary_filled_ = false;
  kernels::store_place(numbers, place.device.mutable_raw(), stream_);
}

// --- memory ------------------------------------------------------------------------------------

Tensor CudaExecutor::do_empty(DType dtype, const Shape& shape) {
  use_device();
  return current_arena_->allocate(dtype, shape);
}

Tensor CudaExecutor::upload(const Tensor& host, DType dtype) {
  const Tensor dense = host.contiguous() ? host : host.copy();
  if (dense.dtype() == dtype || !converts(dense.dtype()) || !converts(dtype)) {
    const Tensor converted = dense.to(dtype);
    Tensor out = do_empty(dtype, host.shape());
    uploader_->upload(out.mutable_raw(), converted.raw(), converted.size_bytes());
    return out;
  }
  // Converted on the GPU: faster than on the host, and the same rounding.
  const Tensor raw = do_empty(dense.dtype(), host.shape());
  uploader_->upload(raw.mutable_raw(), dense.raw(), dense.size_bytes());
  return do_cast(raw, dtype);
}

Tensor CudaExecutor::do_to_device(const Tensor& host, DType dtype) {
  if (host.device().type == DeviceType::kCuda) {
    Tensor out = do_empty(host.dtype(), host.shape());
    do_copy(out, host);
    return host.dtype() == dtype ? out : do_cast(out, dtype);
  }
  Tensor out = upload(host, dtype);
  synchronize();  // other executors' streams may read it
  return out;
}

Tensor CudaExecutor::do_to_host(const Tensor& x) {
  if (x.device().type == DeviceType::kCpu) return x.contiguous() ? x : x.copy();
  Tensor dense = x;
  if (!x.contiguous()) {
    dense = do_empty(x.dtype(), x.shape());
    do_copy(dense, x);
  }
  Tensor host = host_arena_->allocate(x.dtype(), x.shape());
  UF_CUDA_TRY(cudaMemcpyAsync(host.mutable_raw(), dense.raw(), dense.size_bytes(),
                              cudaMemcpyDeviceToHost, stream_));
  synchronize();
  return host;
}

void CudaExecutor::do_fill_zero(const Tensor& x) {
  UF_CHECK(x.contiguous(), "zeros: {} is strided", x.to_string());
  UF_CUDA_TRY(cudaMemsetAsync(x.mutable_raw(), 0, x.size_bytes(), stream_));
}

void CudaExecutor::do_copy(const Tensor& destination, const Tensor& source) {
  if (destination.numel() == 0) return;
  if (source.device().type == DeviceType::kCpu) {
    const Tensor dense = source.contiguous() ? source : source.copy();
    if (destination.contiguous()) {
      uploader_->upload(destination.mutable_raw(), dense.raw(), dense.size_bytes());
    } else {
      do_copy(destination, upload(dense, dense.dtype()));
    }
    return;
  }
  const kernels::Strided s = merge_axes(destination, source);
  const auto bytes = static_cast<size_t>(dtype_size(destination.dtype()));
  void* out = destination.mutable_raw();
  const void* in = source.raw();
  const bool dense_runs = s.rank == 0 || (s.a[static_cast<size_t>(s.rank) - 1] == 1 &&
                                          s.b[static_cast<size_t>(s.rank) - 1] == 1);
  if (dense_runs && s.rank <= 1) {
    UF_CUDA_TRY(
        cudaMemcpyAsync(out, in, destination.size_bytes(), cudaMemcpyDeviceToDevice, stream_));
  } else if (dense_runs && s.rank == 2 && s.a[0] >= s.size[1] && s.b[0] >= s.size[1]) {
    UF_CUDA_TRY(cudaMemcpy2DAsync(
        out, static_cast<size_t>(s.a[0]) * bytes, in, static_cast<size_t>(s.b[0]) * bytes,
        static_cast<size_t>(s.size[1]) * bytes, static_cast<size_t>(s.size[0]),
        cudaMemcpyDeviceToDevice, stream_));
  } else {
    kernels::copy_strided(s, static_cast<int>(bytes), out, in, stream_);
  }
}

// --- norms and residuals -----------------------------------------------------------------------

ResidualNorm CudaExecutor::residual_norm(Tensor x, const Tensor* y, const Tensor& gate, bool norm,
                                         const Tensor& scale, const Tensor& shift,
                                         bool one_plus_scale, float eps) {
  ResidualNorm result;
  kernels::ResidualNormArgs args;
  args.dtype = x.dtype();
  args.dim = x.dim(-1);
  args.rows = args.dim == 0 ? 0 : x.numel() / args.dim;
  args.tokens = x.rank() == 3 ? std::max<int64_t>(x.dim(1), 1) : std::max<int64_t>(args.rows, 1);
  args.eps = eps;
  args.one_plus_scale = one_plus_scale;
  args.x = x.raw();
  const Tensor kept = x;  // the kernel reads it even where the result lies elsewhere
  int64_t modulation_rows = 1;
  const auto bind = [&](const Tensor& m, kernels::RowVectors& v) {
    if (!m.defined()) return;
    v.data = reinterpret_cast<const float*>(m.raw());
    if (m.rank() != 3) return;  // one vector for all rows
    modulation_rows = m.dim(1);
    v.batch_stride = m.dim(0) == 1 ? 0 : m.stride(0);
    v.row_stride = m.stride(1);
  };
  bind(scale, args.scale);
  bind(shift, args.shift);
  bind(gate, args.gate);
  args.tokens_per_row = std::max<int64_t>(args.tokens / modulation_rows, 1);
  if (y != nullptr) {
    // `kept` is one handle, the argument another.
    const bool reuse = x.storage()->writable() && x.storage()->use_count() == 2;
    result.x = reuse ? std::move(x) : do_empty(args.dtype, x.shape());
    args.y = y->raw();
    args.x_out = result.x.mutable_raw();
  }
  if (norm) {
    const auto* weight =
        reader() != nullptr ? static_cast<const CudaLinear*>(reader()->prepared.get()) : nullptr;
    if (weight != nullptr && weight->weight8.defined() && kernels::norm_quantises(args)) {
      result.normalized = empty_fp8(kept.shape());
      args.n_scales = scales_of(result.normalized);
    } else {
      result.normalized = do_empty(args.dtype, kept.shape());
    }
    args.n_out = result.normalized.mutable_raw();
  }
  kernels::residual_norm(args, stream_);
  return result;
}

Tensor CudaExecutor::do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                   float eps) {
  return residual_norm(x, nullptr, {}, /*norm=*/true, weight, bias, /*one_plus_scale=*/false, eps)
      .normalized;
}

Tensor CudaExecutor::do_layer_norm_modulate(const Tensor& x, const Tensor& shift,
                                            const Tensor& scale, float eps) {
  return residual_norm(x, nullptr, {}, /*norm=*/true, scale, shift, /*one_plus_scale=*/true, eps)
      .normalized;
}

Tensor CudaExecutor::do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) {
  return residual_norm(std::move(x), &y, gate, /*norm=*/false, {}, {}, /*one_plus_scale=*/false,
                       0.0F)
      .x;
}

ResidualNorm CudaExecutor::do_residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                                const Tensor& shift, const Tensor& scale,
                                                float eps) {
  return residual_norm(std::move(x), &y, gate, /*norm=*/true, scale, shift,
                       /*one_plus_scale=*/true, eps);
}

ResidualNorm CudaExecutor::do_residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                                  const Tensor& weight, const Tensor& bias,
                                                  float eps) {
  return residual_norm(std::move(x), &y, gate, /*norm=*/true, weight, bias,
                       /*one_plus_scale=*/false, eps);
}

Tensor CudaExecutor::do_rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  Tensor y = do_empty(x.dtype(), x.shape());
  const int64_t dim = x.dim(-1);
  kernels::rms_norm(x.dtype(), x.raw(), reinterpret_cast<const float*>(weight.raw()), eps,
                    x.numel() / std::max<int64_t>(dim, 1), dim, y.mutable_raw(), stream_);
  return y;
}

Tensor CudaExecutor::do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) {
  Tensor y = do_empty(x.dtype(), x.shape());
  const int64_t channels = x.dim(-1);
  kernels::channel_norm(x.dtype(), x.raw(), reinterpret_cast<const float*>(gamma.raw()), silu,
                        x.numel() / std::max<int64_t>(channels, 1), channels, y.mutable_raw(),
                        stream_);
  return y;
}

// --- latents, time and noise ---------------------------------------------------------------------

Tensor CudaExecutor::do_patchify(const Tensor& a, const Tensor& b, DType dtype) {
  kernels::PatchifyArgs args;
  args.a = a.raw();
  args.b = b.defined() ? b.raw() : nullptr;
  args.from = a.dtype();
  args.to = dtype;
  args.frames = a.dim(0) * a.dim(1);
  args.rows = a.dim(2) / 2;
  args.columns = a.dim(3) / 2;
  args.channels_a = a.dim(4);
  args.channels_b = b.defined() ? b.dim(4) : 0;
  Tensor tokens = do_empty(dtype, {a.dim(0), a.dim(1) * args.rows * args.columns,
                                   4 * (args.channels_a + args.channels_b)});
  kernels::patchify(args, tokens.mutable_raw(), stream_);
  return tokens;
}

Tensor CudaExecutor::do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) {
  const int64_t channels = tokens.dim(2) / 4;
  Tensor latent =
      do_empty(dtype, {tokens.dim(0), grid.frames, 2 * grid.height, 2 * grid.width, channels});
  kernels::unpatchify(tokens.dtype(), tokens.raw(), tokens.dim(0) * grid.frames, grid.height,
                      grid.width, channels, dtype, latent.mutable_raw(), stream_);
  return latent;
}

Tensor CudaExecutor::do_sinusoid(std::span<const double> timesteps, int64_t dim) {
  const auto count = static_cast<int64_t>(timesteps.size());
  const Tensor host = Tensor::allocate(DType::kF32, {count, dim});
  float* row = host.mutable_data<float>();
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
  return upload(host, DType::kF32);
}

Tensor CudaExecutor::do_axpby(float a, const Tensor& x, float b, const Tensor& y) {
  Tensor out = do_empty(x.dtype(), x.shape());
  kernels::axpby(x.dtype(), a, x.raw(), b, y.raw(), out.mutable_raw(), x.numel(), stream_);
  return out;
}

Tensor CudaExecutor::do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) {
  Tensor out = do_empty(x.dtype(), x.shape());
  kernels::flow_to_x0(x.dtype(), x.raw(), v.raw(), sigma, out.mutable_raw(), x.numel(), stream_);
  return out;
}

Tensor CudaExecutor::do_normal(RandomStream stream, const Shape& shape, DType dtype) {
  Tensor out = do_empty(dtype, shape);
  kernels::normal(stream, dtype, out.mutable_raw(), out.numel(), stream_);
  return out;
}

Tensor CudaExecutor::do_cast(const Tensor& x, DType dtype) {
  if (!converts(x.dtype()) || !converts(dtype)) return upload(do_to_host(x).to(dtype), dtype);
  // Checkpoints' own tensors may lie in host memory.
  if (x.device().type == DeviceType::kCpu) return upload(x, dtype);
  Tensor out = do_empty(dtype, x.shape());
  kernels::convert(x.dtype(), x.raw(), dtype, out.mutable_raw(), x.numel(), stream_);
  return out;
}

Tensor CudaExecutor::do_activate(const Tensor& x, Activation activation) {
  Tensor out = do_empty(x.dtype(), x.shape());
  kernels::activate(x.dtype(), activation, x.raw(), out.mutable_raw(), x.numel(), stream_);
  return out;
}

Tensor CudaExecutor::do_add(const Tensor& a, const Tensor& b) {
  Tensor out = do_empty(a.dtype(), a.shape());
  kernels::Strided s;
  s.rank = a.rank();
  for (int i = 0; i < a.rank(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int in_b = i - (a.rank() - b.rank());
    s.size[at] = a.dim(i);
    s.b[at] = in_b < 0 || b.dim(in_b) == 1 ? 0 : b.stride(in_b);
  }
  kernels::add_strided(a.dtype(), s, a.raw(), b.raw(), out.mutable_raw(), stream_);
  return out;
}

Tensor CudaExecutor::do_multiply(const Tensor& a, const Tensor& b) {
  Tensor out = do_empty(a.dtype(), a.shape());
  kernels::multiply(a.dtype(), a.raw(), b.raw(), out.mutable_raw(), a.numel(), stream_);
  return out;
}

Tensor CudaExecutor::do_soft_clamp(const Tensor& x, float limit) {
  Tensor out = do_empty(x.dtype(), x.shape());
  kernels::soft_clamp(x.dtype(), limit, x.raw(), out.mutable_raw(), x.numel(), stream_);
  return out;
}

Tensor CudaExecutor::do_channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  Tensor out = do_empty(x.dtype(), x.shape());
  kernels::channel_affine(x.dtype(), x.raw(), reinterpret_cast<const float*>(scale.raw()),
                          reinterpret_cast<const float*>(shift.raw()), x.dim(-1), out.mutable_raw(),
                          x.numel(), stream_);
  return out;
}

// --- text and pictures ---------------------------------------------------------------------------

Tensor CudaExecutor::do_embedding(const Tensor& ids, const Tensor& table, DType dtype) {
  const int64_t dim = table.dim(1);
  const Shape shape{ids.dim(0), ids.dim(1), dim};
  if (table.device().type == DeviceType::kCpu) {
    // A table that stays in its file: only the rows that are asked for are read.
    const Tensor rows = Tensor::allocate(dtype, shape);
    const auto index = ids.span<int64_t>();
    const auto from = static_cast<int64_t>(dtype_size(table.dtype())) * dim;
    const auto to = static_cast<int64_t>(dtype_size(dtype)) * dim;
    for (size_t i = 0; i < index.size(); ++i) {
      convert_elements(table.dtype(), table.raw() + index[i] * from, dtype,
                       rows.mutable_raw() + static_cast<int64_t>(i) * to, dim);
    }
    return upload(rows, dtype);
  }
  const Tensor index = upload(ids, DType::kI64);
  Tensor out = do_empty(dtype, shape);
  kernels::gather_rows(table.dtype(), table.raw(), reinterpret_cast<const int64_t*>(index.raw()),
                       ids.numel(), dim, dtype, out.mutable_raw(), stream_);
  return out;
}

Tensor CudaExecutor::do_mask_rows(Tensor x, const Tensor& lengths) {
  Tensor out;
  if (x.exclusive()) {
    out = std::move(x);
  } else {
    out = do_empty(x.dtype(), x.shape());
    do_copy(out, x);
  }
  const int64_t rows = out.dim(1);
  const int64_t line = out.dim(2) * bytes_of(out);
  const auto length = lengths.span<int64_t>();
  for (int64_t b = 0; b < out.dim(0); ++b) {
    const int64_t keep = std::clamp<int64_t>(length[static_cast<size_t>(b)], 0, rows);
    UF_CUDA_TRY(cudaMemsetAsync(out.mutable_raw() + (b * rows + keep) * line, 0,
                                static_cast<size_t>((rows - keep) * line), stream_));
  }
  return out;
}

Tensor CudaExecutor::do_pixel_shuffle(const Tensor& x, int64_t factor, Activation activation) {
  const int64_t channels = x.dim(4) / (factor * factor);
  Tensor y =
      do_empty(x.dtype(), {x.dim(0), x.dim(1), x.dim(2) * factor, x.dim(3) * factor, channels});
  kernels::pixel_shuffle(x.dtype(), x.raw(), x.dim(0) * x.dim(1), x.dim(2), x.dim(3), channels,
                         factor, activation, y.mutable_raw(), stream_);
  return y;
}

Tensor CudaExecutor::do_to_rgb8(const Tensor& x, float low, float high) {
  Tensor out = do_empty(DType::kU8, x.shape());
  kernels::to_rgb8(x.dtype(), x.raw(), low, high, reinterpret_cast<uint8_t*>(out.mutable_raw()),
                   x.numel(), stream_);
  return out;
}

}  // namespace ultraflash::cuda
