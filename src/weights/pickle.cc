#include "weights/pickle.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "core/bytes.h"
#include "core/check.h"
#include "core/utf8.h"

namespace ultraflash {
namespace {

// Opcodes: Python's Lib/pickletools.py describes them all.
enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNoneValue = 'N',
  kBinPersistentId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kEmptyDict = '}',
  kBinFloat = 'G',
  kProtocol = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
};

struct OpcodeName {
  uint8_t opcode;
  std::string_view name;
};

// Names of opcodes that are refused, for the message.
constexpr std::array<OpcodeName, 36> kRefused = {{
    {'0', "POP"},
    {'1', "POP_MARK"},
    {'2', "DUP"},
    {'F', "FLOAT"},
    {'I', "INT"},
    {'L', "LONG"},
    {'P', "PERSID"},
    {'S', "STRING"},
    {'T', "BINSTRING"},
    {'U', "SHORT_BINSTRING"},
    {'V', "UNICODE"},
    {'B', "BINBYTES"},
    {'C', "SHORT_BINBYTES"},
    {'d', "DICT"},
    {'g', "GET"},
    {'i', "INST"},
    {'l', "LIST"},
    {'o', "OBJ"},
    {'p', "PUT"},
    {0x81, "NEWOBJ"},
    {0x82, "EXT1"},
    {0x83, "EXT2"},
    {0x84, "EXT4"},
    {0x8b, "LONG4"},
    {0x8c, "SHORT_BINUNICODE"},
    {0x8d, "BINUNICODE8"},
    {0x8e, "BINBYTES8"},
    {0x8f, "EMPTY_SET"},
    {0x90, "ADDITEMS"},
    {0x91, "FROZENSET"},
    {0x92, "NEWOBJ_EX"},
    {0x93, "STACK_GLOBAL"},
    {0x94, "MEMOIZE"},
    {0x95, "FRAME"},
    {0x96, "BYTEARRAY8"},
    {0x97, "NEXT_BUFFER"},
}};

constexpr std::string_view kOrderedDict = "collections.OrderedDict";
constexpr int64_t kOrderedDictClass = -1;
constexpr size_t kMaxClassName = 256;

}  // namespace

class PickleMachine {
 public:
  using Kind = PickleTree::Kind;
  using Value = PickleTree::Value;

  PickleMachine(std::string_view bytes, std::string_view label,
                std::span<const std::string_view> classes)
      : label_(label), classes_(classes) {
    tree_.bytes_ = bytes;
  }

  Status run() {
    if (tree_.bytes_.size() > kMaxPickleBytes) {
      return make_status(StatusCode::kMalformed, "{}: the pickle has {} bytes, at most {} are read",
                         label_, tree_.bytes_.size(), kMaxPickleBytes);
    }
    UF_TRY(read_protocol());
    while (!stopped_) {
      start_ = position_;
      UF_ASSIGN(const std::string_view opcode, take(1));
      UF_TRY(step(static_cast<uint8_t>(opcode.front())));
    }
    return {};
  }

  PickleTree take_tree() { return std::move(tree_); }

 private:
  template <typename... Args>
  Status malformed(fmt::format_string<Args...> format, Args&&... args) const {
    return make_status(StatusCode::kMalformed, "{}: pickle byte {}: {}", label_, start_,
                       fmt::format(format, std::forward<Args>(args)...));
  }

  Status read_protocol() {
    UF_ASSIGN(const std::string_view start, take(2));
    if (static_cast<uint8_t>(start[0]) != kProtocol) {
      return malformed("it does not start with a protocol number, as PyTorch's do");
    }
    if (start[1] != 2) {
      return malformed("protocol {}; save the file again with torch.save's default protocol 2",
                       static_cast<uint8_t>(start[1]));
    }
    return {};
  }

  // One group of opcodes a function; each returns nothing when the opcode is not of its group.
  Status step(uint8_t opcode) {
    std::optional<Status> done = step_scalar(opcode);
    if (!done) done = step_container(opcode);
    if (!done) done = step_reference(opcode);
    if (done) return *std::move(done);
    const auto* row = std::find_if(kRefused.begin(), kRefused.end(),
                                   [&](const OpcodeName& known) { return known.opcode == opcode; });
    return malformed("opcode {:#04x} ({}) is not needed to store tensors and is refused", opcode,
                     row == kRefused.end() ? std::string_view("unknown") : row->name);
  }

  std::optional<Status> step_scalar(uint8_t opcode) {
    switch (opcode) {
      case kNoneValue:
        return push({});
      case kNewTrue:
        return push({Kind::kBool, 0, 1});
      case kNewFalse:
        return push({Kind::kBool, 0, 0});
      case kBinInt:
        return push_integer<int32_t>();
      case kBinInt1:
        return push_integer<uint8_t>();
      case kBinInt2:
        return push_integer<uint16_t>();
      case kLong1:
        return push_long();
      case kBinFloat:
        return push_float();
      case kBinUnicode:
        return push_text();
      default:
        return std::nullopt;
    }
  }

