// PyTorch archives from bytes that nobody vouches for. Inputs that are no zip archive are taken as
// the pickle of one, so that mutations reach it without having to keep an archive whole.
#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "weights/checkpoint.h"
#include "weights/torch_archive.h"

namespace {

void append(std::string& out, uint64_t value, int count) {
  for (int i = 0; i < count; ++i) out += static_cast<char>((value >> (8 * i)) & 0xffU);
}

// A zip archive of stored entries, as small as the format allows.
class TinyZip {
 public:
  void add(std::string_view name, std::string_view data) {
    const size_t offset = files_.size();
    append(files_, 0x04034b50, 4);
    files_.append(14, '\0');
    append(files_, data.size(), 4);
    append(files_, data.size(), 4);
    append(files_, name.size(), 4);
    files_.append(name).append(data);
    append(directory_, 0x02014b50, 4);
    directory_.append(16, '\0');
    append(directory_, data.size(), 4);
    append(directory_, data.size(), 4);
    append(directory_, name.size(), 4);
    directory_.append(10, '\0');
    append(directory_, offset, 4);
    directory_.append(name);
    ++count_;
  }

  std::string finish() {
    std::string out = files_ + directory_;
    append(out, 0x06054b50, 4);
    append(out, 0, 4);
    append(out, count_, 2);
    append(out, count_, 2);
    append(out, directory_.size(), 4);
    append(out, files_.size(), 4);
    append(out, 0, 2);
    return out;
  }

 private:
  std::string files_;
  std::string directory_;
  uint64_t count_ = 0;
};

void touch(const ultraflash::Tensor& tensor) {
  volatile uint8_t sum = 0;
  for (size_t i = 0; i < tensor.size_bytes(); ++i) {
    sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(tensor.raw()[i]));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ultraflash;  // NOLINT(google-build-using-namespace): one function
  ByteSpan bytes = std::as_bytes(std::span(data, size));
  std::string archive;
  if (as_text(bytes.first(std::min<size_t>(2, size))) != "PK") {
    TinyZip zip;
    zip.add("a/data.pkl", as_text(bytes));
    zip.add("a/data/0", std::string(24, '\0'));
    zip.add("a/data/1", std::string(8, '\1'));
    archive = zip.finish();
    bytes = as_byte_span(archive);
  }
  Result<TorchContents> contents = parse_torch_archive(bytes, "fuzz");
  if (!contents) return 0;
  size_t budget = size_t{16} << 20;  // many views of one storage cost time, not memory
  for (const TensorGroup& group : contents->groups) {
    for (const TensorEntry& entry : group.tensors) {
      const auto needed = static_cast<size_t>(entry.size_bytes());
      if (needed > budget) break;
      budget -= needed;
      const Result<Tensor> tensor = entry.load();
      if (tensor) touch(*tensor);
    }
  }
  RawCheckpoint raw;
  raw.groups = std::move(contents->groups);
  raw.extras = std::move(contents->extras);
  static_cast<void>(Checkpoint::select(std::move(raw), "fuzz").ok());
  return 0;
}
