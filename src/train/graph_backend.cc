#include "train/graph_backend.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstring>
#include <filesystem>

namespace ultraflash {

std::unique_ptr<GraphBackend> open_graph_backend(at::Device device, std::string& why_not) {
  if (!device.is_cuda()) {
    why_not = "the device is no GPU";
    return nullptr;
  }
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string path = (program.parent_path() / kGraphModuleFile).string();
  // It finds the CUDA part of libtorch among what the program has opened.
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    why_not = dlerror();
    return nullptr;
  }
  void* const address = dlsym(library, kGraphModuleName);
  if (address == nullptr) {
    why_not = fmt::format("{} has no {}", path, kGraphModuleName);
    return nullptr;
  }
  MakeGraphBackend make = nullptr;
  static_assert(sizeof(make) == sizeof(address));
  std::memcpy(&make, &address, sizeof(address));
  return std::unique_ptr<GraphBackend>(make(device.has_index() ? device.index() : 0));
}

}  // namespace ultraflash
