#include "stream/chunk_plan.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr int64_t kMaxChunks = int64_t{1} << 40;  // thousands of years; keeps sums from overflowing

}  // namespace

int64_t PictureRate::pictures(int64_t latent_frames) const {
  if (latent_frames == 0) return 0;
  return std::max<int64_t>(of_first + (latent_frames - 1) * per_latent - dropped, 0);
}

int64_t ChunkPlan::chunk_frames(int64_t i) const {
  return independent_first_frame && i == 0 ? 1 : frames_per_chunk;
}

int64_t ChunkPlan::latent_frames(int64_t count) const {
  if (count <= 0) return 0;
  return chunk_frames(0) + (count - 1) * frames_per_chunk;
}

Result<ChunkPlan> ChunkPlan::make(int64_t frames_per_chunk, bool independent_first_frame,
                                  int64_t chunks, int64_t pictures, const PictureRate& rate) {
  if (chunks < 0 || pictures < 0 || chunks > kMaxChunks || pictures > kMaxChunks) {
    return make_status(StatusCode::kInvalidArgument,
                       "{} {} were asked for; give a positive number, or 0 for an endless stream",
                       chunks < 0 || chunks > kMaxChunks ? chunks : pictures,
                       chunks < 0 || chunks > kMaxChunks ? "chunks" : "frames");
  }
  ChunkPlan plan;
  plan.frames_per_chunk = frames_per_chunk;
  plan.independent_first_frame = independent_first_frame;
  if (pictures > 0) {
    // First guess from the rate, then the exact count.
    int64_t needed = std::max<int64_t>(pictures / (frames_per_chunk * rate.per_latent) - 1, 1);
    while (rate.pictures(plan.latent_frames(needed)) < pictures) ++needed;
    plan.chunks = needed;
    plan.pictures = pictures;
  }
  if (chunks > 0 && (plan.chunks == 0 || chunks < plan.chunks)) {
    plan.chunks = chunks;
    plan.pictures = rate.pictures(plan.latent_frames(chunks));
    if (plan.pictures == 0) {
      return make_status(StatusCode::kInvalidArgument,
                         "{} chunk{} give{} no picture once the first {} are trimmed; ask for more",
                         chunks, chunks == 1 ? "" : "s", chunks == 1 ? "s" : "", rate.dropped);
    }
  }
  return plan;
}

}  // namespace ultraflash
