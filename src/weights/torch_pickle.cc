#include "weights/torch_pickle.h"

#include <array>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/utf8.h"
#include "weights/malformed.h"

namespace ultraflash {
namespace {

using Kind = PickleTree::Kind;
using Value = PickleTree::Value;

// Classes with a meaning of their own; the storages and element types follow them in the table.
enum FixedClass : size_t {
  kRebuildTensorV2,
  kRebuildTensorV3,
  kRebuildParameter,
  kRebuildParameterWithState,
  kRebuildFromType,
  kUntypedStorage,
  kSize,
  kDevice,
  kTensorType,
  kParameterType,
  kBufferType,
  kFixedClasses
};

constexpr std::array<std::string_view, kFixedClasses> kFixedNames = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",  // for the element types without a storage class
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",  // tensors with attributes, such as torch.nn.Buffer
    "torch.storage.UntypedStorage",
    "torch.Size",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
};

struct ClassTable {
  std::vector<std::string> texts;
  std::vector<std::string_view> names;
  std::vector<const ElementType*> storages;  // by class; null for what is no typed storage
  std::vector<const ElementType*> dtypes;

  ClassTable() {
    for (const std::string_view name : kFixedNames) texts.emplace_back(name);
    storages.resize(texts.size());
    dtypes.resize(texts.size());
    for (const ElementType& type : element_types()) {
      if (!type.torch_storage.empty()) add(type.torch_storage, &type, nullptr);
      if (!type.torch.empty()) add(type.torch, nullptr, &type);
    }
    names.assign(texts.begin(), texts.end());
  }

  void add(std::string_view name, const ElementType* storage, const ElementType* dtype) {
    texts.push_back("torch." + std::string(name));
    storages.push_back(storage);
    dtypes.push_back(dtype);
  }
};

const ClassTable& table() {
  static const ClassTable classes;
  return classes;
}

template <typename... Args>
Status malformed_tensor(std::string_view label, std::string_view shown,
                        fmt::format_string<Args...> format, Args&&... args) {
  return malformed(label, "{} {}", printable(shown),
                   fmt::format(format, std::forward<Args>(args)...));
}

bool is_class(Value value, FixedClass expected) {
  return value.kind == Kind::kClass && PickleTree::class_index(value) == expected;
}

// A storage's name in the archive is a number; longer ones would only feed the hash table.
constexpr size_t kMaxStorageKey = 64;
// A parameter or buffer around a tensor; no file has more.
constexpr int kMaxWraps = 3;

std::optional<std::vector<int64_t>> non_negative(std::span<const Value> values) {
  std::vector<int64_t> numbers;
  if (values.size() > static_cast<size_t>(Shape::kMaxRank)) return std::nullopt;
  for (const Value value : values) {
    if (value.kind != Kind::kInt || value.number < 0) return std::nullopt;
    numbers.push_back(value.number);
  }
  return numbers;
}

// Index of the furthest element of a view, counted from its first; nothing on overflow.
std::optional<int64_t> furthest_element(const Shape& shape, std::span<const int64_t> strides) {
  int64_t last = 0;
  for (int i = 0; i < shape.rank(); ++i) {
    const std::optional<int64_t> reach =
        checked_multiply(shape[i] - 1, strides[static_cast<size_t>(i)]);
    if (!reach || __builtin_add_overflow(last, *reach, &last)) return std::nullopt;
  }
  return last;
}

}  // namespace

std::span<const std::string_view> torch_class_names() { return table().names; }

std::string_view torch_class_name(PickleTree::Value value) {
  const size_t index = PickleTree::class_index(value);
  return index < table().names.size() ? table().names[index] : "collections.OrderedDict";
}

struct TorchTensorReader::Rebuild {
  FixedClass function = kFixedClasses;  // kRebuildTensorV2 or kRebuildTensorV3; others: no tensor
  std::span<const Value> arguments;
};

