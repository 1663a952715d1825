#include "ops/cuda/cudnn.h"

#include <cudnn_frontend.h>

#include <array>
#include <map>
#include <unordered_map>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cudnn_library.h"

namespace ultraflash::cuda {
namespace {

namespace fe = cudnn_frontend;

enum Uid : int64_t { kQ = 1, kK, kV, kO, kX, kW, kBias, kResidual, kY };

// A graph with its chosen plan; null when cuDNN has none.
struct Planned {
  std::shared_ptr<fe::graph::Graph> graph;
  int64_t workspace_bytes = -1;
};

// What decides a plan, as numbers in a fixed order.
using Key = std::array<int64_t, 20>;

class CudnnGraphs final : public Cudnn {
 public:
  CudnnGraphs() {
    if (cudnnCreate(&handle_) != CUDNN_STATUS_SUCCESS) {
      throw_error(StatusCode::kDevice, "cuDNN {} cannot work with this GPU", cudnnGetVersion());
    }
  }
  ~CudnnGraphs() override {
    plans_.clear();
    static_cast<void>(cudnnDestroy(handle_));
  }
  [[nodiscard]] std::string version() const override {
    const size_t v = cudnnGetVersion();
    return fmt::format("{}.{}.{}", v / 10000, v % 10000 / 100, v % 100);
  }

  int64_t plan_attention(const kernels::AttentionArgs& args) override {
    return attention_plan(args).workspace_bytes;
  }
  void attention(const kernels::AttentionArgs& args, void* workspace, cudaStream_t stream) override;
  int64_t plan_convolution(const kernels::ConvArgs& args, int64_t pad_bottom,
                           int64_t pad_right) override {
    return convolution_plan(args, pad_bottom, pad_right).workspace_bytes;
  }
  void convolution(const kernels::ConvArgs& args, const void* bias, int64_t pad_bottom,
                   int64_t pad_right, void* workspace, cudaStream_t stream) override;

 private:
  using Pointers = std::unordered_map<int64_t, void*>;
  Planned finish(std::shared_ptr<fe::graph::Graph> graph);
  const Planned& attention_plan(const kernels::AttentionArgs& args);
  const Planned& convolution_plan(const kernels::ConvArgs& args, int64_t pad_bottom,
                                  int64_t pad_right);
  void execute(const Planned& planned, Pointers pointers, void* workspace, cudaStream_t stream);

  cudnnHandle_t handle_ = nullptr;
  std::map<Key, Planned> plans_;
};

// Pointers go to cuDNN without const; it writes the outputs alone.
void* pointer(const void* p) { return const_cast<void*>(p); }

std::shared_ptr<fe::graph::Graph> new_graph() {
  auto graph = std::make_shared<fe::graph::Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  return graph;
}

fe::graph::Tensor_attributes tensor(const char* name, Uid uid, const std::vector<int64_t>& size,
                                    const std::vector<int64_t>& stride) {
  fe::graph::Tensor_attributes attributes;
  attributes.set_name(name).set_uid(uid).set_dim(size).set_stride(stride);
  return attributes;
}

Planned CudnnGraphs::finish(std::shared_ptr<fe::graph::Graph> graph) {
  Planned planned;
  const bool possible =
      graph->validate().is_good() && graph->build_operation_graph(handle_).is_good() &&
      graph->create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}).is_good() &&
      graph->check_support().is_good() &&
      graph->build_plans(fe::BuildPlanPolicy_t::HEURISTICS_CHOICE).is_good();
  if (!possible) return planned;
  int64_t bytes = 0;
  if (!graph->get_workspace_size(bytes).is_good()) return planned;
  planned.graph = std::move(graph);
  planned.workspace_bytes = bytes;
  return planned;
}

void CudnnGraphs::execute(const Planned& planned, Pointers pointers, void* workspace,
                          cudaStream_t stream) {
  UF_CHECK(planned.graph != nullptr, "a cuDNN call without a plan");
  if (cudnnSetStream(handle_, stream) != CUDNN_STATUS_SUCCESS) {
    throw_error(StatusCode::kDevice, "cuDNN does not take the stream");
  }
  fe::error_t error = planned.graph->execute(handle_, pointers, workspace);
  if (!error.is_good()) throw_error(StatusCode::kDevice, "cuDNN: {}", error.get_message());
}

const Planned& CudnnGraphs::attention_plan(const kernels::AttentionArgs& a) {
  const Key key{0,         a.batch,   a.heads,     a.head_dim, a.queries,
                a.keys,    a.q_batch, a.q_row,     a.k_batch,  a.k_row,
                a.v_batch, a.v_row,   a.out_batch, a.out_row,  std::bit_cast<int32_t>(a.scale)};
  const auto [position, fresh] = plans_.try_emplace(key);
  if (!fresh) return position->second;
  const auto graph = new_graph();
  const int64_t heads = a.heads;
  const int64_t size = a.head_dim;
  const auto q = graph->tensor(
      tensor("q", kQ, {a.batch, heads, a.queries, size}, {a.q_batch, size, a.q_row, 1}));
  const auto k =
      graph->tensor(tensor("k", kK, {a.batch, heads, a.keys, size}, {a.k_batch, size, a.k_row, 1}));
  const auto v =
      graph->tensor(tensor("v", kV, {a.batch, heads, a.keys, size}, {a.v_batch, size, a.v_row, 1}));
  auto options = fe::graph::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(false)
                     .set_attn_scale(a.scale);
  const auto [out, stats] = graph->sdpa(q, k, v, options);
  static_cast<void>(stats);
  out->set_output(true)
      .set_uid(kO)
      .set_dim({a.batch, heads, a.queries, size})
      .set_stride({a.out_batch, size, a.out_row, 1});
  position->second = finish(graph);
  return position->second;
}

