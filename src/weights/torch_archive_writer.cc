#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "weights/torch_archive.h"
#include "weights/zip.h"

namespace ultraflash {
namespace {

constexpr std::string_view kRoot = "archive";  // as torch.save names it when there is no file name

// Writes the few pickle opcodes that a dictionary of tensors takes (Python's Lib/pickletools.py).
class PickleWriter {
 public:
  PickleWriter() : out_("\x80\x02") {}

  PickleWriter& raw(std::string_view opcodes) {
    out_ += opcodes;
    return *this;
  }

  PickleWriter& integer(int64_t value) {
    if (value >= 0 && value <= 0xff) return raw("K").little_endian(value, 1);
    if (value >= 0 && value <= INT32_MAX) return raw("J").little_endian(value, 4);
    return raw("\x8a\x08").little_endian(value, 8);
  }

  PickleWriter& integers(std::span<const int64_t> values) {
    raw("(");
    for (const int64_t value : values) integer(value);
    return raw("t");
  }

  PickleWriter& text(std::string_view value) {
    return raw("X").little_endian(static_cast<int64_t>(value.size()), 4).raw(value);
  }

  // Written once, then fetched from the memo: full names in every tensor would treble the pickle.
  PickleWriter& remembered_text(const std::string& value) {
    if (!recall(value)) text(value).remember(value);
    return *this;
  }

  PickleWriter& global(std::string_view module, std::string_view name) {
    const std::string key = fmt::format("c{}\n{}\n", module, name);
    if (!recall(key)) raw(key).remember(key);
    return *this;
  }

  [[nodiscard]] const std::string& bytes() const { return out_; }

 private:
  PickleWriter& little_endian(int64_t value, int count) {
    append_le(out_, static_cast<uint64_t>(value), count);
    return *this;
  }

  bool recall(const std::string& key) {
    const auto known = memo_.find(key);
    if (known == memo_.end()) return false;
    raw("h").little_endian(known->second, 1);
    return true;
  }

  void remember(const std::string& key) {
    const auto number = static_cast<int64_t>(memo_.size());
    UF_CHECK(number <= 0xff, "{} texts to remember", number);
    memo_.emplace(key, number);
    raw("q").little_endian(number, 1);
  }

  std::string out_;
  std::unordered_map<std::string, int64_t> memo_;
};

void write_tensor(PickleWriter& pickle, const TensorHeader& header, size_t storage) {
  const ElementType& type = element_type(header.dtype);
  const bool typed = !type.torch_storage.empty();
  pickle.global("torch._utils", typed ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3").raw("((");
  pickle.remembered_text("storage");
  if (typed) {
    pickle.global("torch", type.torch_storage);
  } else {
    pickle.global("torch.storage", "UntypedStorage");
  }
  const int64_t bytes = dense_bytes(type, header.shape).value_or(0);
  pickle.text(std::to_string(storage)).remembered_text("cpu");
  pickle.integer(typed ? header.shape.numel() : bytes).raw("tQ");
  const auto strides = TensorEntry::dense_strides(header.shape);
  pickle.integer(/*offset*/ 0).integers(header.shape.sizes());
  pickle.integers(std::span(strides.data(), static_cast<size_t>(header.shape.rank())));
  pickle.raw("\x89");                                     // requires_grad
  pickle.global("collections", "OrderedDict").raw(")R");  // hooks
  if (!typed) pickle.global("torch", type.torch);
  pickle.raw("tR");
}

std::string write_pickle(const std::vector<TensorHeader>& headers, std::string_view wrapper_key) {
  PickleWriter pickle;
  if (!wrapper_key.empty()) pickle.raw("}").text(wrapper_key);
  pickle.global("collections", "OrderedDict").raw(")R(");
  for (size_t i = 0; i < headers.size(); ++i) {
    pickle.text(headers[i].name);
    write_tensor(pickle, headers[i], i);
  }
  pickle.raw("u");
  if (!wrapper_key.empty()) pickle.raw("s");
  return pickle.raw(".").bytes();
}

class TorchArchiveWriter final : public TensorWriter {
 public:
  TorchArchiveWriter(std::vector<TensorHeader> order, ZipWriter archive)
      : TensorWriter(std::move(order)), archive_(std::move(archive)) {}

  Status begin(std::string_view wrapper_key) {
    UF_TRY(archive_.add(fmt::format("{}/data.pkl", kRoot),
                        as_byte_span(write_pickle(order(), wrapper_key))));
    return archive_.add(fmt::format("{}/byteorder", kRoot), as_byte_span("little"));
  }

 protected:
  Status write_elements(size_t index, ByteSpan elements) override {
    return archive_.add(fmt::format("{}/data/{}", kRoot, index), elements);
  }

  Status complete() override {
    UF_TRY(archive_.add(fmt::format("{}/version", kRoot), as_byte_span("3\n")));
    return archive_.finish();
  }

 private:
  ZipWriter archive_;
};

}  // namespace

Result<std::unique_ptr<TensorWriter>> create_torch_archive_writer(const std::filesystem::path& path,
                                                                  std::vector<TensorHeader> headers,
                                                                  std::string_view wrapper_key) {
  return without_exceptions([&]() -> Result<std::unique_ptr<TensorWriter>> {
    UF_TRY(check_headers(headers, path.string()));
    if (!wrapper_key.empty()) {
      UF_TRY(check_headers({{std::string(wrapper_key), DType::kF32, {}}}, path.string()));
    }
    UF_ASSIGN(ZipWriter archive, ZipWriter::create(path));
    auto writer = std::make_unique<TorchArchiveWriter>(std::move(headers), std::move(archive));
    UF_TRY(writer->begin(wrapper_key));
    return std::unique_ptr<TensorWriter>(std::move(writer));
  });
}

Status save_torch_archive(const std::filesystem::path& path,
                          const std::vector<NamedTensor>& tensors, std::string_view wrapper_key) {
  return without_exceptions([&]() -> Status {
    UF_ASSIGN(const std::unique_ptr<TensorWriter> writer,
              create_torch_archive_writer(path, headers_of(tensors), wrapper_key));
    return write_all(*writer, tensors);
  });
}

}  // namespace ultraflash
