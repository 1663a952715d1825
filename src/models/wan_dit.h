// The Wan2.1 diffusion transformer, causal with a KV cache (Self-Forcing) and bidirectional.
// Follows Wan2.1 wan/modules/model.py and Self-Forcing wan/modules/causal_model.py.
// One implementation serves both: the bidirectional form is one chunk that fills an empty cache.
// The sparse SR DiT (sparse_sr_dit.h) shares everything but self-attention.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/function_ref.h"
#include "models/loader.h"
#include "ops/executor.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

struct WanDitConfig {
  int64_t dim = 1536;  // model width
  int64_t ffn_dim = 8960;
  int64_t num_layers = 30;
  int64_t num_heads = 12;   // head size = dim / num_heads
  int64_t in_dim = 16;      // latent channels in (32 for the SR DiT: noise and condition)
  int64_t out_dim = 16;     // latent channels out
  int64_t freq_dim = 256;   // width of the timestep sinusoid
  int64_t text_dim = 4096;  // width of the text embedding
  int64_t text_len = 512;   // text tokens, padding included
  float eps = 1e-6F;        // of every norm

  /// The one list of fields, for readers and writers.
  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("dim", dim);
    visit("ffn_dim", ffn_dim);
    visit("num_layers", num_layers);
    visit("num_heads", num_heads);
    visit("in_dim", in_dim);
    visit("out_dim", out_dim);
    visit("freq_dim", freq_dim);
    visit("text_dim", text_dim);
    visit("text_len", text_len);
    visit("eps", eps);
  }

  [[nodiscard]] int64_t head_dim() const { return dim / num_heads; }
  /// kInvalidArgument naming the field that breaks a divisibility rule or a limit.
  [[nodiscard]] Status validate() const;
  /// Fills the config from names and shapes alone. Heads are not stored: sizes of 128, else 64.
  /// kMalformed naming the tensor that is missing or fits nothing. text_len keeps its default.
  static Result<WanDitConfig> detect(const Checkpoint& checkpoint);
};

/// Called with the name and value of intermediate results, to find the first wrong layer.
using ForwardProbe = std::function<void(std::string_view name, const Tensor& value)>;

/// Shift, scale and gate rows of one or more timesteps, ready for every block.
struct TimeModulation {
  std::vector<Tensor> blocks;  // per layer f32 [batch, rows, 6, dim]: shift1, scale1, gate1, ...
  Tensor head_shift;           // f32 [batch, rows, dim]
  Tensor head_scale;           // f32 [batch, rows, dim]
};

/// Keys and values of the text, per layer [batch, text_len, dim]: valid for one prompt.
struct TextKv {
  std::vector<std::pair<Tensor, Tensor>> layers;
  Tensor distinct{};  // see CrossKeys: padding has equal keys and values in every row
};

/// Puts `text` where `kept` already is, so that recorded passes go on reading it; the first text is
/// kept as it comes.
void keep_text(Executor& ops, TextKv text, TextKv& kept);

struct WanAttention {
  Linear qkv;  // self: q, k, v; cross: q alone
  Linear kv;   // cross only: k, v of the text
  Linear o;
  Tensor norm_q;  // [dim]
  Tensor norm_k;  // [dim]
};

struct WanBlock {
  Tensor modulation;  // [1, 1, 6, dim]
  WanAttention self_attn;
  Tensor norm3_weight;  // [dim]
  Tensor norm3_bias;    // [dim]
  WanAttention cross_attn;
  Linear ffn_0;  // dim -> ffn_dim
  Linear ffn_2;  // ffn_dim -> dim (index 1 is the activation)
};

/// Weights of one network and the parts that its forms share.
class WanDit {
 public:
  /// Binds all parameters under their published names. Problems are the binder's to report.
  /// `time_compute` is the type of the time MLP, modulation and head: the generator computes them
  /// in the type of the activations, the SR DiT in f32.
  static WanDit bind(Loader loader, const WanDitConfig& config, DType time_compute);

  [[nodiscard]] const WanDitConfig& config() const { return config_; }

  /// Modulation of `timesteps` (batch * rows values, rows fastest); tokens are split evenly over
  /// the rows. Depends on the timesteps alone: compute it once per step list.
  [[nodiscard]] TimeModulation time(Executor& ops, std::span<const double> timesteps,
                                    int64_t batch = 1) const;
  /// Keys and values of text embeddings [batch, text_len, text_dim] (rows past the prompt zero).
  /// `tokens` is the length of the longest prompt, -1: not known.
  [[nodiscard]] TextKv text(Executor& ops, const Tensor& embeddings, int64_t tokens = -1) const;

  /// Self-attention of one layer: from qkv [batch, tokens, 3 * dim] to [batch, tokens, dim].
  /// An undefined result ends the pass there (only the cache was wanted). The callee holds the only
  /// handle of qkv, the widest tensor of the half block, and may let go of it.
  using SelfAttention = FunctionRef<Tensor(int64_t layer, const WanAttention& weights, Tensor qkv)>;
  /// Patches [batch, tokens, in_dim * 4] -> head output [batch, tokens, out_dim * 4], or an
  /// undefined tensor when `attend` ended the pass.
  [[nodiscard]] Tensor run(Executor& ops, const Tensor& patches, const TimeModulation& time,
                           const TextKv& text, SelfAttention attend,
                           const ForwardProbe& probe = {}) const;

  [[nodiscard]] const std::vector<WanBlock>& blocks() const { return blocks_; }
  [[nodiscard]] DType compute() const { return compute_; }

 private:
  WanDitConfig config_;
  DType compute_ = DType::kF32;
  DType time_compute_ = DType::kF32;
  Linear patch_embedding_;
  Linear text_embedding_0_, text_embedding_2_;
  Linear time_embedding_0_, time_embedding_2_;
  Linear time_projection_1_;
  std::vector<WanBlock> blocks_;
  Linear head_;
  Tensor head_modulation_;  // [2, dim]: shift, scale
};

/// Self-attention caches of all layers: the state of one causal stream.
struct KvState {
  std::vector<KvCache> layers;
};

/// Cache memory for `frames` latent frames of `tokens_per_frame` tokens.
KvState make_kv_state(Executor& ops, const WanDit& network, int64_t batch, int64_t frames,
                      int64_t tokens_per_frame);

struct CausalPass {
  const TimeModulation* time = nullptr;
  const TextKv* text = nullptr;
  ChunkPlace place;         // updated with Executor::update_place by the caller
  bool cache_only = false;  // context pass: write keys and values, skip what only the output needs
  ForwardProbe probe;
};

/// One forward of a chunk: latent [batch, f, h, w, in_dim] -> flow prediction of the same f, h, w
/// with out_dim channels, in the latent's dtype (undefined with cache_only). Every layer writes its
/// keys and values at `place`; running the same place again overwrites.
Tensor run_causal(Executor& ops, const WanDit& network, const Tensor& latent, KvState& state,
                  const CausalPass& pass);

/// All frames attend to each other; `latent` as above. The cache is made and dropped inside.
Tensor run_bidirectional(Executor& ops, const WanDit& network, const Tensor& latent,
                         const TimeModulation& time, const TextKv& text,
                         const ForwardProbe& probe = {});

}  // namespace ultraflash
