#include "train/parallel/rank_group.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr const char* kVariable = "ULTRAFLASH_RANK";  // "rank/ranks/descriptor"
constexpr uint64_t kMagic = 0x756672616e6b7331;
constexpr size_t kSlotBytes = size_t{1} << 20;
constexpr size_t kMessageBytes = 2000;
constexpr size_t kHeaderBytes = 4096;
// A wait first spins, as ranks usually arrive within microseconds of each other, then sleeps.
constexpr int kSpins = 4000;
constexpr long kNapNanoseconds = 50'000;

}  // namespace

// At the beginning of the memory; behind it two slots a rank. Slots alternate, so one meeting is
// enough for an exchange: who writes a slot again has met all others since, and they had read it.
struct RankGroup::Shared {
  uint64_t magic = kMagic;
  int64_t ranks = 0;
  std::atomic<uint32_t> arrived{0};
  std::atomic<uint32_t> generation{0};
  std::atomic<uint32_t> given_up{0};
  std::atomic<int32_t> failure_state{0};  // 1: being written, 2: complete
  int32_t failed_rank = 0;
  int32_t failed_code = 0;
  std::array<char, kMessageBytes> message{};
};

namespace {
static_assert(std::atomic<uint32_t>::is_always_lock_free);  // works between processes
}  // namespace

Result<std::unique_ptr<RankGroup>> RankGroup::map(int descriptor, int64_t rank, int64_t size) {
  static_assert(sizeof(Shared) <= kHeaderBytes);
  const size_t bytes = kHeaderBytes + static_cast<size_t>(size) * 2 * kSlotBytes;
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) {
    return make_status(StatusCode::kOutOfMemory, "memory shared by {} ranks ({} bytes): {}", size,
                       bytes, std::strerror(errno));
  }
  return std::unique_ptr<RankGroup>(
      new RankGroup(descriptor, static_cast<Shared*>(memory), bytes, rank, size));
}

Result<std::unique_ptr<RankGroup>> RankGroup::create(int64_t ranks) {
  if (ranks < 1 || ranks > kMaxRanks) {
    return make_status(StatusCode::kInvalidArgument, "{} ranks; 1 to {} can train together", ranks,
                       kMaxRanks);
  }
  const int descriptor = memfd_create("ultraflash-ranks", 0);
  const auto bytes = static_cast<off_t>(kHeaderBytes + static_cast<size_t>(ranks) * 2 * kSlotBytes);
  if (descriptor < 0 || ftruncate(descriptor, bytes) != 0) {
    const int error = errno;
    if (descriptor >= 0) close(descriptor);
    return make_status(StatusCode::kOutOfMemory, "memory shared by {} ranks: {}", ranks,
                       std::strerror(error));
  }
  UF_ASSIGN(std::unique_ptr<RankGroup> group, map(descriptor, /*rank=*/-1, ranks));
  new (group->shared_) Shared;
  group->shared_->ranks = ranks;
  return group;
}

bool RankGroup::in_environment() { return std::getenv(kVariable) != nullptr; }

Result<std::shared_ptr<RankGroup>> RankGroup::from_environment() {
  const char* const value = std::getenv(kVariable);
  if (value == nullptr) {
    return std::shared_ptr<RankGroup>(new RankGroup(-1, nullptr, 0, /*rank=*/0, /*size=*/1));
  }
  int rank = -1;
  int ranks = 0;
  int descriptor = -1;
  char rest = 0;
  struct stat about {};
  if (std::sscanf(value, "%d/%d/%d%c", &rank, &ranks, &descriptor, &rest) != 3 || rank < 0 ||
      rank >= ranks || ranks > kMaxRanks || fstat(descriptor, &about) != 0 ||
      about.st_size !=
          static_cast<off_t>(kHeaderBytes + static_cast<size_t>(ranks) * 2 * kSlotBytes)) {
    return make_status(StatusCode::kInvalidArgument,
                       "{} is '{}', which no launcher of this program has set; unset it", kVariable,
                       value);
  }
  UF_ASSIGN(std::unique_ptr<RankGroup> group, map(descriptor, rank, ranks));
  if (group->shared_->magic != kMagic || group->shared_->ranks != ranks) {
    return make_status(StatusCode::kInvalidArgument, "{}: this memory is of another program",
                       kVariable);
  }
  return std::shared_ptr<RankGroup>(std::move(group));
}

RankGroup::~RankGroup() {
  if (shared_ == nullptr) return;
  munmap(shared_, bytes_);
  close(descriptor_);
}