struct TorchTensorReader::StorageRange {
  std::string_view key;
  const ElementType* type = nullptr;  // null: untyped
  ByteSpan bytes;
};

TorchTensorReader::TorchTensorReader(const ZipArchive& archive, std::string root,
                                     const PickleTree& tree, std::string_view label,
                                     std::shared_ptr<const MappedFile> file)
    : archive_(archive),
      root_(std::move(root)),
      tree_(tree),
      label_(label),
      file_(std::move(file)) {}

Result<TorchTensorReader::Rebuild> TorchTensorReader::unwrap(Value call,
                                                             std::string_view shown) const {
  Value function = tree_.items(call)[0];
  Value arguments = tree_.items(call)[1];
  for (int wraps = 0; wraps <= kMaxWraps; ++wraps) {
    const std::span<const Value> items = tree_.items(arguments);
    switch (PickleTree::class_index(function)) {
      case kRebuildTensorV2:
        return Rebuild{kRebuildTensorV2, items};
      case kRebuildTensorV3:
        return Rebuild{kRebuildTensorV3, items};
      case kSize:
      case kDevice:
        return Rebuild{};
      case kRebuildParameter:
      case kRebuildParameterWithState:
        // (tensor, requires_grad, hooks[, state])
        if (items.size() < 3 || items.size() > 4 || items[0].kind != Kind::kCall) {
          return malformed_tensor(label_, shown, "is a parameter without a tensor");
        }
        function = tree_.items(items[0])[0];
        arguments = tree_.items(items[0])[1];
        break;
      case kRebuildFromType:
        // (function, type, arguments of the function, state)
        if (items.size() != 4 || items[0].kind != Kind::kClass || items[1].kind != Kind::kClass ||
            items[2].kind != Kind::kTuple) {
          return malformed_tensor(label_, shown, "is a tensor subclass in an unknown form");
        }
        function = items[0];
        arguments = items[2];
        break;
      default:
        return malformed_tensor(label_, shown, "calls {}, which rebuilds no tensor",
                                torch_class_name(function));
    }
  }
  return malformed_tensor(label_, shown, "is wrapped more than {} times", kMaxWraps);
}

Result<TorchTensorReader::StorageRange> TorchTensorReader::storage(Value value,
                                                                   std::string_view shown) const {
  // ("storage", class, key, device, number of elements)
  const Value id = value.kind == Kind::kPersistent ? tree_.items(value)[0] : Value{};
  const std::span<const Value> parts =
      id.kind == Kind::kTuple ? tree_.items(id) : std::span<const Value>();
  if (parts.size() != 5 || parts[0].kind != Kind::kString || tree_.text(parts[0]) != "storage" ||
      parts[1].kind != Kind::kClass || parts[2].kind != Kind::kString ||
      parts[3].kind != Kind::kString || parts[4].kind != Kind::kInt || parts[4].number < 0 ||
      tree_.text(parts[2]).size() > kMaxStorageKey) {
    return malformed_tensor(label_, shown, "refers to a storage in an unknown form");
  }
  StorageRange range;
  range.key = tree_.text(parts[2]);
  const size_t index = PickleTree::class_index(parts[1]);
  if (!is_class(parts[1], kUntypedStorage)) {
    range.type = index < table().storages.size() ? table().storages[index] : nullptr;
    if (range.type == nullptr) {
      return malformed_tensor(label_, shown, "has {} for a storage", torch_class_name(parts[1]));
    }
  }
  const ZipEntry* entry = archive_.find(root_ + "/data/" + std::string(tree_.text(parts[2])));
  if (entry == nullptr) {
    return malformed_tensor(label_, shown, "needs storage {}, which is not in the archive",
                            printable(range.key));
  }
  const int64_t element_bytes = range.type == nullptr ? 1 : range.type->bits / 8;
  const std::optional<int64_t> announced = checked_multiply(parts[4].number, element_bytes);
  if (!announced || static_cast<size_t>(*announced) != entry->data.size()) {
    return malformed_tensor(
        label_, shown, "needs {} elements of {} bytes in storage {}, which has {} bytes",
        parts[4].number, element_bytes, printable(range.key), entry->data.size());
  }
  range.bytes = entry->data;
  return range;
}

