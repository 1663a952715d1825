#include "train/degrade/dense_flow.h"

#include <dlfcn.h>

#include <array>
#include <cstring>
#include <filesystem>

#include "core/check.h"
#include "train/degrade/colour.h"
#include "train/degrade/flow_module.h"

namespace ultraflash::degrade {
namespace {

FlowFunction open_module() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return nullptr;
  const std::string path = (program.parent_path() / kFlowFile).string();
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  if (library == nullptr) return nullptr;
  void* const address = dlsym(library, kFlowName);
  FlowFunction function = nullptr;
  static_assert(sizeof(function) == sizeof(address));
  std::memcpy(&function, &address, sizeof(address));
  return function;
}

FlowFunction module_function() {
  static const FlowFunction function = open_module();
  return function;
}

}  // namespace

bool has_dense_flow() { return module_function() != nullptr; }

at::Tensor dense_flow(const at::Tensor& clip) {
  constexpr int64_t kLeastSide = 16;
  const int64_t frames = clip.size(0);
  const int64_t height = clip.size(2);
  const int64_t width = clip.size(3);
  if (!has_dense_flow()) {
    throw_error(StatusCode::kUnsupported,
                "there is no {} beside the program; install libopencv-video-dev and build again, "
                "or take degrade.flow=own",
                kFlowFile);
  }
  if (height < kLeastSide || width < kLeastSide) {
    throw_error(StatusCode::kInvalidArgument, "optical flow of {}x{} pixels; sides are at least {}",
                width, height, kLeastSide);
  }
  const at::Tensor grey = (to_ycc(clip).select(1, 0) * 255.0)
                              .round()
                              .clamp(0.0, 255.0)
                              .to(at::kCPU, at::kByte)
                              .contiguous();  // [frames, h, w]
  const at::Tensor flow = at::empty({frames - 1, height, width, 2}, at::kFloat);
  std::array<char, 512> message{};
  for (int64_t t = 0; t + 1 < frames; ++t) {
    const uint8_t* from = grey.const_data_ptr<uint8_t>() + t * height * width;
    if (module_function()(from, from + height * width, static_cast<int>(height),
                          static_cast<int>(width),
                          flow.mutable_data_ptr<float>() + t * height * width * 2, message.data(),
                          message.size()) != 0) {
      throw_error(StatusCode::kInvalidArgument, "OpenCV: {}", message.data());
    }
  }
  return flow.permute({0, 3, 1, 2}).contiguous().to(clip.device());
}

}  // namespace ultraflash::degrade
