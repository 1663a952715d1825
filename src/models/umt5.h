// The UMT5 text encoder of Wan2.1: T5 with a table of relative positions in every layer.
// Follows Wan2.1 wan/modules/t5.py, encoder half. Weights may stay in the mapped file (streamed),
// so that the 5.7 B XXL encoder runs on a machine whose memory it does not fit.
#pragma once

#include <cstdint>
#include <vector>

#include "models/loader.h"
#include "ops/executor.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

struct Umt5Config {
  int64_t vocab_size = 256384;  // rows of the embedding table
  int64_t dim = 4096;
  int64_t dim_attn = 4096;  // heads * head size
  int64_t dim_ffn = 10240;
  int64_t num_heads = 64;
  int64_t num_layers = 24;
  int64_t num_buckets = 32;    // of relative positions, half of them for keys to the right
  int64_t max_distance = 128;  // tokens further away share the last bucket
  float eps = 1e-6F;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("vocab_size", vocab_size);
    visit("dim", dim);
    visit("dim_attn", dim_attn);
    visit("dim_ffn", dim_ffn);
    visit("num_heads", num_heads);
    visit("num_layers", num_layers);
    visit("num_buckets", num_buckets);
    visit("max_distance", max_distance);
    visit("eps", eps);
  }

  [[nodiscard]] Status validate() const;
  /// kMalformed naming the tensor that is missing or fits nothing.
  static Result<Umt5Config> detect(const Checkpoint& checkpoint);
};

class Umt5Encoder {
 public:
  static Umt5Encoder bind(Loader loader, const Umt5Config& config);

  [[nodiscard]] const Umt5Config& config() const { return config_; }

  /// Token ids i64 [batch, length] in host memory and their number per row, i64 [batch] -> hidden
  /// states [batch, length, dim]; rows past the length are zero when `zero_padding` is set, as the
  /// transformer expects them, and meaningless otherwise.
  [[nodiscard]] Tensor run(Executor& ops, const Tensor& ids, const Tensor& lengths,
                           bool zero_padding = true) const;

 private:
  struct Block {
    Tensor norm1;  // [dim]
    Linear qkv;    // attn.q, attn.k, attn.v
    Linear o;
    Tensor norm2;
    Linear gate;  // ffn.gate.0
    Linear fc1;
    Linear fc2;
    Tensor positions;  // [num_buckets, heads], as bound
  };
  /// Which element of a layer's `positions` each element of its relative bias for `length` tokens
  /// is (AttentionOptions): i64 [heads, 2 * length - 1].
  [[nodiscard]] Tensor bias_elements(int64_t length) const;

  Umt5Config config_;
  DType compute_ = DType::kF32;
  Tensor token_embedding_;  // [vocab_size, dim], as bound
  std::vector<Block> blocks_;
  Tensor norm_;
};

/// Bucket of a relative position (key index minus query index). T5: half of the buckets for each
/// sign, the first half of those exact, the rest logarithmic up to max_distance.
int64_t relative_position_bucket(int64_t relative, int64_t num_buckets, int64_t max_distance);

}  // namespace ultraflash
