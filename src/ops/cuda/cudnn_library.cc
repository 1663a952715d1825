// cuDNN's functions under their own names, each handed on to the library that is opened at the
// first call. So the program starts without cuDNN, and cudnn-frontend, which calls them, needs no
// library at link time.
#include "ops/cuda/cudnn_library.h"

#include <cudnn.h>
#include <dlfcn.h>

namespace ultraflash::cuda {
namespace {

void* open_library() {
  void* handle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  return handle != nullptr ? handle : dlopen("libcudnn.so", RTLD_NOW | RTLD_LOCAL);
}
void* library() {
  static void* const kLibrary = open_library();
  return kLibrary;
}

template <typename Function>
Function* symbol(const char* name) {
  return library() == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(library(), name));
}

}  // namespace

bool cudnn_is_there() { return symbol<decltype(cudnnCreate)>("cudnnCreate") != nullptr; }

}  // namespace ultraflash::cuda

// A status function: its parameters, and their names.
#define UF_CUDNN_FORWARD(name, parameters, arguments)                                 \
  extern "C" cudnnStatus_t name parameters {                                          \
    static auto* const kFunction = ::ultraflash::cuda::symbol<decltype(name)>(#name); \
    return kFunction != nullptr ? kFunction arguments : CUDNN_STATUS_NOT_SUPPORTED;   \
  }

UF_CUDNN_FORWARD(cudnnCreate, (cudnnHandle_t * handle), (handle))
UF_CUDNN_FORWARD(cudnnDestroy, (cudnnHandle_t handle), (handle))
UF_CUDNN_FORWARD(cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream), (handle, stream))
UF_CUDNN_FORWARD(cudnnGetStream, (cudnnHandle_t handle, cudaStream_t* stream), (handle, stream))
UF_CUDNN_FORWARD(cudnnBackendCreateDescriptor,
                 (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor),
                 (type, descriptor))
UF_CUDNN_FORWARD(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor), (descriptor))
UF_CUDNN_FORWARD(cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor), (descriptor))
UF_CUDNN_FORWARD(cudnnBackendSetAttribute,
                 (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t count, const void* elements),
                 (descriptor, name, type, count, elements))
UF_CUDNN_FORWARD(cudnnBackendGetAttribute,
                 (cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count, void* elements),
                 (descriptor, name, type, wanted, count, elements))
UF_CUDNN_FORWARD(cudnnBackendExecute,
                 (cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                  cudnnBackendDescriptor_t variants),
                 (handle, plan, variants))

extern "C" size_t cudnnGetVersion() {
  static auto* const kFunction =
      ::ultraflash::cuda::symbol<decltype(cudnnGetVersion)>("cudnnGetVersion");
  return kFunction != nullptr ? kFunction() : 0;
}
extern "C" const char* cudnnGetErrorString(cudnnStatus_t status) {
  static auto* const kFunction =
      ::ultraflash::cuda::symbol<decltype(cudnnGetErrorString)>("cudnnGetErrorString");
  return kFunction != nullptr ? kFunction(status) : "cuDNN is not there";
}
extern "C" void cudnnGetLastErrorString(char* message, size_t size) {
  static auto* const kFunction =
      ::ultraflash::cuda::symbol<decltype(cudnnGetLastErrorString)>("cudnnGetLastErrorString");
  if (kFunction != nullptr) {
    kFunction(message, size);
  } else if (size > 0) {
    *message = 0;
  }
}
