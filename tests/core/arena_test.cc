#include "core/arena.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {
namespace {

// One "pass": a fixed sequence of requests and releases.
std::vector<const std::byte*> run_pass(Arena& arena, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Tensor> live;
  std::vector<const std::byte*> addresses;
  for (int i = 0; i < 500; ++i) {
    if (live.size() > 20 || (!live.empty() && random() % 3 == 0)) {
      live.erase(live.begin() + static_cast<int64_t>(random() % live.size()));
    } else {
      live.push_back(arena.allocate(DType::kF32, {static_cast<int64_t>(random() % 50000)}));
      addresses.push_back(live.back().raw());
    }
  }
  return addresses;
}

TEST(ArenaTest, SteadyStateRepeatsAddressesAndAsksForNothing) {
  Arena arena;
  run_pass(arena, 1);
  const std::vector<const std::byte*> second = run_pass(arena, 1);
  const Arena::Stats before = arena.stats();
  const std::vector<const std::byte*> third = run_pass(arena, 1);
  EXPECT_EQ(second, third);
  EXPECT_EQ(arena.stats().slab_requests, before.slab_requests);
  EXPECT_EQ(arena.stats().reserved_bytes, before.reserved_bytes);
  EXPECT_EQ(arena.stats().used_bytes, 0U);
  EXPECT_EQ(arena.stats().live_tensors, 0);
}

// Memory that grows where it stands, as a GPU's does.
class GrowingMemory final : public MemorySource {
 public:
  static constexpr size_t kMost = size_t{1} << 24;
  std::byte* allocate(size_t size_bytes) override {
    EXPECT_LE(size_bytes, kMost);
    data_ = std::make_unique<std::byte[]>(kMost + 256);
    auto address = reinterpret_cast<uintptr_t>(data_.get());
    return data_.get() + (256 - address % 256) % 256;
  }
  void free(std::byte* /*data*/, size_t /*size_bytes*/) noexcept override { data_.reset(); }
  [[nodiscard]] Device device() const override { return {DeviceType::kCpu, 0}; }
  [[nodiscard]] size_t unit() const override { return 4096; }
  bool extend(std::byte* /*data*/, size_t size_bytes, size_t more_bytes) override {
    return size_bytes + more_bytes <= kMost;
  }

 private:
  std::unique_ptr<std::byte[]> data_;
};

TEST(ArenaTest, SlabsGrowWhereTheyStand) {
  Arena::Options options;
  options.slab_bytes = 4096;
  options.extension_bytes = 4096;
  Arena arena(std::make_shared<GrowingMemory>(), options);
  Tensor small = arena.allocate(DType::kU8, {4096});
  const std::byte* begin = small.raw();
  // Behind a block in use: a new block right after it.
  Tensor large = arena.allocate(DType::kU8, {100'000});
  EXPECT_EQ(large.raw(), begin + 4096);
  // A free block at the end joins what is added.
  large = Tensor();
  large = arena.allocate(DType::kU8, {200'000});
  EXPECT_EQ(large.raw(), begin + 4096);
  EXPECT_LT(arena.stats().reserved_bytes, 4096U + 200'000 + 4096);
  // Both released, the whole range is one block again.
  large = Tensor();
  small = Tensor();
  const Tensor all = arena.allocate(DType::kU8, {204'000});
  EXPECT_EQ(all.raw(), begin);
  EXPECT_EQ(arena.stats().slab_requests, 3);
}

TEST(ArenaTest, LiveTensorsNeverOverlap) {
  Arena arena;
  std::mt19937 random(7);
  std::vector<Tensor> live;
  for (int i = 0; i < 2000; ++i) {
    if (live.size() > 30) live.erase(live.begin() + static_cast<int64_t>(random() % live.size()));
    const auto size = static_cast<int64_t>(1 + random() % 3000);
    Tensor t = arena.allocate(DType::kI32, {size});
    std::fill_n(t.mutable_data<int32_t>(), size, i);
    live.push_back(t);
    for (const Tensor& other : live) {
      const auto values = other.span<int32_t>();
      ASSERT_EQ(values.front(), values.back()) << "a later request wrote into a live tensor";
    }
  }
}

TEST(ArenaTest, MemoryGoesBackAndMerges) {
  Arena arena(host_memory(), {.limit_bytes = 0, .slab_bytes = 1 << 20});
  {
    std::vector<Tensor> parts;
    for (int i = 0; i < 64; ++i) parts.push_back(arena.allocate(DType::kU8, {16 << 10}));
    EXPECT_EQ(arena.stats().slab_requests, 1);
  }
  const Tensor whole = arena.allocate(DType::kU8, {1 << 20});
  EXPECT_EQ(arena.stats().slab_requests, 1) << "freed neighbours did not merge";
}

TEST(ArenaTest, LimitIsAClearError) {
  Arena arena(host_memory(), {.limit_bytes = 1 << 20, .slab_bytes = 1 << 18});
  const Tensor first = arena.allocate(DType::kU8, {700 << 10});
  try {
    const Tensor second = arena.allocate(DType::kU8, {700 << 10});
    FAIL() << "the limit was ignored";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::kOutOfMemory);
    EXPECT_NE(error.status().message().find("1048576"), std::string::npos);
  }
}

TEST(ArenaTest, GuardZonesNoticeWritesBesideATensor) {
  Arena arena(host_memory(), {.limit_bytes = 0, .slab_bytes = 1 << 20, .guard_bytes = 256});
  { const Tensor fine = arena.allocate(DType::kU8, {100}); }
  EXPECT_EQ(arena.stats().guard_violations, 0);
  {
    const Tensor t = arena.allocate(DType::kU8, {100});
    t.mutable_data<uint8_t>()[100] = 1;
  }
  EXPECT_EQ(arena.stats().guard_violations, 1);
  {
    const Tensor t = arena.allocate(DType::kU8, {100});
    t.mutable_data<uint8_t>()[-1] = 1;
  }
  EXPECT_EQ(arena.stats().guard_violations, 2);
}

TEST(ArenaTest, TensorsOutliveTheArenaAndMayDieOnAnotherThread) {
  auto arena = std::make_unique<Arena>();
  Tensor survivor = arena->allocate(DType::kF32, {1000});
  Tensor moved = arena->allocate(DType::kF32, {1000});
  arena.reset();
  survivor.mutable_data<float>()[999] = 3.0F;
  std::thread([tensor = std::move(moved)]() mutable { tensor = Tensor(); }).join();
  EXPECT_EQ(survivor.data<float>()[999], 3.0F);
}

}  // namespace
}  // namespace ultraflash
