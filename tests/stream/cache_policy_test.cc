#include "stream/cache_policy.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <deque>
#include <numeric>
#include <vector>

namespace ultraflash {
namespace {

std::vector<int64_t> after_chunks(const CachePolicy& policy, int64_t chunks) {
  CacheRing ring(policy);
  for (int64_t c = 0; c < chunks; ++c) EXPECT_TRUE(ring.append(3, 3 * c).ok());
  return ring.frames();
}

std::vector<int64_t> range(int64_t begin, int64_t end) {
  std::vector<int64_t> values(static_cast<size_t>(end - begin));
  std::iota(values.begin(), values.end(), begin);
  return values;
}

std::vector<int64_t> with_sink(int64_t sink, int64_t begin, int64_t end) {
  std::vector<int64_t> values = range(0, sink);
  for (const int64_t f : range(begin, end)) values.push_back(f);
  return values;
}

// The contents that the reference's shifting cache has (specification of Self-Forcing, KV cache).
TEST(CacheRingTest, HoldsWhatTheReferenceHolds) {
  EXPECT_EQ(after_chunks({CacheKind::kWindow, 21, 0}, 8), range(3, 24));
  EXPECT_EQ(after_chunks({CacheKind::kWindow, 21, 3}, 8), with_sink(3, 6, 24));
  EXPECT_EQ(after_chunks({CacheKind::kWindow, 12, 3}, 5), with_sink(3, 6, 15));
  EXPECT_EQ(after_chunks({CacheKind::kGrow, 21, 0}, 7), range(0, 21));
}

TEST(CacheRingTest, GrowingCacheRefusesMoreThanItHolds) {
  CacheRing ring({CacheKind::kGrow, 6, 0});
  ASSERT_TRUE(ring.append(3, 0).ok());
  ASSERT_TRUE(ring.append(3, 3).ok());
  const Result<ChunkPlace> more = ring.append(3, 6);
  EXPECT_EQ(more.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ring.frames(), range(0, 6)) << "a refused chunk changed the cache";
}

TEST(CacheRingTest, PoliciesThatCannotWorkAreRefused) {
  EXPECT_FALSE((CachePolicy{CacheKind::kWindow, 5, 3}).validate(3).ok());
  EXPECT_FALSE((CachePolicy{CacheKind::kGrow, 21, 3}).validate(3).ok());
  EXPECT_FALSE((CachePolicy{CacheKind::kWindow, 0, 0}).validate(1).ok());
  EXPECT_FALSE((CachePolicy{CacheKind::kWindow, 6, -1}).validate(3).ok());
  EXPECT_TRUE((CachePolicy{CacheKind::kWindow, 6, 3}).validate(3).ok());
}

// The reference's rule, written down literally: append, and on overflow keep the sink and drop the
// oldest of the rest.
RC_GTEST_PROP(CacheRingTest, AgreesWithAShiftingCache, ()) {
  const auto per_chunk = *rc::gen::inRange<int64_t>(1, 5);
  const auto sink = *rc::gen::inRange<int64_t>(0, 5);
  const auto window = *rc::gen::inRange<int64_t>(per_chunk, 12);
  const bool single = *rc::gen::arbitrary<bool>();
  const auto chunks = *rc::gen::inRange<int64_t>(1, 30);
  CacheRing ring({CacheKind::kWindow, sink + window, sink});
  std::deque<int64_t> shifting;
  int64_t frame = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t count = single && c == 0 ? 1 : per_chunk;
    const Result<ChunkPlace> place = ring.append(count, frame);
    RC_ASSERT(place.ok());
    for (int64_t i = 0; i < count; ++i) {
      shifting.push_back(frame + i);
      if (static_cast<int64_t>(shifting.size()) > sink + window)
        shifting.erase(shifting.begin() + sink);
    }
    frame += count;
    RC_ASSERT(ring.frames() == std::vector<int64_t>(shifting.begin(), shifting.end()));
    RC_ASSERT(place->visible_frames == static_cast<int64_t>(shifting.size()));
    // The filled slots are a prefix, and each frame of the chunk is where the place says.
    std::vector<int64_t> slots = ring.slots();
    for (int64_t i = 0; i < count; ++i) {
      const auto at =
          std::find(shifting.begin(), shifting.end(), frame - count + i) - shifting.begin();
      RC_ASSERT(slots[static_cast<size_t>(at)] == place->slot_of(i));
    }
    std::sort(slots.begin(), slots.end());
    RC_ASSERT(slots == range(0, static_cast<int64_t>(slots.size())));
  }
}

}  // namespace
}  // namespace ultraflash
