#include "ops/autograd/recompute_executor.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <utility>

#include "core/check.h"
#include "ops/autograd/autograd_impl.h"

namespace ultraflash::autograd {
namespace {

using Tensors = std::vector<Tensor>;
using Operation = std::function<Tensors(const Tensors& arguments)>;

// An argument of an operation on the tape.
struct Argument {
  int64_t slot = -1;  // the result of an earlier operation, seen through `strides`; else `outside`
  Tensor outside;     // may be undefined
  DType dtype = DType::kF32;
  Shape shape;
  c10::SmallVector<int64_t, Shape::kMaxRank> strides;
  size_t offset = 0;  // bytes

  // This argument as a view of other memory with the layout of its own.
  [[nodiscard]] Tensor over(const Tensor& memory) const {
    return Tensor::over_strided(memory.storage(), offset, dtype, shape,
                                std::span(strides.data(), strides.size()));
  }
};

struct Step {
  Operation run;
  std::vector<Argument> arguments;
  int64_t first_result = 0;  // slots of its results follow each other
};

struct Tape final : torch::CustomClassHolder {
  std::vector<Step> steps;
  int64_t slots = 0;
  std::vector<at::Tensor> inputs;    // from outside, in somebody's graph
  std::vector<int64_t> results;      // slots
  std::vector<at::Tensor> computed;  // values of the results, until they are in the graph
  bool done = false;
};

Argument argument_of(const Tensor& x, int64_t slot) {
  Argument a;
  a.slot = slot;
  if (!x.defined()) return a;
  if (slot < 0) a.outside = x;
  a.dtype = x.dtype();
  a.shape = x.shape();
  for (int i = 0; i < x.rank(); ++i) a.strides.push_back(x.stride(i));
  a.offset = static_cast<size_t>(x.raw() - x.storage()->data());
  return a;
}

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using Variables = torch::autograd::variable_list;

// Runs `tape` with `leaves` in place of its inputs; the results, in the graph of the leaves.
Variables replay(const Tape& tape, const Variables& leaves) {
  std::vector<Tensor> slots(static_cast<size_t>(tape.slots));
  std::vector<Tensor> inputs;
  for (const at::Tensor& leaf : leaves) inputs.push_back(from_torch(leaf));
  const auto value_of = [&](const Argument& a) {
    if (a.slot >= 0) return a.over(slots[static_cast<size_t>(a.slot)]);
    const at::Tensor* kept = a.outside.defined() ? kept_tensor(a.outside) : nullptr;
    for (size_t i = 0; kept != nullptr && i < tape.inputs.size(); ++i) {
      if (kept->is_same(tape.inputs[i])) return a.over(inputs[i]);
    }
    return a.outside;
  };
  for (const Step& step : tape.steps) {
    Tensors arguments;
    for (const Argument& a : step.arguments) arguments.push_back(value_of(a));
    Tensors results = step.run(arguments);
    std::move(results.begin(), results.end(), slots.begin() + step.first_result);
  }
  Variables results;
  for (const int64_t slot : tape.results) {
    results.push_back(*kept_tensor(slots[static_cast<size_t>(slot)]));
  }
  return results;
}

// The node of a region. `anchor` makes the results part of the graph where only weights take
// gradients, which reach their leaves without passing through this node.
struct Recompute : Function<Recompute> {
  static Variables forward(AutogradContext* ctx, at::TensorList /*inputs*/,
                           const at::Tensor& /*anchor*/, const c10::intrusive_ptr<Tape>& tape) {
    ctx->saved_data["tape"] = c10::IValue::make_capsule(tape);
    return std::exchange(tape->computed, {});
  }
  static Variables backward(AutogradContext* ctx, const Variables& gradients) {
    const auto tape = c10::static_intrusive_pointer_cast<Tape>(ctx->saved_data["tape"].toCapsule());
    UF_CHECK(!std::exchange(tape->done, true), "a region is recomputed a second time");
    const at::AutoGradMode with_graph(true);
    Variables leaves;
    for (const at::Tensor& input : tape->inputs) {
      leaves.push_back(input.detach().requires_grad_(true));
    }
    Variables roots;
    Variables root_gradients;
    {
      const Variables results = replay(*tape, leaves);
      for (size_t i = 0; i < results.size(); ++i) {
        if (!gradients[i].defined() || !results[i].requires_grad()) continue;
        roots.push_back(results[i]);
        root_gradients.push_back(gradients[i]);
      }
    }
    tape->steps.clear();
    tape->inputs.clear();
    if (!roots.empty()) torch::autograd::backward(roots, root_gradients, /*retain_graph=*/false);
    Variables result;
    for (const at::Tensor& leaf : leaves) result.push_back(leaf.grad());
    result.emplace_back();  // the anchor
    result.emplace_back();  // the tape
    return result;
  }
};

bool trains(const Linear& weight) {
  for (const Tensor& part : weight.weights) {
    const at::Tensor* kept = kept_tensor(part);
    if (kept != nullptr && kept->requires_grad()) return true;
  }
  return false;
}

bool trains(const Conv& conv) {
  const at::Tensor* kept = kept_tensor(conv.weight);
  return kept != nullptr && kept->requires_grad();
}

class RecomputeExecutor final : public AutogradExecutor {
 public:
  explicit RecomputeExecutor(const AutogradOptions& options) : AutogradExecutor(options) {}

