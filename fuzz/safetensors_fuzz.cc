// Safetensors headers and indices from bytes that nobody vouches for.
#include <cstdint>
#include <span>
#include <utility>

#include "weights/checkpoint.h"
#include "weights/safetensors.h"

namespace {

// Reads every byte of a tensor, so that a range outside of the input does not stay unnoticed.
void touch(const ultraflash::Tensor& tensor) {
  volatile uint8_t sum = 0;
  for (size_t i = 0; i < tensor.size_bytes(); ++i) {
    sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(tensor.raw()[i]));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ultraflash;  // NOLINT(google-build-using-namespace): one function
  const ByteSpan bytes = std::as_bytes(std::span(data, size));
  Result<SafetensorsContents> contents = parse_safetensors(bytes, "fuzz");
  if (contents) {
    for (const TensorEntry& entry : contents->tensors) {
      const Result<Tensor> tensor = entry.load();
      if (tensor) touch(*tensor);
    }
    RawCheckpoint raw;
    raw.groups.push_back({"", std::move(contents->tensors)});
    static_cast<void>(Checkpoint::select(std::move(raw), "fuzz").ok());
  }
  static_cast<void>(parse_safetensors_index(as_text(bytes), "fuzz").ok());
  return 0;
}
