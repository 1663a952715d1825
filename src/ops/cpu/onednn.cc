#include "ops/cpu/onednn.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"

namespace ultraflash::cpu {
namespace {

using dnnl::memory;

const dnnl::engine& cpu_engine() {
  static const dnnl::engine kEngine(dnnl::engine::kind::cpu, 0);
  return kEngine;
}

memory::data_type onednn_type(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// oneDNN throws its own type; callers of this file only know Error.
template <typename Function>
auto guarded(const char* what, const Function& function) {
  try {
    return function();
  } catch (const dnnl::error& error) {
    throw_error(
        error.status == dnnl_out_of_memory ? StatusCode::kOutOfMemory : StatusCode::kInternal,
        "oneDNN failed in {}: {}", what, error.what());
  }
}

bool is_reference(const char* implementation) {
  return std::string_view(implementation).find("ref") != std::string_view::npos;
}

dnnl::primitive_attr attributes(Activation activation, bool accumulate) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops ops;
  if (accumulate) ops.append_sum(1.0F);
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
      break;
    case Activation::kSilu:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_swish, 1.0F, 0.0F);
      break;
    case Activation::kGeluTanh:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_gelu_tanh, 0.0F, 0.0F);
      break;
    case Activation::kGeluErf:
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_gelu_erf, 0.0F, 0.0F);
      break;
  }
  attr.set_post_ops(ops);
  return attr;
}

void reorder(memory& from, memory& to) {
  dnnl::stream stream(cpu_engine());
  dnnl::reorder(from, to).execute(stream, from, to);
  stream.wait();
}

std::atomic<uint64_t> next_weight_id{1};

// One weight in every layout that was asked for; usually one.
class Weight final : public OneDnnWeight {
 public:
  struct Layout {
    memory::desc desc;
    Tensor bytes;
  };

  Weight(DType type, int64_t outputs, int64_t inputs) : compute(type), out(outputs), in(inputs) {}

  [[nodiscard]] size_t size_bytes() const override {
    const std::lock_guard lock(mutex_);
    size_t total = 0;
    for (const Layout& layout : layouts_) total += layout.bytes.size_bytes();
    return total;
  }

  // The weight in layout `desc`, made from `plain` (or from a layout there already is).
  void* in_layout(const memory::desc& desc, const memory* plain) {
    const std::lock_guard lock(mutex_);
    for (const Layout& layout : layouts_) {
      if (layout.desc == desc) return layout.bytes.mutable_raw();
    }
    Layout layout{desc, Tensor::allocate(DType::kU8, {static_cast<int64_t>(desc.get_size())})};
    memory to(desc, cpu_engine(), layout.bytes.mutable_raw());
    if (plain != nullptr) {
      memory from = *plain;
      reorder(from, to);
    } else {
      UF_CHECK(!layouts_.empty(), "a weight without any layout");
      memory from(layouts_[0].desc, cpu_engine(), layouts_[0].bytes.mutable_raw());
      reorder(from, to);
    }
    layouts_.push_back(std::move(layout));
    return layouts_.back().bytes.mutable_raw();
  }

  std::optional<memory::desc> first_layout() const {
    const std::lock_guard lock(mutex_);
    return layouts_.empty() ? std::nullopt : std::optional(layouts_[0].desc);
  }

  const uint64_t id = next_weight_id.fetch_add(1);
  const DType compute;
  const int64_t out;
  const int64_t in;
  Tensor source;  // convolutions only: as bound, any dtype

 private:
  mutable std::mutex mutex_;
  std::vector<Layout> layouts_;
};

