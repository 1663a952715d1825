// The forms of the diffusion transformer that only training runs: all chunks of a clip at once
// under an attention mask, instead of one after the other through the KV cache. Chunk by chunk
// through run_causal() gives the same numbers. Follows Self-Forcing wan/modules/causal_model.py
// (its block-wise causal and teacher-forcing masks).
#pragma once

#include <cstdint>

#include "models/wan_dit.h"

namespace ultraflash {

/// Every chunk sees itself and the chunks before it, each at its own noise level (diffusion
/// forcing). latent [batch, f, h, w, in_dim], f a multiple of chunk_frames; `time` has a row per
/// frame or per chunk. Returns the flow prediction as run_causal() does.
Tensor run_chunk_causal(Executor& ops, const WanDit& network, const Tensor& latent,
                        int64_t chunk_frames, const TimeModulation& time, const TextKv& text,
                        const ForwardProbe& probe = {});

/// Every noisy chunk sees itself and the clean chunks before it. `clean` and `noisy` are latents of
/// one shape; the rows of `time` are those of the clean frames (their context noise), then those of
/// the noisy ones, one per frame or per chunk. Returns the flow prediction of `noisy`.
Tensor run_teacher_forcing(Executor& ops, const WanDit& network, const Tensor& clean,
                           const Tensor& noisy, int64_t chunk_frames, const TimeModulation& time,
                           const TextKv& text, const ForwardProbe& probe = {});

}  // namespace ultraflash
