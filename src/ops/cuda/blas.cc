#include "ops/cuda/blas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <tuple>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"

namespace ultraflash::cuda {
namespace {

// The functions that are used, from the library as found by the dynamic linker.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtGetStatusName) status_name = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  std::string error;
};

Library open_library() {
  Library l;
  void* handle = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) handle = dlopen("libcublasLt.so", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    l.error = fmt::format("cuBLASLt 13 cannot be opened ({}); put its folder into LD_LIBRARY_PATH",
                          reason != nullptr ? reason : "no reason given");
    return l;
  }
  const auto take = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr)
      l.error = fmt::format("cuBLASLt has no {}; version 13 is needed", name);
  };
  take(l.create, "cublasLtCreate");
  take(l.destroy, "cublasLtDestroy");
  take(l.version, "cublasLtGetVersion");
  take(l.status_name, "cublasLtGetStatusName");
  take(l.matmul, "cublasLtMatmul");
  take(l.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  take(l.desc_create, "cublasLtMatmulDescCreate");
  take(l.desc_destroy, "cublasLtMatmulDescDestroy");
  take(l.desc_set, "cublasLtMatmulDescSetAttribute");
  take(l.layout_create, "cublasLtMatrixLayoutCreate");
  take(l.layout_destroy, "cublasLtMatrixLayoutDestroy");
  take(l.preference_create, "cublasLtMatmulPreferenceCreate");
  take(l.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  take(l.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  return l;
}

const Library& library() {
  static const Library kLibrary = open_library();
  return kLibrary;
}

void try_blas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw_error(StatusCode::kDevice, "cuBLASLt: {} from {}", library().status_name(status), call);
}

// One product, ready to run: everything but the pointers.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weight = nullptr;
  cublasLtMatrixLayout_t input = nullptr;
  cublasLtMatrixLayout_t output = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool possible = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    const Library& l = library();
    if (desc != nullptr) l.desc_destroy(desc);
    if (weight != nullptr) l.layout_destroy(weight);
    if (input != nullptr) l.layout_destroy(input);
    if (output != nullptr) l.layout_destroy(output);
  }
};

// 16 where an address and a row of `row_bytes` keep it, else what they keep.
uint32_t alignment(const void* p, int64_t row_bytes) {
  const auto bits = reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(row_bytes);
  uint32_t result = 16;
  while (bits % result != 0) result /= 2;
  return result;
}

class CublasLt final : public Blas {
 public:
  CublasLt() { try_blas(library().create(&handle_), "cublasLtCreate"); }
  ~CublasLt() override {
    plans_.clear();
    library().destroy(handle_);
  }
  [[nodiscard]] std::string version() const override {
    const size_t v = library().version();
    return fmt::format("{}.{}.{}", v / 10000, v % 10000 / 100, v % 100);
  }
  [[nodiscard]] bool fuses(DType dtype, Activation activation) const override {
    // In f32 the library's GELU is not exact enough.
    return activation == Activation::kNone || activation == Activation::kRelu ||
           (activation == Activation::kGeluTanh && dtype == DType::kBF16);
  }
  bool product(const ProductArgs& args, void* workspace, size_t workspace_bytes,
               cudaStream_t stream) override;

 private:
  using Key = std::tuple<DType, int64_t, int64_t, int64_t, Activation, bool, bool, bool, uint32_t>;
  const Plan& plan_for(const ProductArgs& args, size_t workspace_bytes);

  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

const Plan& CublasLt::plan_for(const ProductArgs& args, size_t workspace_bytes) {
  const bool fp8 = args.x_scales != nullptr;
  const bool fast_sums = fp8 && args.fast_sums;
  const auto element = static_cast<int64_t>(dtype_size(args.dtype));
  const int64_t operand = fp8 ? 1 : element;
  const uint32_t align_w = alignment(args.w, args.in * operand);
  const uint32_t align_x = alignment(args.x, args.in * operand);
  const uint32_t align_y = alignment(args.y, args.out * element);
  const Key key{args.dtype, args.rows,       args.in,
                args.out,   args.activation, args.bias != nullptr,
                fp8,        fast_sums,       align_w | align_x << 8 | align_y << 16};
  const auto [position, fresh] = plans_.try_emplace(key);
  Plan& plan = position->second;
  if (!fresh) return plan;

  const Library& l = library();
  const cudaDataType_t type = args.dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
  try_blas(l.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    try_blas(l.desc_set(plan.desc, attribute, &value, sizeof(value)), "MatmulDescSetAttribute");
  };
  // Column-major: y^T [out, rows] = W [in, out]^T times x^T [in, rows].
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  const bool bias = args.bias != nullptr;
  cublasLtEpilogue_t epilogue = bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  if (args.activation == Activation::kRelu) {
    epilogue = bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
  } else if (args.activation == Activation::kGeluTanh) {
    epilogue = bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  }
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (bias) {
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
  }
  const auto in = static_cast<uint64_t>(args.in);
  const auto out = static_cast<uint64_t>(args.out);
  const auto rows = static_cast<uint64_t>(args.rows);
  const cudaDataType_t operand_type = fp8 ? CUDA_R_8F_E4M3 : type;
  if (fp8) {
    const cublasLtMatmulMatrixScale_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(fast_sums ? 1 : 0));
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, args.w_scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, args.x_scales);
  }
  try_blas(l.layout_create(&plan.weight, operand_type, in, out, args.in), "MatrixLayoutCreate");
  try_blas(l.layout_create(&plan.input, operand_type, in, rows, args.in), "MatrixLayoutCreate");
  try_blas(l.layout_create(&plan.output, type, out, rows, args.out), "MatrixLayoutCreate");

  cublasLtMatmulPreference_t preference = nullptr;
  try_blas(l.preference_create(&preference), "MatmulPreferenceCreate");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    static_cast<void>(l.preference_set(preference, attribute, &value, sizeof(value)));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_w);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_x);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_y);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_y);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status =
      l.heuristic(handle_, plan.desc, plan.weight, plan.input, plan.output, plan.output, preference,
                  1, &result, &found);
  static_cast<void>(l.preference_destroy(preference));
  plan.possible =
      status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
  plan.algorithm = result.algo;
  return plan;
}

bool CublasLt::product(const ProductArgs& args, void* workspace, size_t workspace_bytes,
                       cudaStream_t stream) {
  const Plan& plan = plan_for(args, workspace_bytes);
  if (!plan.possible) return false;
  const Library& l = library();
  if (args.bias != nullptr) {
    try_blas(
        l.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &args.bias, sizeof(args.bias)),
        "MatmulDescSetAttribute");
  }
  if (args.x_scales != nullptr) {
    try_blas(l.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &args.w_scales,
                        sizeof(args.w_scales)),
             "MatmulDescSetAttribute");
    try_blas(l.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &args.x_scales,
                        sizeof(args.x_scales)),
             "MatmulDescSetAttribute");
  }
  const float one = 1.0F;
  const float zero = 0.0F;
  try_blas(l.matmul(handle_, plan.desc, &one, args.w, plan.weight, args.x, plan.input, &zero,
                    args.y, plan.output, args.y, plan.output, &plan.algorithm, workspace,
                    workspace_bytes, stream),
           "cublasLtMatmul");
  return true;
}

}  // namespace

std::unique_ptr<Blas> Blas::create(std::string& why) {
  if (!library().error.empty()) {
    why = library().error;
    return nullptr;
  }
  return std::make_unique<CublasLt>();
}

}  // namespace ultraflash::cuda