using Key = std::array<int64_t, 18>;
struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0x9e3779b97f4a7c15ULL;
    for (const int64_t word : key) {
      hash = (hash ^ static_cast<uint64_t>(word)) * 0xff51afd7ed558ccdULL;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

// A primitive with its memory objects; only the data handles change between calls.
struct Call {
  dnnl::primitive primitive;
  memory x;
  memory weight;
  memory bias;
  memory y;
  memory scratch;
  Tensor scratch_bytes;
  std::unordered_map<int, memory> arguments;
  std::string_view implementation;
};

class OneDnnImpl final : public OneDnn {
 public:
  OneDnnImpl() : stream_(cpu_engine()) {}

  [[nodiscard]] bool fast(DType dtype) const override {
    if (dtype != DType::kF32 && dtype != DType::kBF16) return false;
    static const bool kFastF32 = probe(DType::kF32);
    static const bool kFastBf16 = probe(DType::kBF16);
    return dtype == DType::kF32 ? kFastF32 : kFastBf16;
  }

  std::shared_ptr<OneDnnWeight> pack_linear(const Tensor& weight) override;
  void linear(OneDnnWeight& weight, const OneDnnLinearCall& call) override;
  void plain_linear(const void* weight, int64_t out, int64_t in, DType dtype,
                    const OneDnnLinearCall& call) override;
  std::shared_ptr<OneDnnWeight> pack_conv(const Tensor& weight, DType compute) override;
  void conv(OneDnnWeight& weight, const OneDnnConvCall& call) override;

 private:
  static bool probe(DType dtype) {
    try {
      const dnnl::matmul::primitive_desc pd(
          dnnl::matmul::desc({{64, 64}, onednn_type(dtype), memory::format_tag::ab},
                             {{64, 64}, onednn_type(dtype), memory::format_tag::any},
                             {{64, 64}, onednn_type(dtype), memory::format_tag::ab}),
          cpu_engine());
      return !is_reference(pd.impl_info_str());
    } catch (const dnnl::error&) {
      return false;
    }
  }
  static dnnl::matmul::primitive_desc matmul(const OneDnnLinearCall& call, int64_t out, int64_t in,
                                             DType dtype, const memory::desc& weight);
  /// The call of this geometry; `build` fills a new one. Nothing is kept when it throws.
  template <typename Build>
  Call& find_or_build(const Key& key, const Build& build) {
    const auto [position, fresh] = calls_.try_emplace(key);
    if (fresh) {
      try {
        build(position->second);
      } catch (...) {
        calls_.erase(position);
        throw;
      }
    }
    return position->second;
  }
  void finish(Call& entry, const memory::desc& scratch);
  void run(Call& entry);
  void build_conv(Weight& weight, const OneDnnConvCall& call, Call& entry);

  dnnl::stream stream_;
  std::unordered_map<Key, Call, KeyHash> calls_;
};

dnnl::matmul::primitive_desc OneDnnImpl::matmul(const OneDnnLinearCall& call, int64_t out,
                                                int64_t in, DType dtype,
                                                const memory::desc& weight) {
  const memory::desc x({call.rows, in}, onednn_type(dtype), memory::format_tag::ab);
  const memory::desc y({call.rows, out}, onednn_type(dtype), memory::dims{call.y_stride, 1});
  const dnnl::primitive_attr attr = attributes(call.activation, /*accumulate=*/false);
  if (call.bias == nullptr) {
    return {dnnl::matmul::desc(x, weight, y), attr, cpu_engine()};
  }
  const memory::desc bias({1, out}, memory::data_type::f32, memory::format_tag::ab);
  return {dnnl::matmul::desc(x, weight, bias, y), attr, cpu_engine()};
}

void OneDnnImpl::finish(Call& entry, const memory::desc& scratch) {
  entry.scratch_bytes =
      Tensor::allocate(DType::kU8, {static_cast<int64_t>(std::max<size_t>(scratch.get_size(), 1))});
  entry.scratch = memory(scratch, cpu_engine(), entry.scratch_bytes.mutable_raw());
  entry.arguments = {{DNNL_ARG_SRC, entry.x},
                     {DNNL_ARG_WEIGHTS, entry.weight},
                     {DNNL_ARG_DST, entry.y},
                     {DNNL_ARG_SCRATCHPAD, entry.scratch}};
  if (entry.bias) entry.arguments.insert({DNNL_ARG_BIAS, entry.bias});
}

void OneDnnImpl::run(Call& entry) {
  entry.primitive.execute(stream_, entry.arguments);
  stream_.wait();
}

memory empty_memory(const memory::desc& desc) { return {desc, cpu_engine(), DNNL_MEMORY_NONE}; }

std::shared_ptr<OneDnnWeight> OneDnnImpl::pack_linear(const Tensor& tensor) {
  return guarded("pack_linear", [&] {
    auto weight = std::make_shared<Weight>(tensor.dtype(), tensor.dim(0), tensor.dim(1));
    // The layout for a few hundred rows; products with other row counts reuse it where they can.
    OneDnnLinearCall call;
    call.rows = 256;
    call.y_stride = weight->out;
    const memory::desc any({weight->in, weight->out}, onednn_type(weight->compute),
                           memory::format_tag::any);
    const auto pd = matmul(call, weight->out, weight->in, weight->compute, any);
    const memory::desc plain({weight->in, weight->out}, onednn_type(weight->compute),
                             memory::format_tag::ba);
    const memory source(plain, cpu_engine(),
                        const_cast<std::byte*>(tensor.raw()));  // oneDNN only reads it
    weight->in_layout(pd.weights_desc(), &source);
    return std::static_pointer_cast<OneDnnWeight>(weight);
  });
}

void OneDnnImpl::linear(OneDnnWeight& any_weight, const OneDnnLinearCall& call) {
  auto& weight = static_cast<Weight&>(any_weight);
  guarded("linear", [&] {
    const Key key = {static_cast<int64_t>(weight.id), call.rows, call.y_stride,
                     static_cast<int64_t>(call.activation), call.bias != nullptr ? 1 : 0};
    Call& entry = find_or_build(key, [&](Call& fresh) {
      const memory::desc preferred = *weight.first_layout();
      const memory::desc any({weight.in, weight.out}, onednn_type(weight.compute),
                             memory::format_tag::any);
      std::optional<dnnl::matmul::primitive_desc> pd;
      try {
        pd = matmul(call, weight.out, weight.in, weight.compute, preferred);
      } catch (const dnnl::error&) {
        pd.reset();
      }
      if (!pd || is_reference(pd->impl_info_str())) {
        pd = matmul(call, weight.out, weight.in, weight.compute, any);
      }
      fresh.primitive = dnnl::matmul(*pd);
      fresh.x = empty_memory(pd->src_desc());
      fresh.y = empty_memory(pd->dst_desc());
      fresh.weight =
          memory(pd->weights_desc(), cpu_engine(), weight.in_layout(pd->weights_desc(), nullptr));
      if (call.bias != nullptr) fresh.bias = empty_memory(pd->bias_desc());
      finish(fresh, pd->scratchpad_desc());
    });
    entry.x.set_data_handle(const_cast<void*>(call.x));
    entry.y.set_data_handle(call.y);
    if (entry.bias) entry.bias.set_data_handle(const_cast<float*>(call.bias));
    run(entry);
  });
}

void OneDnnImpl::plain_linear(const void* weight, int64_t out, int64_t in, DType dtype,
                              const OneDnnLinearCall& call) {
  guarded("plain_linear", [&] {
    const Key key = {0,
                     call.rows,
                     call.y_stride,
                     static_cast<int64_t>(call.activation),
                     call.bias != nullptr ? 1 : 0,
                     out,
                     in,
                     static_cast<int64_t>(dtype)};
    Call& entry = find_or_build(key, [&](Call& fresh) {
      const memory::desc plain({in, out}, onednn_type(dtype), memory::format_tag::ba);
      const auto pd = matmul(call, out, in, dtype, plain);
      fresh.primitive = dnnl::matmul(pd);
      fresh.x = empty_memory(pd.src_desc());
      fresh.y = empty_memory(pd.dst_desc());
      fresh.weight = empty_memory(pd.weights_desc());
      if (call.bias != nullptr) fresh.bias = empty_memory(pd.bias_desc());
      finish(fresh, pd.scratchpad_desc());
    });
    entry.x.set_data_handle(const_cast<void*>(call.x));
    entry.y.set_data_handle(call.y);
    entry.weight.set_data_handle(const_cast<void*>(weight));
    if (entry.bias) entry.bias.set_data_handle(const_cast<float*>(call.bias));
    run(entry);
  });
}

std::shared_ptr<OneDnnWeight> OneDnnImpl::pack_conv(const Tensor& tensor, DType compute) {
  auto weight = std::make_shared<Weight>(compute, tensor.dim(0), tensor.dim(1));
  weight->source = tensor;
  return weight;
}

void OneDnnImpl::build_conv(Weight& weight, const OneDnnConvCall& call, Call& entry) {
  const memory::data_type type = onednn_type(weight.compute);
  const Tensor& w = weight.source;
  const bool with_time = w.rank() == 5;
  const auto tag = with_time ? memory::format_tag::ndhwc : memory::format_tag::nhwc;
  const int64_t kernel_h = w.dim(-2);
  const int64_t kernel_w = w.dim(-1);
  const Padding& pad = call.padding;
  const int64_t out_h = (call.height + pad.top + pad.bottom - kernel_h) / call.stride + 1;
  const int64_t out_w = (call.width + pad.left + pad.right - kernel_w) / call.stride + 1;
  memory::dims x_dims = {call.images, weight.in, call.height, call.width};
  memory::dims y_dims = {call.images, weight.out, out_h, out_w};
  memory::dims w_dims = {weight.out, weight.in, kernel_h, kernel_w};
  memory::dims strides = {call.stride, call.stride};
  memory::dims low = {pad.top, pad.left};
  memory::dims high = {pad.bottom, pad.right};
  if (with_time) {
    const int64_t kernel_t = w.dim(2);
    x_dims.insert(x_dims.begin() + 2, call.frames);
    y_dims.insert(y_dims.begin() + 2, (call.frames - kernel_t) / call.stride_time + 1);
    w_dims.insert(w_dims.begin() + 2, kernel_t);
    strides.insert(strides.begin(), call.stride_time);
    low.insert(low.begin(), 0);
    high.insert(high.begin(), 0);
  }
  const memory::desc x(x_dims, type, tag);
  const memory::desc y(y_dims, type, tag);
  const memory::desc weights(w_dims, type, memory::format_tag::any);
  const memory::desc bias({weight.out}, memory::data_type::f32, memory::format_tag::a);
  const dnnl::primitive_attr attr = attributes(call.activation, call.accumulate);
  const auto desc = call.bias != nullptr
                        ? dnnl::convolution_forward::desc(dnnl::prop_kind::forward_inference,
                                                          dnnl::algorithm::convolution_direct, x,
                                                          weights, bias, y, strides, low, high)
                        : dnnl::convolution_forward::desc(dnnl::prop_kind::forward_inference,
                                                          dnnl::algorithm::convolution_direct, x,
                                                          weights, y, strides, low, high);
  const dnnl::convolution_forward::primitive_desc pd(desc, attr, cpu_engine());
  entry.primitive = dnnl::convolution_forward(pd);
  entry.implementation = pd.impl_info_str();
  entry.x = empty_memory(pd.src_desc());
  entry.y = empty_memory(pd.dst_desc());
  if (call.bias != nullptr) entry.bias = empty_memory(pd.bias_desc());

  const Tensor plain = weight.source.to(weight.compute);
  const memory source(
      {w_dims, type, with_time ? memory::format_tag::oidhw : memory::format_tag::oihw},
      cpu_engine(), const_cast<std::byte*>(plain.raw()));
  entry.weight =
      memory(pd.weights_desc(), cpu_engine(), weight.in_layout(pd.weights_desc(), &source));
  finish(entry, pd.scratchpad_desc());
}

void OneDnnImpl::conv(OneDnnWeight& any_weight, const OneDnnConvCall& call) {
  auto& weight = static_cast<Weight&>(any_weight);
  guarded("conv", [&] {
    const Key key = {static_cast<int64_t>(weight.id),
                     call.images,
                     call.frames,
                     call.height,
                     call.width,
                     call.stride,
                     call.stride_time,
                     call.padding.top,
                     call.padding.bottom,
                     call.padding.left,
                     call.padding.right,
                     call.bias != nullptr ? 1 : 0,
                     call.accumulate ? 1 : 0,
                     static_cast<int64_t>(call.activation)};
    Call& entry = find_or_build(key, [&](Call& fresh) { build_conv(weight, call, fresh); });
    entry.x.set_data_handle(const_cast<void*>(call.x));
    entry.y.set_data_handle(call.y);
    if (entry.bias) entry.bias.set_data_handle(const_cast<float*>(call.bias));
    run(entry);
  });
}

}  // namespace

std::unique_ptr<OneDnn> OneDnn::create() { return std::make_unique<OneDnnImpl>(); }

std::string OneDnn::version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace ultraflash::cpu
