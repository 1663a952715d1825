// NCCL without its headers or its library at build time: the few declarations of its C interface
// that an all-reduce needs. They have been the same since NCCL 2.0; which version is loaded is
// checked all the same.
#include <dlfcn.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <span>

#include "core/check.h"
#include "train/parallel/collective.h"

namespace ultraflash {
namespace {

struct NcclUniqueId {
  std::array<char, 128> bytes;
};
using NcclCommunicator = struct NcclCommunicatorHandle*;
using NcclResult = int;  // enumerations of C
constexpr NcclResult kNcclSuccess = 0;
constexpr NcclResult kNcclInProgress = 7;
constexpr int kNcclFloat32 = 7;
constexpr int kNcclSum = 0;
constexpr int kOldestNccl = 21000;  // 2.10: what the CUDA of Hopper GPUs comes with is newer

struct NcclLibrary {
  NcclResult (*get_version)(int*) = nullptr;
  NcclResult (*get_unique_id)(NcclUniqueId*) = nullptr;
  NcclResult (*init_rank)(NcclCommunicator*, int, NcclUniqueId, int) = nullptr;
  NcclResult (*all_reduce)(const void*, void*, size_t, int, int, NcclCommunicator, void*) = nullptr;
  NcclResult (*get_async_error)(NcclCommunicator, NcclResult*) = nullptr;
  NcclResult (*abort)(NcclCommunicator) = nullptr;
  const char* (*error_string)(NcclResult) = nullptr;
  const char* (*last_error)(NcclCommunicator) = nullptr;  // since 2.13; may be missing
  int version = 0;

  static Result<NcclLibrary> open();
  [[nodiscard]] std::string version_text() const {
    return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  }
  [[nodiscard]] Status check(NcclResult result, const char* call,
                             NcclCommunicator communicator = nullptr) const {
    if (result == kNcclSuccess) return {};
    const char* const detail = last_error != nullptr ? last_error(communicator) : nullptr;
    return make_status(StatusCode::kDevice, "NCCL {}: {} failed: {}{}{}", version_text(), call,
                       error_string(result), detail != nullptr && *detail != 0 ? "; " : "",
                       detail != nullptr ? detail : "");
  }
};

template <typename Function>
bool bind(void* library, const char* name, Function& function) {
  void* const address = dlsym(library, name);
  static_assert(sizeof(function) == sizeof(address));
  std::memcpy(&function, &address, sizeof(address));
  return address != nullptr;
}

Result<NcclLibrary> NcclLibrary::open() {
  constexpr const char* kName = "libnccl.so.2";
  // libtorch's CUDA part has brought it along as a rule; a second one beside it would be an error.
  void* library = dlopen(kName, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return make_status(StatusCode::kUnsupported,
                       "several GPUs train together through NCCL, which could not be loaded: {}",
                       dlerror());
  }
  NcclLibrary nccl;
  if (!bind(library, "ncclGetVersion", nccl.get_version) ||
      !bind(library, "ncclGetUniqueId", nccl.get_unique_id) ||
      !bind(library, "ncclCommInitRank", nccl.init_rank) ||
      !bind(library, "ncclAllReduce", nccl.all_reduce) ||
      !bind(library, "ncclCommGetAsyncError", nccl.get_async_error) ||
      !bind(library, "ncclCommAbort", nccl.abort) ||
      !bind(library, "ncclGetErrorString", nccl.error_string)) {
    return make_status(StatusCode::kUnsupported, "{} lacks functions of NCCL 2: {}", kName,
                       dlerror());
  }
  (void)bind(library, "ncclGetLastError", nccl.last_error);
  UF_TRY(nccl.check(nccl.get_version(&nccl.version), "ncclGetVersion"));
  if (nccl.version < kOldestNccl) {
    return make_status(StatusCode::kUnsupported, "NCCL {} is too old; 2.10 or newer is needed",
                       nccl.version_text());
  }
  return nccl;
}

class NcclCollective final : public Collective {
 public:
  NcclCollective(const NcclLibrary& nccl, NcclCommunicator communicator)
      : nccl_(nccl), communicator_(communicator) {}
  NcclCollective(const NcclCollective&) = delete;
  NcclCollective& operator=(const NcclCollective&) = delete;
  // Not ncclCommDestroy: it waits for the other ranks, which may have failed. Whoever owns this
  // waits for the device before it lets go.
  ~NcclCollective() override { (void)nccl_.abort(communicator_); }

  void sum(float* values, int64_t count, void* stream) override {
    const auto n = static_cast<size_t>(count);
    Status status = nccl_.check(
        nccl_.all_reduce(values, values, n, kNcclFloat32, kNcclSum, communicator_, stream),
        "ncclAllReduce", communicator_);
    NcclResult earlier = kNcclSuccess;
    if (status.ok()) {
      status = nccl_.check(nccl_.get_async_error(communicator_, &earlier), "ncclCommGetAsyncError",
                           communicator_);
    }
    if (status.ok() && earlier != kNcclInProgress) {
      status = nccl_.check(earlier, "an earlier ncclAllReduce", communicator_);
    }
    if (!status.ok()) throw Error(status);
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("NCCL {}", nccl_.version_text());
  }

 private:
  NcclLibrary nccl_;
  NcclCommunicator communicator_;
};

}  // namespace

Result<std::unique_ptr<Collective>> make_nccl_collective(RankGroup& group) {
  UF_ASSIGN(const NcclLibrary nccl, NcclLibrary::open());
  NcclUniqueId id{};
  if (group.leads()) UF_TRY(nccl.check(nccl.get_unique_id(&id), "ncclGetUniqueId"));
  group.share(std::as_writable_bytes(std::span(id.bytes)));
  NcclCommunicator communicator = nullptr;
  UF_TRY(nccl.check(nccl.init_rank(&communicator, static_cast<int>(group.size()), id,
                                   static_cast<int>(group.rank())),
                    "ncclCommInitRank"));
  return std::unique_ptr<Collective>(std::make_unique<NcclCollective>(nccl, communicator));
}

}  // namespace ultraflash
