// Checks that Executor's public methods share. For executor.cc and executor_attention.cc.
#pragma once

#include <cstdint>

#include "core/check.h"
#include "ops/types.h"

namespace ultraflash {

inline void require_rank(const Tensor& x, int rank, const char* op, const char* name) {
  UF_CHECK(x.defined() && x.rank() == rank, "{}: {} of rank {}, got {}", op, name, rank,
           x.to_string());
}

inline void require_contiguous(const Tensor& x, const char* op, const char* name) {
  UF_CHECK(x.defined() && x.contiguous(), "{}: {} must be contiguous, got {}", op, name,
           x.to_string());
}

inline void require_compute(const Tensor& x, const char* op, const char* name) {
  UF_CHECK(x.defined() &&
               (x.dtype() == DType::kF32 || x.dtype() == DType::kBF16 || x.dtype() == DType::kF16),
           "{}: {} must be f32, bf16 or f16, got {}", op, name, x.to_string());
}

inline void require_dense(const Tensor& x, const char* op, const char* name) {
  require_compute(x, op, name);
  require_contiguous(x, op, name);
}

// What a product reads: a norm may have left it in an executor's own form.
inline void require_product_input(const Tensor& x, const char* op) {
  if (x.defined() && x.dtype() == DType::kF8E4M3) {
    require_contiguous(x, op, "x");
  } else {
    require_dense(x, op, "x");
  }
}

// The weight that alone reads what the operation under way makes, while it runs.
class ReaderScope {
 public:
  ReaderScope(const Linear*& place, const Linear* reader) : place_(place) { place_ = reader; }
  ReaderScope(const ReaderScope&) = delete;
  ReaderScope& operator=(const ReaderScope&) = delete;
  ~ReaderScope() { place_ = nullptr; }

 private:
  const Linear*& place_;
};

inline void require_vector(const Tensor& x, int64_t size, const char* op, const char* name) {
  UF_CHECK(x.defined() && x.dtype() == DType::kF32 && x.rank() == 1 && x.dim(0) == size &&
               x.contiguous(),
           "{}: {} must be f32 [{}], got {}", op, name, size, x.to_string());
}

inline void require_optional_vector(const Tensor& x, int64_t size, const char* op,
                                    const char* name) {
  if (x.defined()) require_vector(x, size, op, name);
}

// gate, scale and shift: f32 [batch or 1, rows, dim], rows dividing tokens, last axis dense.
inline void require_rows(const Tensor& rows, const Tensor& x, const char* op, const char* name) {
  UF_CHECK(rows.defined() && rows.dtype() == DType::kF32 && rows.rank() == 3 &&
               (rows.dim(0) == x.dim(0) || rows.dim(0) == 1) && rows.dim(1) > 0 &&
               x.dim(1) % rows.dim(1) == 0 && rows.dim(2) == x.dim(2) && rows.stride(2) == 1,
           "{}: {} must be f32 [batch or 1, rows, dim] for x {}, got {}", op, name, x.to_string(),
           rows.to_string());
}

inline void require_same(const Tensor& a, const Tensor& b, const char* op) {
  UF_CHECK(a.shape() == b.shape() && a.dtype() == b.dtype(), "{}: operands {} and {} must match",
           op, a.to_string(), b.to_string());
}

inline void require_heads(int64_t dim, int64_t heads, const char* op) {
  UF_CHECK(heads > 0 && dim % heads == 0, "{}: dim {} is not a multiple of {} heads", op, dim,
           heads);
}

}  // namespace ultraflash