Result<TensorEntry> TorchTensorReader::place(const StorageRange& storage, const ElementType& type,
                                             int64_t offset, std::span<const Value> sizes,
                                             std::span<const Value> strides,
                                             std::string_view shown) const {
  const std::optional<std::vector<int64_t>> size_list = non_negative(sizes);
  const std::optional<std::vector<int64_t>> stride_list = non_negative(strides);
  const std::optional<Shape> shape = size_list ? checked_shape(*size_list) : std::nullopt;
  if (!shape || !stride_list || stride_list->size() != size_list->size() || offset < 0) {
    return malformed_tensor(label_, shown,
                            "has an impossible shape, stride or offset (at most {} sizes)",
                            Shape::kMaxRank);
  }
  TensorEntry entry;
  entry.type = &type;
  entry.shape = *shape;
  entry.file = file_;
  std::copy(stride_list->begin(), stride_list->end(), entry.strides.begin());
  if (shape->numel() == 0) {
    entry.bytes = storage.bytes.first(0);
    return entry;
  }
  const int64_t element_bytes = type.bits / 8;
  const auto available = static_cast<int64_t>(storage.bytes.size()) / element_bytes;
  const std::optional<int64_t> last = furthest_element(*shape, *stride_list);
  if (!last || offset > available || *last >= available - offset) {
    return malformed_tensor(label_, shown,
                            "is {} {} at element {}, past the end of storage {} with {}", type.name,
                            shape->to_string(), offset, printable(storage.key), available);
  }
  if (shape->numel() > available) {
    // Copying such a view could take any amount of memory.
    return make_status(StatusCode::kUnsupported,
                       "{}: {} repeats the elements of its storage (torch.expand); save it with "
                       ".contiguous()",
                       label_, printable(shown));
  }
  entry.bytes = storage.bytes.subspan(static_cast<size_t>(offset * element_bytes),
                                      static_cast<size_t>((*last + 1) * element_bytes));
  return entry;
}

Result<std::optional<TensorEntry>> TorchTensorReader::read(Value value,
                                                           std::string_view shown) const {
  if (value.kind != Kind::kCall) return std::optional<TensorEntry>();
  UF_ASSIGN(const Rebuild rebuild, unwrap(value, shown));
  if (rebuild.function == kFixedClasses) return std::optional<TensorEntry>();
  // (storage, offset, size, stride, requires_grad, hooks[, metadata]), and in version 3
  // (storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])
  const std::span<const Value> items = rebuild.arguments;
  const size_t count = rebuild.function == kRebuildTensorV2 ? 6 : 7;
  if (items.size() < count || items.size() > count + 1 || items[1].kind != Kind::kInt ||
      items[2].kind != Kind::kTuple || items[3].kind != Kind::kTuple) {
    return malformed_tensor(label_, shown, "is a tensor in an unknown form");
  }
  UF_ASSIGN(const StorageRange range, storage(items[0], shown));
  const ElementType* type = range.type;
  if (rebuild.function == kRebuildTensorV3) {
    const size_t index =
        items[6].kind == Kind::kClass ? PickleTree::class_index(items[6]) : SIZE_MAX;
    type = index < table().dtypes.size() ? table().dtypes[index] : nullptr;
  }
  if (type == nullptr) return malformed_tensor(label_, shown, "has no element type");
  UF_ASSIGN(TensorEntry entry, place(range, *type, items[1].number, tree_.items(items[2]),
                                     tree_.items(items[3]), shown));
  return std::optional<TensorEntry>(std::move(entry));
}

}  // namespace ultraflash
