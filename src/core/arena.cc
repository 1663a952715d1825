#include "core/arena.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "core/check.h"

#if defined(__SANITIZE_ADDRESS__)
#define UF_ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UF_ARENA_ASAN 1
#endif
#endif
#ifdef UF_ARENA_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace ultraflash {
namespace {

constexpr size_t kGranule = 256;
constexpr int32_t kNone = -1;
constexpr std::byte kGuardByte{0xa5};

class HostMemory final : public MemorySource {
 public:
  std::byte* allocate(size_t size_bytes) override {
    constexpr size_t kPage = 4096;
    const size_t rounded = (size_bytes + kPage - 1) / kPage * kPage;
    auto* data = static_cast<std::byte*>(std::aligned_alloc(kPage, rounded));
    if (data == nullptr) {
      throw_error(StatusCode::kOutOfMemory, "could not allocate {} bytes of host memory",
                  size_bytes);
    }
    return data;
  }
  void free(std::byte* data, size_t /*size_bytes*/) noexcept override { std::free(data); }
  [[nodiscard]] Device device() const override { return {DeviceType::kCpu, 0}; }
};

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// Under the address sanitizer free blocks of host memory are poisoned, so that a read through a
// dangling view is found although the slab itself stays allocated.
void poison([[maybe_unused]] Device device, [[maybe_unused]] const std::byte* data,
            [[maybe_unused]] size_t size) {
#ifdef UF_ARENA_ASAN
  if (device.type == DeviceType::kCpu) ASAN_POISON_MEMORY_REGION(data, size);
#endif
}
void unpoison([[maybe_unused]] Device device, [[maybe_unused]] const std::byte* data,
              [[maybe_unused]] size_t size) {
#ifdef UF_ARENA_ASAN
  if (device.type == DeviceType::kCpu) ASAN_UNPOISON_MEMORY_REGION(data, size);
#endif
}

}  // namespace

void MemorySource::fill(std::byte* data, size_t size_bytes, std::byte value) {
  std::fill_n(data, size_bytes, value);
}

bool MemorySource::holds(const std::byte* data, size_t size_bytes, std::byte value) {
  return std::all_of(data, data + size_bytes, [value](std::byte b) { return b == value; });
}

std::shared_ptr<MemorySource> host_memory() {
  static const std::shared_ptr<MemorySource> kSource = std::make_shared<HostMemory>();
  return kSource;
}

// Best fit over blocks that are kept in address order within a slab; neighbours merge when freed.
// A pass has some hundred live blocks at most, so a linear scan is cheaper than any tree, and block
// records and storage objects are recycled, so the steady state never reaches the heap.
class Arena::Pool {
 public:
  Pool(std::shared_ptr<MemorySource> source, const Options& options)
      : source_(std::move(source)), options_(options) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  [[nodiscard]] StoragePtr allocate(size_t size_bytes);
  [[nodiscard]] Stats stats() const;
  [[nodiscard]] Device device() const { return source_->device(); }
  /// The arena is gone; the pool lives on until its last storage is released.
  void abandon();

 private:
  class Item;
  struct Block {
    std::byte* data = nullptr;
    size_t size = 0;
    bool free = false;
    int32_t previous = kNone;  // neighbours in the same slab, by address
    int32_t next = kNone;
  };
  struct Slab {
    std::byte* data;
    size_t size;
  };

  ~Pool();
  int32_t new_block();
  int32_t find_fit(size_t size) const;
  [[nodiscard]] size_t within_limit(size_t wanted, size_t needed) const;
  int32_t extend(size_t size);
  int32_t grow(size_t size);
  void release(Item* item) noexcept;
  void write_guards(std::byte* data, size_t size_bytes, size_t block_size) const;
  [[nodiscard]] bool guards_intact(const std::byte* data, size_t size_bytes,
                                   size_t block_size) const;

  std::shared_ptr<MemorySource> source_;
  Options options_;
  mutable std::mutex mutex_;
  std::vector<Slab> slabs_;
  std::vector<Block> blocks_;
  std::vector<int32_t> unused_blocks_;
  std::vector<Item*> unused_items_;
  Stats stats_;
  bool abandoned_ = false;
};

class Arena::Pool::Item final : public Storage {
 public:
  explicit Item(Pool* pool) : pool_(pool) { device_ = pool->device(); }
  void reset(int32_t block, std::byte* data, size_t size_bytes) {
    block_ = block;
    data_ = data;
    size_bytes_ = size_bytes;
    references_.store(1, std::memory_order_relaxed);
  }
  [[nodiscard]] int32_t block() const { return block_; }
  void dispose() noexcept override { pool_->release(this); }