  std::optional<Status> step_container(uint8_t opcode) {
    switch (opcode) {
      case kMark:
        if (marks_.size() >= kMaxPickleStack) return malformed("too many marks");
        marks_.push_back(stack_.size());
        return Status();
      case kEmptyDict:
        return push_object(Kind::kDict, {});
      case kEmptyList:
        return push_object(Kind::kList, {});
      case kEmptyTuple:
        return push_object(Kind::kTuple, {});
      case kTuple1:
        return push_tuple(1);
      case kTuple2:
        return push_tuple(2);
      case kTuple3:
        return push_tuple(3);
      case kTuple: {
        const Result<size_t> count = pop_mark();
        return count ? push_tuple(*count) : count.status();
      }
      case kAppend:
        return extend(Kind::kList, 1);
      case kSetItem:
        return extend(Kind::kDict, 2);
      case kAppends: {
        const Result<size_t> count = pop_mark();
        return count ? extend(Kind::kList, *count) : count.status();
      }
      case kSetItems: {
        const Result<size_t> count = pop_mark();
        return count ? extend(Kind::kDict, *count) : count.status();
      }
      default:
        return std::nullopt;
    }
  }

  std::optional<Status> step_reference(uint8_t opcode) {
    switch (opcode) {
      case kBinPut:
        return memo_put<uint8_t>();
      case kLongBinPut:
        return memo_put<uint32_t>();
      case kBinGet:
        return memo_get<uint8_t>();
      case kLongBinGet:
        return memo_get<uint32_t>();
      case kGlobal:
        return push_class();
      case kReduce:
        return reduce();
      case kBuild:
        return build();
      case kBinPersistentId: {
        const Result<Value> id = pop();
        return id ? push_object(Kind::kPersistent, {*id}) : id.status();
      }
      case kStop:
        return stop();
      default:
        return std::nullopt;
    }
  }

  Result<std::string_view> take(size_t count) {
    if (count > tree_.bytes_.size() - position_) {
      return malformed("the pickle ends in the middle of an instruction");
    }
    position_ += count;
    return tree_.bytes_.substr(position_ - count, count);
  }

  template <typename T>
  Result<T> take_number() {
    UF_ASSIGN(const std::string_view bytes, take(sizeof(T)));
    return load_le<T>(as_byte_span(bytes), 0);
  }

  Result<std::string_view> take_line() {
    const std::string_view rest = tree_.bytes_.substr(position_, kMaxClassName);
    const size_t end = rest.find('\n');
    if (end == std::string_view::npos) return malformed("a class name without end");
    position_ += end + 1;
    return rest.substr(0, end);
  }

  Status push(Value value) {
    if (stack_.size() >= kMaxPickleStack || ++pushed_ > kMaxPickleValues) {
      return malformed("too many values (limits: {} waiting, {} in all)", kMaxPickleStack,
                       kMaxPickleValues);
    }
    stack_.push_back(value);
    return {};
  }

  Status push_object(Kind kind, std::vector<Value> items) {
    if (tree_.objects_.size() >= kMaxPickleObjects) {
      return malformed("more than {} objects", kMaxPickleObjects);
    }
    tree_.objects_.push_back(std::move(items));
    return push({kind, static_cast<uint32_t>(tree_.objects_.size() - 1), 0});
  }

  // Values above the innermost mark; those below belong to an unfinished container.
  [[nodiscard]] size_t available() const {
    return stack_.size() - (marks_.empty() ? 0 : marks_.back());
  }

  Result<Value> pop() {
    if (available() == 0) return malformed("an instruction finds too few values");
    const Value value = stack_.back();
    stack_.pop_back();
    return value;
  }

  // How many values stand above the innermost mark, which goes away.
  Result<size_t> pop_mark() {
    if (marks_.empty()) return malformed("an instruction finds no mark");
    const size_t count = available();
    marks_.pop_back();
    return count;
  }

  template <typename T>
  Status push_integer() {
    UF_ASSIGN(const T number, take_number<T>());
    return push({Kind::kInt, 0, int64_t{number}});
  }

  Status push_long() {
    UF_ASSIGN(const uint8_t count, take_number<uint8_t>());
    const auto offset = static_cast<int64_t>(position_);
    UF_ASSIGN(const std::string_view digits, take(count));
    if (count > 8) return push({Kind::kBigInt, count, offset});
    uint64_t number = !digits.empty() && (digits.back() & 0x80) != 0 ? ~uint64_t{0} : 0;
    for (size_t i = digits.size(); i-- > 0;) {
      number = (number << 8) | static_cast<uint8_t>(digits[i]);
    }
    return push({Kind::kInt, 0, static_cast<int64_t>(number)});
  }

