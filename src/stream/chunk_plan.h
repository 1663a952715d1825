// ChunkPlan: how a stream is cut into chunks, and how many pictures come of it.
#pragma once

#include <cstdint>

#include "ultraflash/engine.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Pictures that a decoder makes of latent frames.
struct PictureRate {
  int64_t per_latent = 4;  // of every latent frame after the first
  int64_t of_first = 4;    // of the first latent frame, before trimming
  int64_t dropped = 3;     // first pictures of a stream that are trimmed

  [[nodiscard]] int64_t pictures(int64_t latent_frames) const;
};

struct ChunkPlan {
  int64_t frames_per_chunk = 3;          // latent frames
  bool independent_first_frame = false;  // chunk 0 is one latent frame
  int64_t chunks = 0;                    // 0: endless
  int64_t pictures = 0;                  // delivered in all, 0: endless; the last chunk is cut

  /// Latent frames of chunk `i`.
  [[nodiscard]] int64_t chunk_frames(int64_t i) const;
  /// Latent frames of chunks [0, count).
  [[nodiscard]] int64_t latent_frames(int64_t count) const;

  /// The plan for `chunks` chunks or `pictures` pictures (0: not asked for; both: the smaller).
  /// kInvalidArgument for negative counts and for chunks that give no picture.
  static Result<ChunkPlan> make(int64_t frames_per_chunk, bool independent_first_frame,
                                int64_t chunks, int64_t pictures, const PictureRate& rate);
};

}  // namespace ultraflash
