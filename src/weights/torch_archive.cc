#include "weights/torch_archive.h"

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "weights/malformed.h"
#include "weights/names.h"
#include "weights/pickle.h"
#include "weights/torch_pickle.h"
#include "weights/zip.h"

namespace ultraflash {
namespace {

using Kind = PickleTree::Kind;
using Value = PickleTree::Value;

// A tree of a few bytes can contain itself, or reach one container on very many ways; these bound
// what walking it may cost.
constexpr int64_t kMaxSteps = 2'000'000;
constexpr int64_t kMaxNameBytesInAll = int64_t{64} << 20;

constexpr size_t kShownElements = 16;  // of a list among the extras

std::string_view kind_name(Value value) {
  switch (value.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
    case Kind::kBigInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    default:
      return "other";
  }
}

// Walks the tree of a pickle and collects tensors and extras.
class Collector {
 public:
  Collector(const PickleTree& tree, const TorchTensorReader& reader, std::string_view label)
      : tree_(tree), reader_(reader), label_(label) {}

  Status run() {
    if (!PickleTree::is_container(tree_.root())) {
      path_ = "tensor";  // torch.save(tensor, ...)
      return visit(tree_.root());
    }
    UF_TRY(enter(tree_.root()));
    while (!frames_.empty()) {
      Frame& frame = frames_.back();
      path_.resize(frame.path_bytes);
      const std::span<const Value> items = tree_.items(frame.container);
      if (frame.next == items.size()) {
        if (frames_.size() == 2) group_.clear();
        frames_.pop_back();
        continue;
      }
      const bool is_dict = frame.container.kind == Kind::kDict;
      const std::string key = is_dict ? key_text(items[frame.next]) : std::to_string(frame.next);
      const Value value = items[frame.next + (is_dict ? 1 : 0)];
      frame.next += is_dict ? 2 : 1;
      UF_TRY(extend_path(key));
      UF_TRY(visit(value));
    }
    return check_names();
  }

  TorchContents take() { return std::move(contents_); }

 private:
  struct Frame {
    Value container;
    size_t next = 0;  // item to visit
    size_t path_bytes = 0;
  };

  template <typename... Args>
  Status malformed(fmt::format_string<Args...> format, Args&&... args) const {
    return ultraflash::malformed(label_, format, std::forward<Args>(args)...);
  }

  Status spend(int64_t steps, size_t bytes) {
    steps_ += steps;
    name_bytes_ += static_cast<int64_t>(bytes);
    if (steps_ > kMaxSteps || name_bytes_ > kMaxNameBytesInAll) {
      return malformed("its dictionaries unfold into more than {} values or {} bytes of names",
                       kMaxSteps, kMaxNameBytesInAll);
    }
    return {};
  }

  // Only of keys that check_keys has let through.
  std::string key_text(Value key) const {
    return key.kind == Kind::kString ? std::string(tree_.text(key)) : std::to_string(key.number);
  }

  Status extend_path(const std::string& key) {
    if (!path_.empty()) path_ += '.';
    path_ += key;
    if (path_.size() > kMaxTensorNameBytes) {
      return malformed("the keys {} ... are longer than {} bytes", printable(path_, 80),
                       kMaxTensorNameBytes);
    }
    return spend(1, path_.size());
  }

  Status check_keys(Value dictionary) {
    const std::span<const Value> items = tree_.items(dictionary);
    std::unordered_set<std::string_view> texts;
    std::unordered_set<int64_t> numbers;
    for (size_t i = 0; i < items.size(); i += 2) {
      const Value key = items[i];
      bool fresh = true;
      if (key.kind == Kind::kString && tree_.text(key).size() <= kMaxTensorNameBytes) {
        fresh = texts.insert(tree_.text(key)).second;
      } else if (key.kind == Kind::kInt) {
        fresh = numbers.insert(key.number).second;
      } else {
        return malformed("a dictionary below \"{}\" has a key that is no short text or integer",
                         printable(path_, 80));
      }
      UF_TRY(spend(1, key.kind == Kind::kString ? key.index : 8));
      if (!fresh) {
        return malformed("the key \"{}\" appears twice in one dictionary",
                         printable(key_text(key), 80));
      }
    }
    return {};
  }