  Status push_float() {
    UF_ASSIGN(const std::string_view digits, take(8));  // big-endian, unlike all else
    uint64_t bits = 0;
    for (const char c : digits) bits = (bits << 8) | static_cast<uint8_t>(c);
    return push({Kind::kFloat, 0, static_cast<int64_t>(bits)});
  }

  Status push_text() {
    UF_ASSIGN(const uint32_t count, take_number<uint32_t>());
    if (count > kMaxPickleString) {
      return malformed("a text of {} bytes, at most {} are read", count, kMaxPickleString);
    }
    const auto offset = static_cast<int64_t>(position_);
    UF_TRY(take(count).status());
    return push({Kind::kString, count, offset});
  }

  Status push_tuple(size_t count) {
    if (count > available()) return malformed("a tuple finds too few values");
    std::vector<Value> items(stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return push_object(Kind::kTuple, std::move(items));
  }

  // Moves the top `count` values into the list or dict below them.
  Status extend(Kind kind, size_t count) {
    if (available() < count + 1) return malformed("an instruction finds too few values");
    const Value target = stack_[stack_.size() - count - 1];
    if (target.kind != kind || (kind == Kind::kDict && count % 2 != 0)) {
      return malformed("items are put into something that is not a {}",
                       kind == Kind::kDict ? "dictionary" : "list");
    }
    std::vector<Value>& items = tree_.objects_[target.index];
    items.insert(items.end(), stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return {};
  }

  template <typename T>
  Status memo_put() {
    UF_ASSIGN(const T index, take_number<T>());
    // Honest pickles number their memo from 0 on, an entry for several bytes.
    if (index > position_ || index >= kMaxPickleMemo) {
      return malformed("memo number {} is too large", index);
    }
    if (available() == 0) return malformed("nothing to remember");
    if (memo_.size() <= index) memo_.resize(size_t{index} + 1);
    memo_[index] = stack_.back();
    return {};
  }

  template <typename T>
  Status memo_get() {
    UF_ASSIGN(const T index, take_number<T>());
    if (index >= memo_.size() || !memo_[index]) {
      return malformed("memo number {} was never set", index);
    }
    return push(*memo_[index]);
  }

  Status push_class() {
    UF_ASSIGN(const std::string_view module, take_line());
    UF_ASSIGN(const std::string_view name, take_line());
    const std::string full = std::string(module) + "." + std::string(name);
    if (full == kOrderedDict) return push({Kind::kClass, 0, kOrderedDictClass});
    const auto known = std::find(classes_.begin(), classes_.end(), full);
    if (known == classes_.end()) {
      return malformed(
          "it refers to {}, which is not needed to store tensors and is refused; if you trust "
          "the file, load it in Python and save its state dict alone",
          printable(full, 120));
    }
    return push({Kind::kClass, 0, known - classes_.begin()});
  }

  Status reduce() {
    UF_ASSIGN(const Value arguments, pop());
    UF_ASSIGN(const Value callable, pop());
    if (callable.kind != Kind::kClass || arguments.kind != Kind::kTuple) {
      return malformed("a call of something that is not a class");
    }
    if (callable.number == kOrderedDictClass) {
      if (!tree_.objects_[arguments.index].empty()) {
        return malformed("collections.OrderedDict with arguments");
      }
      return push_object(Kind::kDict, {});
    }
    return push_object(Kind::kCall, {callable, arguments});
  }

  // Attributes of a dictionary, such as the versions that state dicts carry: not kept.
  Status build() {
    UF_ASSIGN(const Value state, pop());
    if (available() == 0 || stack_.back().kind != Kind::kDict || state.kind != Kind::kDict) {
      return malformed("opcode BUILD sets the state of something that is not a dictionary");
    }
    return {};
  }

  Status stop() {
    if (stack_.size() != 1 || !marks_.empty()) {
      return malformed("it ends with {} values instead of one", stack_.size());
    }
    if (position_ != tree_.bytes_.size()) {
      return malformed("{} bytes follow the end", tree_.bytes_.size() - position_);
    }
    tree_.root_ = stack_.back();
    if (tree_.root_.kind == Kind::kClass) return malformed("it holds a class instead of data");
    stopped_ = true;
    return {};
  }

  std::string_view label_;
  std::span<const std::string_view> classes_;
  PickleTree tree_;
  std::vector<Value> stack_;
  std::vector<size_t> marks_;  // sizes of the stack when each mark was set
  std::vector<std::optional<Value>> memo_;
  size_t position_ = 0;
  size_t start_ = 0;  // of the current instruction, for messages
  size_t pushed_ = 0;
  bool stopped_ = false;
};

Result<PickleTree> PickleTree::parse(std::string_view bytes, std::string_view label,
                                     std::span<const std::string_view> classes) {
  PickleMachine machine(bytes, label, classes);
  UF_TRY(machine.run());
  return machine.take_tree();
}

}  // namespace ultraflash
