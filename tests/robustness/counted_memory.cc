#include "robustness/counted_memory.h"

#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace ultraflash::testing {
namespace {

struct State {
  bool on = false;
  int64_t left = CountedMemory::kNever;  // allocations until one fails
  CountedMemory::Failing failing = CountedMemory::Failing::kOnce;
  bool has_failed = false;
  int64_t bytes = 0;
  int64_t peak_bytes = 0;
};
thread_local State state;

void* allocate(size_t size, size_t alignment) {
  if (state.on && state.left >= 0) {
    if (state.left == 0) {
      state.has_failed = true;
      if (state.failing == CountedMemory::Failing::kOnce) state.left = CountedMemory::kNever;
      throw std::bad_alloc();
    }
    --state.left;
  }
  void* const memory =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(std::max<size_t>(size, 1))
          : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  if (state.on) {
    state.bytes += static_cast<int64_t>(::malloc_usable_size(memory));
    state.peak_bytes = std::max(state.peak_bytes, state.bytes);
  }
  return memory;
}

void release(void* memory) noexcept {
  if (state.on) state.bytes -= static_cast<int64_t>(::malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

CountedMemory::CountedMemory(int64_t fail_at, Failing failing) {
  state = State{/*on=*/true, fail_at, failing, /*has_failed=*/false, 0, 0};
}
CountedMemory::~CountedMemory() { state.on = false; }
bool CountedMemory::has_failed() const { return state.has_failed; }
int64_t CountedMemory::peak_bytes() const { return state.peak_bytes; }

}  // namespace ultraflash::testing

// The forms that the standard library builds the others on, and the ones that do not throw: the
// sanitizers would otherwise put their own beside these.
void* operator new(size_t size) { return ultraflash::testing::allocate(size, 1); }
void* operator new[](size_t size) { return ultraflash::testing::allocate(size, 1); }
void* operator new(size_t size, std::align_val_t alignment) {
  return ultraflash::testing::allocate(size, static_cast<size_t>(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return ultraflash::testing::allocate(size, static_cast<size_t>(alignment));
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  try {
    return ultraflash::testing::allocate(size, 1);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](size_t size, const std::nothrow_t& tag) noexcept {
  return operator new(size, tag);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  ultraflash::testing::release(memory);
}
void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  ultraflash::testing::release(memory);
}
void operator delete(void* memory) noexcept { ultraflash::testing::release(memory); }
void operator delete[](void* memory) noexcept { ultraflash::testing::release(memory); }
void operator delete(void* memory, size_t) noexcept { ultraflash::testing::release(memory); }
void operator delete[](void* memory, size_t) noexcept { ultraflash::testing::release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept {
  ultraflash::testing::release(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  ultraflash::testing::release(memory);
}
void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  ultraflash::testing::release(memory);
}
void operator delete[](void* memory, size_t, std::align_val_t) noexcept {
  ultraflash::testing::release(memory);
}
