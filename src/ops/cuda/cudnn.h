// Attention and convolutions in bf16 through cuDNN's graphs. cuDNN is opened at run time; builds
// without its headers have cudnn_none.cc instead.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "ops/cuda/kernels.h"

namespace ultraflash::cuda {

class Cudnn {
 public:
  Cudnn(const Cudnn&) = delete;
  Cudnn& operator=(const Cudnn&) = delete;
  virtual ~Cudnn() = default;

  /// Null when the library is not there; `why` says so.
  static std::unique_ptr<Cudnn> create(std::string& why);
  [[nodiscard]] virtual std::string version() const = 0;

  /// Bytes of workspace that the call needs, making its plan if there is none yet; -1 when cuDNN
  /// has none. Plans are kept, so the steady state makes none.
  virtual int64_t plan_attention(const kernels::AttentionArgs& args) = 0;
  virtual void attention(const kernels::AttentionArgs& args, void* workspace,
                         cudaStream_t stream) = 0;

  /// As above. `bias` of the arguments is bf16 here.
  virtual int64_t plan_convolution(const kernels::ConvArgs& args, int64_t pad_bottom,
                                   int64_t pad_right) = 0;
  virtual void convolution(const kernels::ConvArgs& args, const void* bias, int64_t pad_bottom,
                           int64_t pad_right, void* workspace, cudaStream_t stream) = 0;

 protected:
  Cudnn() = default;
};

}  // namespace ultraflash::cuda