std::string RankGroup::environment_of(int64_t rank) const {
  return fmt::format("{}={}/{}/{}", kVariable, rank, size_, descriptor_);
}

std::byte* RankGroup::slot(int64_t rank) const {
  return reinterpret_cast<std::byte*>(shared_) + kHeaderBytes +
         (static_cast<size_t>(rank) * 2 + turn_) * kSlotBytes;
}

void RankGroup::meet() {
  if (size_ == 1) return;
  const uint32_t generation = shared_->generation.load(std::memory_order_acquire);
  if (shared_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 ==
      static_cast<uint32_t>(size_)) {
    shared_->arrived.store(0, std::memory_order_relaxed);
    shared_->generation.fetch_add(1, std::memory_order_acq_rel);
    return;
  }
  for (int spins = 0; shared_->generation.load(std::memory_order_acquire) == generation; ++spins) {
    if (shared_->given_up.load(std::memory_order_acquire) != 0) {
      throw_error(StatusCode::kCancelled, "rank {}: another rank has failed", rank_);
    }
    if (spins < kSpins) continue;
    const timespec nap{0, kNapNanoseconds};
    nanosleep(&nap, nullptr);
  }
}

// Afterwards slot(r) has what rank r published, until turn_ changes.
void RankGroup::publish(std::span<const std::byte> mine) {
  UF_CHECK(mine.size() <= kSlotBytes, "{} bytes for a slot of {}", mine.size(), kSlotBytes);
  turn_ ^= 1U;
  if (!mine.empty()) std::memcpy(slot(rank_), mine.data(), mine.size());
  meet();
}

template <typename T>
std::vector<T> RankGroup::gather_values(std::span<const T> mine) {
  if (size_ == 1) return {mine.begin(), mine.end()};
  publish(std::as_bytes(mine));
  std::vector<T> all(mine.size() * static_cast<size_t>(size_));
  for (int64_t r = 0; r < size_ && !mine.empty(); ++r) {
    std::memcpy(all.data() + static_cast<size_t>(r) * mine.size(), slot(r), mine.size_bytes());
  }
  return all;
}

template <typename T>
void RankGroup::sum_values(std::span<T> values) {
  if (size_ == 1) return;
  constexpr size_t kPart = kSlotBytes / sizeof(T);
  for (size_t begin = 0; begin < values.size(); begin += kPart) {
    const std::span<T> part = values.subspan(begin, std::min(kPart, values.size() - begin));
    publish(std::as_bytes(std::span<const T>(part)));
    const T* const first = reinterpret_cast<const T*>(slot(0));
    std::copy_n(first, part.size(), part.begin());
    for (int64_t r = 1; r < size_; ++r) {
      const T* const other = reinterpret_cast<const T*>(slot(r));
      for (size_t i = 0; i < part.size(); ++i) part[i] += other[i];
    }
  }
}

std::vector<double> RankGroup::gather(std::span<const double> mine) { return gather_values(mine); }
std::vector<uint64_t> RankGroup::gather(std::span<const uint64_t> mine) {
  return gather_values(mine);
}
void RankGroup::sum(std::span<float> values) { sum_values(values); }
void RankGroup::sum(std::span<double> values) { sum_values(values); }

void RankGroup::share(std::span<std::byte> bytes) {
  if (size_ == 1) return;
  publish(bytes);
  if (!bytes.empty()) std::memcpy(bytes.data(), slot(0), bytes.size());
}

void RankGroup::fail(const Status& status) {
  if (shared_ == nullptr) return;
  int32_t untouched = 0;
  if (shared_->failure_state.compare_exchange_strong(untouched, 1)) {
    shared_->failed_rank = static_cast<int32_t>(rank_);
    shared_->failed_code = static_cast<int32_t>(status.code());
    const size_t length = std::min(status.message().size(), kMessageBytes - 1);
    std::copy_n(status.message().begin(), length, shared_->message.begin());
    shared_->failure_state.store(2, std::memory_order_release);
  }
  give_up();
}

void RankGroup::give_up() {
  if (shared_ != nullptr) shared_->given_up.store(1, std::memory_order_release);
}

std::optional<RankGroup::Failure> RankGroup::failure() const {
  if (shared_ == nullptr || shared_->failure_state.load(std::memory_order_acquire) != 2) {
    return std::nullopt;
  }
  return Failure{shared_->failed_rank, Status(static_cast<StatusCode>(shared_->failed_code),
                                              std::string(shared_->message.data()))};
}

}  // namespace ultraflash