 private:
  Pool* pool_;
  int32_t block_ = kNone;
};

Arena::Pool::~Pool() {
  for (Item* item : unused_items_) delete item;
  for (const Slab& slab : slabs_) {
    unpoison(source_->device(), slab.data, slab.size);
    source_->free(slab.data, slab.size);
  }
}

int32_t Arena::Pool::new_block() {
  if (!unused_blocks_.empty()) {
    const int32_t index = unused_blocks_.back();
    unused_blocks_.pop_back();
    blocks_[static_cast<size_t>(index)] = Block{};
    return index;
  }
  blocks_.emplace_back();
  // Releasing must never allocate: keep room for every block to become unused.
  unused_blocks_.reserve(blocks_.capacity());
  return static_cast<int32_t>(blocks_.size() - 1);
}

int32_t Arena::Pool::find_fit(size_t size) const {
  int32_t best = kNone;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    if (!block.free || block.size < size) continue;
    if (best == kNone || block.size < blocks_[static_cast<size_t>(best)].size) {
      best = static_cast<int32_t>(i);
      if (block.size == size) break;
    }
  }
  return best;
}

size_t Arena::Pool::within_limit(size_t wanted, size_t needed) const {
  const size_t limit = options_.limit_bytes;
  // The last request gets an exact fit.
  if (limit != 0 && stats_.reserved_bytes + wanted > limit) wanted = needed;
  if (limit != 0 && stats_.reserved_bytes + wanted > limit) {
    throw_error(StatusCode::kOutOfMemory,
                "{} bytes more are needed, {} are in use, and the memory limit is {} bytes", needed,
                stats_.reserved_bytes, limit);
  }
  return wanted;
}

int32_t Arena::Pool::extend(size_t size) {
  if (slabs_.empty()) return kNone;
  Slab& slab = slabs_.back();
  int32_t last = kNone;
  for (size_t i = 0; i < blocks_.size() && last == kNone; ++i) {
    if (blocks_[i].data != nullptr && blocks_[i].data + blocks_[i].size == slab.data + slab.size) {
      last = static_cast<int32_t>(i);
    }
  }
  const bool joins = blocks_[static_cast<size_t>(last)].free;
  const size_t missing = size - (joins ? blocks_[static_cast<size_t>(last)].size : 0);
  const size_t unit = source_->unit();
  const size_t more = within_limit(round_up(missing, std::max(unit, options_.extension_bytes)),
                                   round_up(missing, unit));
  if (!source_->extend(slab.data, slab.size, more)) return kNone;
  std::byte* end = slab.data + slab.size;
  poison(source_->device(), end, more);
  slab.size += more;
  stats_.reserved_bytes += more;
  ++stats_.slab_requests;
  if (joins) {
    blocks_[static_cast<size_t>(last)].size += more;
    return last;
  }
  const int32_t index = new_block();
  blocks_[static_cast<size_t>(index)] = {end, more, /*free=*/true, last, kNone};
  blocks_[static_cast<size_t>(last)].next = index;
  return index;
}

int32_t Arena::Pool::grow(size_t size) {
  if (const int32_t extended = extend(size); extended != kNone) return extended;
  const size_t unit = source_->unit();
  const size_t wanted = within_limit(
      std::max(round_up(size, unit), round_up(options_.slab_bytes, unit)), round_up(size, unit));
  std::byte* data = source_->allocate(wanted);
  poison(source_->device(), data, wanted);
  slabs_.push_back({data, wanted});
  stats_.reserved_bytes += wanted;
  ++stats_.slab_requests;
  const int32_t index = new_block();
  blocks_[static_cast<size_t>(index)] = {data, wanted, /*free=*/true, kNone, kNone};
  return index;
}