void CudnnGraphs::attention(const kernels::AttentionArgs& a, void* workspace, cudaStream_t stream) {
  execute(attention_plan(a),
          {{kQ, pointer(a.q)}, {kK, pointer(a.k)}, {kV, pointer(a.v)}, {kO, a.out}}, workspace,
          stream);
}

const Planned& CudnnGraphs::convolution_plan(const kernels::ConvArgs& a, int64_t pad_bottom,
                                             int64_t pad_right) {
  const Key key{1,
                a.images,
                a.height,
                a.width,
                a.channels,
                a.out_h,
                a.out_w,
                a.out_channels,
                a.kernel_h,
                a.kernel_w,
                a.stride,
                a.pad_top,
                a.pad_left,
                pad_bottom,
                pad_right,
                a.bias != nullptr,
                a.residual != nullptr,
                static_cast<int64_t>(a.activation)};
  const auto [position, fresh] = plans_.try_emplace(key);
  if (!fresh) return position->second;
  if (a.activation != Activation::kNone && a.activation != Activation::kRelu) {
    return position->second;
  }
  const auto graph = new_graph();
  // Sizes are named (n, c, h, w) whatever the strides: these are channels last.
  const auto channels_last = [](int64_t n, int64_t h, int64_t w, int64_t c) {
    return std::pair{std::vector<int64_t>{n, c, h, w},
                     std::vector<int64_t>{h * w * c, 1, w * c, c}};
  };
  const auto [x_size, x_stride] = channels_last(a.images, a.height, a.width, a.channels);
  const auto [w_size, w_stride] = channels_last(a.out_channels, a.kernel_h, a.kernel_w, a.channels);
  const auto [y_size, y_stride] = channels_last(a.images, a.out_h, a.out_w, a.out_channels);
  const auto x = graph->tensor(tensor("x", kX, x_size, x_stride));
  const auto w = graph->tensor(tensor("w", kW, w_size, w_stride));
  auto y = graph->conv_fprop(x, w,
                             fe::graph::Conv_fprop_attributes()
                                 .set_name("convolution")
                                 .set_pre_padding({a.pad_top, a.pad_left})
                                 .set_post_padding({pad_bottom, pad_right})
                                 .set_stride({a.stride, a.stride})
                                 .set_dilation({1, 1}));
  y->set_dim(y_size).set_stride(y_stride);
  const auto add = [&](const char* name, Uid uid, const std::vector<int64_t>& size,
                       const std::vector<int64_t>& stride) {
    const auto other = graph->tensor(tensor(name, uid, size, stride));
    y = graph->pointwise(
        y, other,
        fe::graph::Pointwise_attributes().set_name(name).set_mode(fe::PointwiseMode_t::ADD));
    y->set_dim(y_size).set_stride(y_stride);
  };
  const int64_t out = a.out_channels;
  if (a.bias != nullptr) add("bias", kBias, {1, out, 1, 1}, {out, 1, out, out});
  if (a.residual != nullptr) add("residual", kResidual, y_size, y_stride);
  if (a.activation == Activation::kRelu) {
    y = graph->pointwise(y, fe::graph::Pointwise_attributes().set_name("relu").set_mode(
                                fe::PointwiseMode_t::RELU_FWD));
    y->set_dim(y_size).set_stride(y_stride);
  }
  y->set_output(true).set_uid(kY).set_data_type(fe::DataType_t::BFLOAT16);
  position->second = finish(graph);
  return position->second;
}

void CudnnGraphs::convolution(const kernels::ConvArgs& a, const void* bias, int64_t pad_bottom,
                              int64_t pad_right, void* workspace, cudaStream_t stream) {
  Pointers pointers = {{kX, pointer(a.x)}, {kW, pointer(a.w)}, {kY, a.y}};
  if (a.bias != nullptr) pointers[kBias] = pointer(bias);
  if (a.residual != nullptr) pointers[kResidual] = pointer(a.residual);
  execute(convolution_plan(a, pad_bottom, pad_right), std::move(pointers), workspace, stream);
}

}  // namespace

std::unique_ptr<Cudnn> Cudnn::create(std::string& why) {
  if (!cudnn_is_there()) {
    why = "cuDNN 9 cannot be opened; put its folder into LD_LIBRARY_PATH";
    return nullptr;
  }
  if (cudnnGetVersion() < 90000) {
    why = fmt::format("cuDNN {} is too old, 9 is needed", cudnnGetVersion());
    return nullptr;
  }
  return std::make_unique<CudnnGraphs>();
}

}  // namespace ultraflash::cuda
