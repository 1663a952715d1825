// A pickle, read as data: the machine below records what a pickle says and executes nothing.
//
// Only what PyTorch emits for dictionaries of tensors is known: pickle protocol 2, a list of
// opcodes without those that fetch attributes or build instances, and a list of classes that the
// caller gives. Everything else is refused.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

constexpr size_t kMaxPickleBytes = size_t{64} << 20;
constexpr size_t kMaxPickleValues = size_t{8} << 20;   // pushed in all
constexpr size_t kMaxPickleStack = size_t{1} << 20;    // values waiting at one time
constexpr size_t kMaxPickleObjects = size_t{1} << 20;  // containers and calls
constexpr size_t kMaxPickleMemo = size_t{4} << 20;
constexpr size_t kMaxPickleString = size_t{1} << 20;  // bytes of one text

/// What a pickle described. Containers are referred to by number and may be reached on several
/// ways, or contain themselves: whoever walks the tree bounds depth and steps.
class PickleTree {
 public:
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kBigInt,  // an integer past 64 bits: text() is its two's complement, little-endian
    kFloat,
    kString,
    kClass,  // one of the allowed classes
    kList,   // items(): the elements
    kTuple,
    kDict,        // items(): key, value, key, value, ...; keys may repeat
    kCall,        // items(): a class and the tuple of its arguments
    kPersistent,  // items(): the id that stands for an object outside of the pickle
  };

  struct Value {
    Kind kind = Kind::kNone;
    uint32_t index = 0;  // object, or length of a text
    int64_t number = 0;  // value, class or offset of a text
  };

  /// Runs `bytes`, which must outlive the tree. `classes` are the full names ("torch.Size") of what
  /// may be referred to; "collections.OrderedDict" is known anyway and makes a kDict.
  /// kMalformed, in a message that starts with `label` and names the opcode or class, for all that
  /// is not on the lists, is cut short or passes a limit above. Time and memory grow linearly with
  /// the size of `bytes`.
  static Result<PickleTree> parse(std::string_view bytes, std::string_view label,
                                  std::span<const std::string_view> classes);

  [[nodiscard]] Value root() const { return root_; }
  /// Of a kString or kBigInt.
  [[nodiscard]] std::string_view text(Value value) const {
    return bytes_.substr(static_cast<size_t>(value.number), value.index);
  }
  [[nodiscard]] static double real(Value value) { return std::bit_cast<double>(value.number); }
  /// Position of a kClass in `classes`.
  [[nodiscard]] static size_t class_index(Value value) { return static_cast<size_t>(value.number); }
  /// Of a list, tuple, dict, call or persistent id.
  [[nodiscard]] std::span<const Value> items(Value value) const { return objects_[value.index]; }
  [[nodiscard]] static bool is_container(Value value) {
    return value.kind == Kind::kList || value.kind == Kind::kTuple || value.kind == Kind::kDict;
  }

 private:
  friend class PickleMachine;

  std::string_view bytes_;
  std::vector<std::vector<Value>> objects_;
  Value root_;
};

}  // namespace ultraflash