StoragePtr Arena::Pool::allocate(size_t size_bytes) {
  if (size_bytes > (size_t{1} << 62)) {
    throw_error(StatusCode::kOutOfMemory, "a request for {} bytes cannot be met", size_bytes);
  }
  const size_t guard = options_.guard_bytes;
  const size_t size = round_up(std::max<size_t>(size_bytes, 1), kGranule) + 2 * guard;
  const std::lock_guard lock(mutex_);
  int32_t index = find_fit(size);
  if (index == kNone) index = grow(size);
  if (blocks_[static_cast<size_t>(index)].size > size) {
    const int32_t rest = new_block();
    Block& block = blocks_[static_cast<size_t>(index)];
    blocks_[static_cast<size_t>(rest)] = {block.data + size, block.size - size, /*free=*/true,
                                          index, block.next};
    if (block.next != kNone) blocks_[static_cast<size_t>(block.next)].previous = rest;
    block.next = rest;
    block.size = size;
  }
  Block& block = blocks_[static_cast<size_t>(index)];
  if (unused_items_.empty()) {
    unused_items_.reserve(static_cast<size_t>(stats_.live_tensors) + 1);
    unused_items_.push_back(new Item(this));
  }
  Item* item = unused_items_.back();
  unused_items_.pop_back();
  block.free = false;
  stats_.used_bytes += size;
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.used_bytes);
  ++stats_.live_tensors;
  if (guard != 0) {
    unpoison(source_->device(), block.data, size);
    write_guards(block.data, size_bytes, block.size);
  }
  unpoison(source_->device(), block.data + guard, size_bytes);
  item->reset(index, block.data + guard, size_bytes);
  return StoragePtr::adopt(item);
}

void Arena::Pool::write_guards(std::byte* data, size_t size_bytes, size_t block_size) const {
  const size_t end = options_.guard_bytes + size_bytes;
  source_->fill(data, options_.guard_bytes, kGuardByte);
  source_->fill(data + end, block_size - end, kGuardByte);
}

bool Arena::Pool::guards_intact(const std::byte* data, size_t size_bytes, size_t block_size) const {
  const size_t end = options_.guard_bytes + size_bytes;
  return source_->holds(data, options_.guard_bytes, kGuardByte) &&
         source_->holds(data + end, block_size - end, kGuardByte);
}

void Arena::Pool::release(Item* item) noexcept {
  std::unique_lock lock(mutex_);
  int32_t index = item->block();
  Block* block = &blocks_[static_cast<size_t>(index)];
  stats_.used_bytes -= block->size;
  --stats_.live_tensors;
  if (options_.guard_bytes != 0 && !guards_intact(block->data, item->size_bytes(), block->size)) {
    ++stats_.guard_violations;
  }
  poison(source_->device(), block->data, block->size);
  block->free = true;
  if (block->next != kNone && blocks_[static_cast<size_t>(block->next)].free) {
    const int32_t next = block->next;
    block->size += blocks_[static_cast<size_t>(next)].size;
    block->next = blocks_[static_cast<size_t>(next)].next;
    if (block->next != kNone) blocks_[static_cast<size_t>(block->next)].previous = index;
    blocks_[static_cast<size_t>(next)] = Block{};
    unused_blocks_.push_back(next);
  }
  if (block->previous != kNone && blocks_[static_cast<size_t>(block->previous)].free) {
    const int32_t previous = block->previous;
    Block& before = blocks_[static_cast<size_t>(previous)];
    before.size += block->size;
    before.next = block->next;
    if (before.next != kNone) blocks_[static_cast<size_t>(before.next)].previous = previous;
    *block = Block{};
    unused_blocks_.push_back(index);
  }
  unused_items_.push_back(item);
  const bool last = abandoned_ && stats_.live_tensors == 0;
  lock.unlock();
  if (last) delete this;
}

Arena::Stats Arena::Pool::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void Arena::Pool::abandon() {
  std::unique_lock lock(mutex_);
  abandoned_ = true;
  const bool last = stats_.live_tensors == 0;
  lock.unlock();
  if (last) delete this;
}

Arena::Arena(std::shared_ptr<MemorySource> source) : Arena(std::move(source), Options{}) {}

Arena::Arena(std::shared_ptr<MemorySource> source, const Options& options)
    : pool_(new Pool(std::move(source), options)) {}

Arena::~Arena() { pool_->abandon(); }

Tensor Arena::allocate(DType dtype, const Shape& shape) {
  const std::optional<int64_t> bytes =
      checked_multiply(shape.numel(), static_cast<int64_t>(dtype_size(dtype)));
  if (!bytes) {
    throw_error(StatusCode::kOutOfMemory, "a tensor {} {} does not fit into memory",
                dtype_name(dtype), shape.to_string());
  }
  return Tensor::over(pool_->allocate(static_cast<size_t>(*bytes)), 0, dtype, shape);
}

Arena::Stats Arena::stats() const { return pool_->stats(); }

Device Arena::device() const { return pool_->device(); }

}  // namespace ultraflash
