#include "ops/cpu/kernels/kernels.h"

#include <cstring>

namespace ultraflash::cpu {
namespace {

struct Candidate {
  const Kernels* table;
  bool runnable;
};

}  // namespace

#if !defined(__x86_64__)
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx512_kernels() { return nullptr; }
const Kernels* avx512_bf16_kernels() { return nullptr; }
#endif

const Kernels* find_kernels(const char* name_or_null) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  const bool avx512 =
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16") != 0;
#else
  const bool avx2 = false;
  const bool avx512 = false;
  const bool avx512_bf16 = false;
#endif
  const Candidate candidates[] = {{avx512_bf16_kernels(), avx512_bf16},
                                  {avx512_kernels(), avx512},
                                  {avx2_kernels(), avx2},
                                  {generic_kernels(), true}};
  for (const Candidate& candidate : candidates) {
    if (candidate.table == nullptr || !candidate.runnable) continue;
    if (name_or_null == nullptr || std::strcmp(name_or_null, candidate.table->name) == 0) {
      return candidate.table;
    }
  }
  return nullptr;
}

}  // namespace ultraflash::cpu