  // Begins to walk a container.
  Status enter(Value container) {
    if (frames_.size() >= kMaxTorchDepth) {
      return malformed("dictionaries are nested deeper than {} levels", kMaxTorchDepth);
    }
    if (container.kind == Kind::kDict) UF_TRY(check_keys(container));
    if (frames_.size() == 1) {
      // A child of the outermost container: names start anew below it.
      if (const char* problem = tensor_name_problem(path_)) {
        return malformed("the key \"{}\" {}", printable(path_, 80), problem);
      }
      group_ = path_;
      below_key_.reset();
      path_.clear();
    }
    frames_.push_back({container, 0, path_.size()});
    return {};
  }

  Status visit(Value value) {
    UF_ASSIGN(std::optional<TensorEntry> tensor, reader_.read(value, full_path()));
    if (tensor) {
      if (const char* problem = tensor_name_problem(path_)) {
        return malformed("the tensor name \"{}\" {}", printable(path_, 80), problem);
      }
      tensor->name = path_;
      group().push_back(*std::move(tensor));
      return {};
    }
    if (!PickleTree::is_container(value)) return add_extra(value, leaf_text(value));
    const std::span<const Value> items = tree_.items(value);
    UF_TRY(spend(static_cast<int64_t>(items.size()), 0));
    const bool flat = std::all_of(items.begin(), items.end(), [](Value item) {
      return !PickleTree::is_container(item) && item.kind != Kind::kCall &&
             item.kind != Kind::kPersistent;
    });
    if (items.empty() || (flat && value.kind != Kind::kDict)) {
      return add_extra(value, list_text(value));
    }
    return enter(value);
  }

  std::string full_path() const { return group_.empty() ? path_ : group_ + "." + path_; }

  // The group that the tensor at hand belongs to, made when its first tensor comes.
  std::vector<TensorEntry>& group() {
    std::optional<size_t>& index = group_.empty() ? top_level_ : below_key_;
    if (!index) {
      index = contents_.groups.size();
      contents_.groups.push_back({group_, {}});
    }
    return contents_.groups[*index].tensors;
  }

  Status add_extra(Value value, std::string text) {
    const std::string name = printable(full_path());
    UF_TRY(spend(0, name.size() + text.size()));
    contents_.extras.push_back({name, std::string(kind_name(value)), std::move(text)});
    return {};
  }

  std::string leaf_text(Value value) const {
    switch (value.kind) {
      case Kind::kNone:
        return "None";
      case Kind::kBool:
        return value.number != 0 ? "True" : "False";
      case Kind::kInt:
        return std::to_string(value.number);
      case Kind::kBigInt:
        return fmt::format("an integer of {} bytes", value.index);
      case Kind::kFloat:
        return fmt::format("{}", PickleTree::real(value));
      case Kind::kString:
        return fmt::format("'{}'", printable(tree_.text(value)));
      case Kind::kClass:
        return std::string(torch_class_name(value));
      default:
        return "...";
    }
  }

  std::string list_text(Value value) const {
    const std::span<const Value> items = tree_.items(value);
    if (value.kind == Kind::kDict) return "{}";
    std::string text = value.kind == Kind::kTuple ? "(" : "[";
    for (size_t i = 0; i < std::min(items.size(), kShownElements); ++i) {
      text += (i == 0 ? "" : ", ") + leaf_text(items[i]);
    }
    if (items.size() > kShownElements) text += fmt::format(", ... {} in all", items.size());
    return text + (value.kind == Kind::kTuple ? ")" : "]");
  }

