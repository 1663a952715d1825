// Builds the table of one instruction set. Included once by each kernels_<isa>.cc.
#pragma once

#include "ops/cpu/kernels/attention_impl.h"
#if UF_SIMD_BF16_PAIRS
#include "ops/cpu/kernels/attention_pairs.h"
#endif
#include "ops/cpu/kernels/elementwise_impl.h"
#include "ops/cpu/kernels/gemm_impl.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/norm_impl.h"

namespace ultraflash::cpu {
namespace {

void attention(const AttentionTask& t) {
  if (t.dtype != DType::kBF16) {
    attention_of<float>(t);
    return;
  }
#if UF_SIMD_BF16_PAIRS
  if (takes_pairs(t)) {
    attention_pairs(t);
    return;
  }
#endif
  attention_of<BFloat16>(t);
}

constexpr Kernels make_table(const char* name) {
  Kernels table{};
  table.name = name;
  table.vector_width = kWidth;
  table.residual_norm = residual_norm;
  table.rms_norm = rms_norm;
  table.channel_norm = channel_norm;
  table.qkv_token = qkv_token;
  table.attention = attention;
  table.attention_scratch = attention_scratch;
  table.packed_size = packed_size;
  table.pack_columns = pack_columns;
  table.packed_gemm = packed_gemm;
  table.activate = activate;
  table.axpby = axpby;
  table.add = add;
  table.multiply = multiply;
  table.soft_clamp = soft_clamp;
  table.channel_affine = channel_affine;
  table.flow_to_x0 = flow_to_x0;
  table.convert = convert;
  table.to_rgb8 = to_rgb8;
  return table;
}

}  // namespace
}  // namespace ultraflash::cpu
