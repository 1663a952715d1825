// Times of every kernel, copy and fill of a CUDA program, without touching the program: a library
// that the driver loads (CUDA_INJECTION64_PATH) and that records through CUPTI.
//
//   g++ -O2 -std=c++20 -fPIC -shared -o libkernel_times.so bench/cuda/kernel_times.cc
//       -I/usr/local/cuda/include -ldl
//   CUDA_INJECTION64_PATH=$PWD/libkernel_times.so KERNEL_TIMES=times.csv ultraflash bench ...
//
// The file has one line per record, in the order in which they ended up in CUPTI's buffers:
// start in ns, duration in ns, stream, name. bench/cuda/kernel_times.py adds them up. CUPTI is
// opened at run time from LD_LIBRARY_PATH (libcupti.so.13).
#include <cupti.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

constexpr size_t kBufferBytes = size_t{8} << 20;

struct Cupti {
  decltype(&cuptiActivityEnable) enable = nullptr;
  decltype(&cuptiActivityRegisterCallbacks) callbacks = nullptr;
  decltype(&cuptiActivityGetNextRecord) next = nullptr;
  decltype(&cuptiActivityFlushAll) flush = nullptr;
};
Cupti cupti;
std::FILE* output = nullptr;

void line(uint64_t start, uint64_t end, uint32_t stream, const std::string& name) {
  std::fprintf(output, "%llu,%llu,%u,\"%s\"\n", static_cast<unsigned long long>(start),
               static_cast<unsigned long long>(end - start), stream, name.c_str());
}

std::string readable(const char* mangled) {
  int status = 0;
  char* name = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  const std::string result = status == 0 && name != nullptr ? name : mangled;
  std::free(name);
  return result;
}

void CUPTIAPI requested(uint8_t** buffer, size_t* size, size_t* records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *size = kBufferBytes;
  *records = 0;
}

void CUPTIAPI completed(CUcontext /*context*/, uint32_t /*stream*/, uint8_t* buffer,
                        size_t /*size*/, size_t valid) {
  CUpti_Activity* record = nullptr;
  while (cupti.next(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto* k = reinterpret_cast<const CUpti_ActivityKernel9*>(record);
      line(k->start, k->end, k->streamId, readable(k->name));
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      const auto* m = reinterpret_cast<const CUpti_ActivityMemcpy5*>(record);
      line(m->start, m->end, m->streamId, "copy of kind " + std::to_string(m->copyKind));
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
      const auto* m = reinterpret_cast<const CUpti_ActivityMemset4*>(record);
      line(m->start, m->end, m->streamId, "fill");
    }
  }
  std::free(buffer);
}

void finish() {
  cupti.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  std::fclose(output);
}

template <typename Function>
bool take(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

extern "C" int InitializeInjection() {
  const char* path = std::getenv("KERNEL_TIMES");
  void* library = dlopen("libcupti.so.13", RTLD_NOW);
  if (path == nullptr || library == nullptr ||
      !take(library, cupti.enable, "cuptiActivityEnable") ||
      !take(library, cupti.callbacks, "cuptiActivityRegisterCallbacks") ||
      !take(library, cupti.next, "cuptiActivityGetNextRecord") ||
      !take(library, cupti.flush, "cuptiActivityFlushAll")) {
    std::fprintf(stderr, "kernel_times: no KERNEL_TIMES, or no libcupti.so.13\n");
    return 0;
  }
  output = std::fopen(path, "w");
  if (output == nullptr) return 0;
  cupti.callbacks(requested, completed);
  cupti.enable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  cupti.enable(CUPTI_ACTIVITY_KIND_MEMCPY);
  cupti.enable(CUPTI_ACTIVITY_KIND_MEMSET);
  std::atexit(finish);
  return 1;
}