  void begin_region() override {
    UF_CHECK(!tape_, "a region inside a region");
    if (!at::GradMode::is_enabled()) return;
    tape_ = c10::make_intrusive<Tape>();
    ++serial_;
    wanted_ = false;
  }

  void end_region(std::span<const Tensor> results) override {
    if (!tape_) return;
    const c10::intrusive_ptr<Tape> tape = std::exchange(tape_, {});
    const Tensors caches = std::exchange(caches_, {});
    if (!wanted_) return;
    const auto add = [&](const Tensor& x) {
      const int64_t slot = slot_of(x);
      UF_CHECK(slot >= 0, "{} was not made in the region it is a result of", x.to_string());
      tape->results.push_back(slot);
      tape->computed.push_back(*kept_tensor(x));
    };
    for (const Tensor& x : results) add(x);
    for (const Tensor& x : caches) add(x);
    const at::Tensor anchor = at::empty({0}).requires_grad_(true);
    // forward() returns the very tensors that the handles hold, so the handles are in the graph
    // now.
    Recompute::apply(at::TensorList(tape->inputs), anchor, tape);
  }

  void drop_region() override {
    tape_.reset();
    caches_.clear();
  }

 protected:
  Tensor do_empty(DType dtype, const Shape& shape) override {
    return one(false, {}, [=, this](const Tensors& /*a*/) {
      return AutogradExecutor::do_empty(dtype, shape);
    });
  }
  void do_fill_zero(const Tensor& x) override {
    require_inside(x);
    one(false, {x}, [this](const Tensors& a) {
      AutogradExecutor::do_fill_zero(a[0]);
      return a[0];
    });
  }
  void do_copy(const Tensor& destination, const Tensor& source) override {
    require_inside(destination);
    one(false, {destination, source}, [this](const Tensors& a) {
      AutogradExecutor::do_copy(a[0], a[1]);
      return a[0];
    });
  }
  Tensor do_linear(const Tensor& x, const Linear& weight, Activation activation) override {
    return one(trains(weight), {x}, [this, &weight, activation](const Tensors& a) {
      return AutogradExecutor::do_linear(a[0], weight, activation);
    });
  }
  Tensor do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) override {
    return one(trains(weight), {x}, [this, &weight, frames](const Tensors& a) {
      return AutogradExecutor::do_temporal_pool(a[0], weight, frames);
    });
  }
  Tensor do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) override {
    return one(trains(weight), {x}, [this, &weight, frames](const Tensors& a) {
      return AutogradExecutor::do_temporal_grow(a[0], weight, frames);
    });
  }
  Tensor do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       float eps) override {
    return one(false, {x, weight, bias}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_layer_norm(a[0], a[1], a[2], eps);
    });
  }
  Tensor do_layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                float eps) override {
    return one(false, {x, shift, scale}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_layer_norm_modulate(a[0], a[1], a[2], eps);
    });
  }
  Tensor do_rms_norm(const Tensor& x, const Tensor& weight, float eps) override {
    return one(false, {x, weight}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_rms_norm(a[0], a[1], eps);
    });
  }
  Tensor do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) override {
    return one(false, {x, y, gate}, [this](const Tensors& a) {
      return AutogradExecutor::do_gated_residual(a[0], a[1], a[2]);
    });
  }
  Tensor do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) override {
    return one(false, {x, gamma}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_channel_norm(a[0], a[1], silu);
    });
  }
  Tensor do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k, float eps,
                         const TokenGrid& grid, int64_t heads, const ChunkPlace& place,
                         KvCache& cache) override {
    const Tensors results =
        record(false, {qkv, norm_q, norm_k, cache.k, cache.v}, [=, this](const Tensors& a) {
          KvCache written{a[3], a[4]};
          const Tensor q =
              AutogradExecutor::do_qkv_to_cache(a[0], a[1], a[2], eps, grid, heads, place, written);
          return Tensors{q, written.k, written.v};
        });
    cache = {results[1], results[2]};
    keep(results[1]);
    keep(results[2]);
    return results[0];
  }
  Tensor do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                             int64_t tokens_per_frame, const ChunkPlace& place) override {
    AttentionOptions options;
    options.keys = place.visible_frames * tokens_per_frame;
    return do_attention(q, cache.k, cache.v, heads, options);
  }
  Tensor do_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                      const AttentionOptions& options) override {
    return attend(q, k, v, options, [this, heads](const Tensors& a, const AttentionOptions& o) {
      return AutogradExecutor::do_attention(a[0], a[1], a[2], heads, o);
    });
  }
  Tensor do_attention_in_chunks(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                                const AttentionOptions& options) override {
    return attend(q, k, v, options, [this, heads](const Tensors& a, const AttentionOptions& o) {
      return AutogradExecutor::do_attention_in_chunks(a[0], a[1], a[2], heads, o);
    });
  }
  WindowedQueries do_qkv_to_windows(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                                    float eps, const WindowGrid& grid, int64_t heads,
                                    const GroupPlace& place, WindowCache& cache) override {
    const Tensors results =
        record(false, {qkv, norm_q, norm_k, cache.k, cache.v, cache.pooled_k},
               [=, this](const Tensors& a) {
                 WindowCache written{a[3], a[4], a[5]};
                 const WindowedQueries q = AutogradExecutor::do_qkv_to_windows(
                     a[0], a[1], a[2], eps, grid, heads, place, written);
                 return Tensors{q.q, q.pooled, written.k, written.v, written.pooled_k};
               });
    cache = {results[2], results[3], results[4]};
    for (size_t i = 2; i < 5; ++i) keep(results[i]);
    return {results[0], results[1]};
  }
  BlockMask do_select_blocks(const WindowedQueries& queries, const WindowCache& cache,
                             const WindowGrid& grid, int64_t heads, const GroupPlace& place,
                             const BlockSelection& selection) override {
    // A choice, not a function to differentiate: the tape keeps what was chosen.
    const at::NoGradGuard no_graph;
    return AutogradExecutor::do_select_blocks(queries, cache, grid, heads, place, selection);
  }
  Tensor do_block_sparse_attention(const WindowedQueries& queries, const WindowCache& cache,
                                   const BlockMask& mask, const WindowGrid& grid, int64_t heads,
                                   const GroupPlace& place) override {
    return one(false, {queries.q, queries.pooled, cache.k, cache.v, cache.pooled_k},
               [=, this](const Tensors& a) {
                 return AutogradExecutor::do_block_sparse_attention(
                     {a[0], a[1]}, {a[2], a[3], a[4]}, mask, grid, heads, place);
               });
  }
  Tensor do_conv2d(const Tensor& x, const Conv& weight, const Conv2dOptions& options) override {
    Conv2dOptions plain = options;
    plain.residual = plain.memory = {};
    return one(trains(weight), {x, options.residual, options.memory},
               [this, &weight, plain](const Tensors& a) {
                 Conv2dOptions o = plain;
                 o.residual = a[1];
                 o.memory = a[2];
                 return AutogradExecutor::do_conv2d(a[0], weight, o);
               });
  }
  Tensor do_causal_conv3d(const Tensor& x, const Conv& weight,
                          const Conv3dOptions& options) override {
    Conv3dOptions plain = options;
    plain.past = {};
    return one(trains(weight), {x, options.past}, [this, &weight, plain](const Tensors& a) {
      Conv3dOptions o = plain;
      o.past = a[1];
      return AutogradExecutor::do_causal_conv3d(a[0], weight, o);
    });
  }
  Tensor do_pixel_shuffle(const Tensor& x, int64_t factor, Activation activation) override {
    return one(false, {x}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_pixel_shuffle(a[0], factor, activation);
    });
  }
  Tensor do_patchify(const Tensor& a_in, const Tensor& b_in, DType dtype) override {
    return one(false, {a_in, b_in}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_patchify(a[0], a[1], dtype);
    });
  }
  Tensor do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) override {
    return one(false, {tokens}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_unpatchify(a[0], grid, dtype);
    });
  }
  Tensor do_axpby(float a_factor, const Tensor& x, float b_factor, const Tensor& y) override {
    return one(false, {x, y}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_axpby(a_factor, a[0], b_factor, a[1]);
    });
  }
  Tensor do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) override {
    return one(false, {x, v}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_flow_to_x0(a[0], a[1], sigma);
    });
  }
  Tensor do_cast(const Tensor& x, DType dtype) override {
    return one(false, {x},
               [=, this](const Tensors& a) { return AutogradExecutor::do_cast(a[0], dtype); });
  }
  Tensor do_activate(const Tensor& x, Activation activation) override {
    return one(false, {x}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_activate(a[0], activation);
    });
  }
  Tensor do_add(const Tensor& x, const Tensor& y) override {
    return one(false, {x, y},
               [this](const Tensors& a) { return AutogradExecutor::do_add(a[0], a[1]); });
  }
  Tensor do_multiply(const Tensor& x, const Tensor& y) override {
    return one(false, {x, y},
               [this](const Tensors& a) { return AutogradExecutor::do_multiply(a[0], a[1]); });
  }
  Tensor do_soft_clamp(const Tensor& x, float limit) override {
    return one(false, {x}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_soft_clamp(a[0], limit);
    });
  }
  Tensor do_channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    return one(false, {x, scale, shift}, [this](const Tensors& a) {
      return AutogradExecutor::do_channel_affine(a[0], a[1], a[2]);
    });
  }
  Tensor do_embedding(const Tensor& ids, const Tensor& table, DType dtype) override {
    return one(false, {ids, table}, [=, this](const Tensors& a) {
      return AutogradExecutor::do_embedding(a[0], a[1], dtype);
    });
  }
  Tensor do_mask_rows(Tensor x, const Tensor& lengths) override {
    return one(false, {x, lengths},
               [this](const Tensors& a) { return AutogradExecutor::do_mask_rows(a[0], a[1]); });
  }

 private:
  // Which result on the open tape `x` is, or a view of; -1: none.
  [[nodiscard]] int64_t slot_of(const Tensor& x) const {
    const uint64_t tag = x.defined() ? tag_of(x) : 0;
    return tag >> 32U == serial_ ? static_cast<int64_t>(tag & 0xFFFFFFFFU) : -1;
  }

  void require_inside(const Tensor& x) const {
    UF_CHECK(!tape_ || slot_of(x) >= 0, "a region writes into {}, which is not its own",
             x.to_string());
  }

  void keep(const Tensor& cache) {
    if (tape_) caches_.push_back(cache);
  }

  // Runs an operation; inside a region without a graph, and onto the tape. `weights`: it has some
  // that take gradients besides its arguments.
  Tensors record(bool weights, const Tensors& arguments, Operation run) {
    if (!tape_) return run(arguments);
    Step step;
    for (const Tensor& x : arguments) {
      step.arguments.push_back(argument_of(x, slot_of(x)));
      if (step.arguments.back().slot < 0 && x.defined()) note_outside(x);
    }
    wanted_ = wanted_ || weights;
    step.first_result = tape_->slots;
    Tensors results;
    {
      const at::NoGradGuard no_graph;
      results = run(arguments);
    }
    for (const Tensor& x : results) {
      set_tag(x, serial_ << 32U | static_cast<uint64_t>(tape_->slots++));
    }
    step.run = std::move(run);
    tape_->steps.push_back(std::move(step));
    return results;
  }

  template <typename Run>
  Tensor one(bool weights, const Tensors& arguments, Run run) {
    return record(weights, arguments,
                  [run = std::move(run)](const Tensors& a) { return Tensors{run(a)}; })[0];
  }

  template <typename Run>
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options,
                Run run) {
    AttentionOptions plain = options;
    plain.key_lengths = plain.relative_bias = {};
    return one(false, {q, k, v, options.key_lengths, options.relative_bias},
               [run = std::move(run), plain](const Tensors& a) {
                 AttentionOptions o = plain;
                 o.key_lengths = a[3];
                 o.relative_bias = a[4];
                 return run(a, o);
               });
  }

  // A tensor from outside that takes a gradient: a leaf gets it directly, others through the node.
  void note_outside(const Tensor& x) {
    const at::Tensor* kept = kept_tensor(x);
    if (kept == nullptr || !kept->requires_grad()) return;
    wanted_ = true;
    if (kept->is_leaf()) return;
    for (const at::Tensor& input : tape_->inputs) {
      if (input.is_same(*kept)) return;
    }
    tape_->inputs.push_back(*kept);
  }

  c10::intrusive_ptr<Tape> tape_;  // of the open region
  uint64_t serial_ = 0;            // of the last region; on the tags of its results
  bool wanted_ = false;            // something in the region takes a gradient
  Tensors caches_;                 // written in the region: results too
};

}  // namespace

std::unique_ptr<Executor> make_recompute_executor(const AutogradOptions& options) {
  return std::make_unique<RecomputeExecutor>(options);
}

}  // namespace ultraflash::autograd
