// The CPU executor's inner loops. One table of functions per instruction set; every entry works on
// plain pointers and a range of rows, does not allocate and does not start threads. The table is
// chosen once at run time, so one binary runs on any x86-64 (and, with the generic table,
// anywhere).
//
// The sources that implement the table are compiled once per instruction set with its own compiler
// flags. They must not use inline functions of the standard library: the linker could keep a copy
// that was compiled for a newer machine and use it everywhere.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "ops/types.h"

namespace ultraflash::cpu {

/// x' = x + y * gate; n = norm(x') * scale + shift. Each half is optional.
struct ResidualNormArgs {
  DType dtype = DType::kF32;  // of x, y, x_out and n_out
  int64_t dim = 0;
  int64_t tokens = 0;          // tokens of one batch entry; row index = batch * tokens + token
  int64_t tokens_per_row = 1;  // neighbours that share a row of gate, scale and shift
  float eps = 0.0F;
  const void* x = nullptr;
  const void* y = nullptr;      // null: no residual
  const float* gate = nullptr;  // null: 1
  int64_t gate_batch_stride = 0;
  int64_t gate_row_stride = 0;
  void* x_out = nullptr;         // null: not wanted (may equal x)
  void* n_out = nullptr;         // null: no norm
  const float* scale = nullptr;  // null: 1
  const float* shift = nullptr;  // null: 0
  bool one_plus_scale = false;
  int64_t scale_batch_stride = 0;
  int64_t scale_row_stride = 0;
  int64_t shift_batch_stride = 0;
  int64_t shift_row_stride = 0;
};

/// One token: RMS norm of q and k over dim, rotary embedding, copies to where they belong.
struct QkvTokenArgs {
  DType dtype = DType::kF32;
  int64_t dim = 0;
  int64_t head_dim = 0;
  float eps = 0.0F;
  const float* norm_q = nullptr;
  const float* norm_k = nullptr;
  const void* qkv = nullptr;      // [3 * dim]
  const float* cosine = nullptr;  // [head_dim], each value twice
  const float* sine = nullptr;    // [head_dim], -sin and +sin in turn
  void* q_out = nullptr;
  void* k_out = nullptr;
  void* v_out = nullptr;
};

/// A run of keys and values that lie next to each other.
struct KeyRun {
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t count = 0;  // at most kMaxKeyRun
};
inline constexpr int64_t kMaxKeyRun = 128;
/// Queries of one attention task at most.
inline constexpr int64_t kMaxTaskQueries = 128;

/// One head, some queries, a list of key runs.
struct AttentionTask {
  DType dtype = DType::kF32;
  int64_t head_dim = 0;
  float scale = 1.0F;
  const void* q = nullptr;
  int64_t q_stride = 0;  // elements between tokens
  int64_t queries = 0;
  const KeyRun* runs = nullptr;
  int64_t run_count = 0;
  int64_t k_stride = 0;
  int64_t v_stride = 0;
  const float* bias = nullptr;  // query n and key j of the run order take bias[n - j]; or null
  void* out = nullptr;
  int64_t out_stride = 0;
  float* scratch = nullptr;  // attention_scratch(head_dim) floats, 64-byte aligned
};

/// y[m, n] = activation(x[m, k] W + bias): W packed by pack_columns.
struct PackedGemmArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int64_t rows = 0;
  int64_t inner = 0;
  const float* packed = nullptr;
  const float* bias = nullptr;  // [columns] or null
  int64_t columns = 0;
  Activation activation = Activation::kNone;
  void* y = nullptr;
  DType y_dtype = DType::kF32;
  int64_t y_stride = 0;
};

struct Kernels {
  const char* name;
  int64_t vector_width;  // floats per vector register

  void (*residual_norm)(const ResidualNormArgs& args, int64_t begin, int64_t end);
  /// rows of dim elements: x / sqrt(mean(x^2) + eps) * weight.
  void (*rms_norm)(DType dtype, const void* x, const float* weight, float eps, int64_t dim, void* y,
                   int64_t begin, int64_t end);
  /// rows of `channels`: x / max(|x|, 1e-12) * sqrt(channels) * gamma, then SiLU if asked.
  void (*channel_norm)(DType dtype, const void* x, const float* gamma, bool silu, int64_t channels,
                       void* y, int64_t begin, int64_t end);
  void (*qkv_token)(const QkvTokenArgs& args);
  void (*attention)(const AttentionTask& task);
  int64_t (*attention_scratch)(int64_t head_dim);

  /// Floats of the packed form of a [columns, inner] weight.
  int64_t (*packed_size)(int64_t columns, int64_t inner);
  /// w [columns, inner] (row stride `stride`) -> packed form, column block after column block.
  void (*pack_columns)(const float* w, int64_t stride, int64_t columns, int64_t inner,
                       float* packed);
  void (*packed_gemm)(const PackedGemmArgs& args);

  /// Element loops; `count` elements, dtype of inputs and output alike.
  void (*activate)(DType dtype, Activation activation, const void* x, void* y, int64_t count);
  void (*axpby)(DType dtype, float a, const void* x, float b, const void* y, void* out,
                int64_t count);
  void (*add)(DType dtype, const void* a, const void* b, void* out, int64_t count);
  void (*multiply)(DType dtype, const void* a, const void* b, void* out, int64_t count);
  void (*soft_clamp)(DType dtype, float limit, const void* x, void* y, int64_t count);
  void (*channel_affine)(DType dtype, const void* x, const float* scale, const float* shift,
                         int64_t channels, void* y, int64_t begin, int64_t end);
  void (*flow_to_x0)(DType dtype, const void* x, const void* v, double sigma, void* out,
                     int64_t count);
  /// f32, f16, bf16 in any combination.
  void (*convert)(DType from, const void* x, DType to, void* y, int64_t count);
  void (*to_rgb8)(DType dtype, const void* x, float low, float high, uint8_t* y, int64_t count);
};

/// Tables that this binary holds; nullptr where the compiler's target has no such instructions.
const Kernels* generic_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();

/// The best table for this machine, or the named one ("generic", "avx2", "avx512") if the machine
/// can run it; nullptr otherwise.
const Kernels* find_kernels(const char* name_or_null);

}  // namespace ultraflash::cpu