  // {"a": {"b": t}, "a.b": t} gives two tensors one name; {1: {...}, "1": {...}} two groups.
  Status check_names() const {
    std::unordered_set<std::string_view> keys;
    for (const TensorGroup& group : contents_.groups) {
      if (!keys.insert(group.key).second) {
        return malformed("two dictionaries have the key {}", printable(group.key));
      }
      std::unordered_set<std::string_view> names;
      for (const TensorEntry& entry : group.tensors) {
        if (!names.insert(entry.name).second) {
          return malformed("two tensors are named {}", printable(entry.name));
        }
      }
    }
    return {};
  }

  const PickleTree& tree_;
  const TorchTensorReader& reader_;
  std::string_view label_;
  TorchContents contents_;
  std::vector<Frame> frames_;
  std::string group_;                // key in the outermost container; empty while at its own level
  std::string path_;                 // keys below the group
  std::optional<size_t> top_level_;  // the group without a key
  std::optional<size_t> below_key_;  // the group of `group_`
  int64_t steps_ = 0;
  int64_t name_bytes_ = 0;
};

// The folder inside the archive that holds everything.
Result<std::string> find_root(const ZipArchive& archive, std::string_view label) {
  constexpr std::string_view kPickle = "/data.pkl";
  std::optional<std::string> root;
  for (const ZipEntry& entry : archive.entries()) {
    const size_t slash = entry.name.find('/');
    if (slash == std::string_view::npos || slash == 0) continue;
    const std::string_view rest = entry.name.substr(slash);
    if (rest == "/constants.pkl" || rest.substr(0, 6) == "/code/") {
      return make_status(StatusCode::kUnsupported,
                         "{}: is a TorchScript program; save the module's state_dict() with "
                         "torch.save instead",
                         label);
    }
    if (rest != kPickle) continue;
    if (root) return make_status(StatusCode::kMalformed, "{}: holds two data.pkl", label);
    root = std::string(entry.name.substr(0, slash));
  }
  if (!root) {
    return make_status(StatusCode::kMalformed,
                       "{}: is a zip archive but no PyTorch checkpoint: it has no data.pkl", label);
  }
  return *std::move(root);
}

Status check_conventions(const ZipArchive& archive, const std::string& root,
                         std::string_view label) {
  if (const ZipEntry* order = archive.find(root + "/byteorder")) {
    if (as_text(order->data) != "little") {
      return make_status(StatusCode::kUnsupported,
                         "{}: was written with byte order \"{}\"; only little-endian files are "
                         "read",
                         label, printable(as_text(order->data), 20));
    }
  }
  // Version 3 is what torch.save writes; TorchScript counts up to 10 in the same place.
  if (const ZipEntry* entry = archive.find(root + "/version")) {
    std::string_view version = as_text(entry->data);
    while (!version.empty() && version.back() == '\n') version.remove_suffix(1);
    if (version.size() != 1 || version.front() < '1' || version.front() > '9') {
      return make_status(StatusCode::kUnsupported, "{}: has the unknown archive version \"{}\"",
                         label, printable(version, 20));
    }
  }
  return {};
}

}  // namespace

Result<TorchContents> parse_torch_archive(ByteSpan bytes, std::string_view label,
                                          std::shared_ptr<const MappedFile> file) {
  UF_ASSIGN(const ZipArchive archive, ZipArchive::parse(bytes, label));
  UF_ASSIGN(const std::string root, find_root(archive, label));
  UF_TRY(check_conventions(archive, root, label));
  const ZipEntry* pickle = archive.find(root + "/data.pkl");
  UF_ASSIGN(const PickleTree tree,
            PickleTree::parse(as_text(pickle->data), label, torch_class_names()));
  const TorchTensorReader reader(archive, root, tree, label, std::move(file));
  Collector collector(tree, reader, label);
  UF_TRY(collector.run());
  return collector.take();
}

Result<TorchContents> read_torch_archive(const std::filesystem::path& path) {
  UF_ASSIGN(const std::shared_ptr<MappedFile> file, MappedFile::open(path));
  return parse_torch_archive(file->bytes(), path.string(), file);
}

}  // namespace ultraflash
