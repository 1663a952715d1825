"""The sparse causal super-resolution transformer: wan_dit with block-sparse self-attention over
window blocks of 2 x 8 x 8 tokens and a ring of cached temporal blocks.

Written from the specification and from src/models/sparse_sr_dit.cc, src/ops/cpu/cpu_windows.cc.
"""
import dataclasses

import torch
import torch.nn.functional as F

from .wan_dit import WanDitConfig


MASK_LIMIT = 1 << 28  # bytes that attend_masked may spend on a mask


@dataclasses.dataclass
class SparseSrConfig:
    transformer: WanDitConfig
    window: tuple = (2, 8, 8)
    local_range: int = 9
    top_k_ratio: float = 1.0
    ref_spatial_tokens: int = 1560
    stream_chunk_size: int = 2

    @staticmethod
    def from_json(fields):
        fields = dict(fields)
        window = tuple(fields.pop(f"window_{axis}") for axis in ("frames", "height", "width"))
        return SparseSrConfig(WanDitConfig(**fields.pop("transformer")), window, **fields)


class SparseSrState:
    """Keys, values [heads, slots * spatial, window_tokens, head_dim] and pooled keys of a layer."""

    def __init__(self, network, config, height, width, group_frames, kv_len):
        c = network.config
        wf, wh, ww = config.window
        self.rows, self.columns = -(-height // wh), -(-width // ww)
        self.spatial = self.rows * self.columns
        self.capacity = -(-group_frames // wf) + kv_len
        shape = (c.num_heads, self.capacity * self.spatial, wf * wh * ww, c.head_dim)
        make = lambda *s: [torch.zeros(s, dtype=network.dtype) for _ in range(c.num_layers)]
        self.k, self.v = make(*shape), make(*shape)
        self.pooled_k = make(shape[0], shape[1], shape[3])
        # Which spatial blocks are near each other, [query, key].
        row = torch.arange(self.spatial) // self.columns
        column = torch.arange(self.spatial) % self.columns
        half = config.local_range // 2
        near = lambda x: ((x[None] - x[:, None] + half) // config.local_range) == 0
        self.near = near(row) & near(column)
        self.cached = 0
        self.first_slot = 0
        self.frames_seen = 0

    def blocks(self, begin, end):
        """Block indices of temporal blocks begin..end-1 of the view, oldest first."""
        slots = (self.first_slot + torch.arange(begin, end)) % self.capacity
        return (slots[:, None] * self.spatial + torch.arange(self.spatial)).flatten()


def to_windows(x, grid, padded, window):
    """[tokens, heads, head_dim] -> [heads, blocks, window_tokens, head_dim], zero padding."""
    x = x.unflatten(0, grid)
    if padded != grid:
        x = F.pad(x, [0, 0, 0, 0] + [n for p, g in zip(padded[::-1], grid[::-1]) for n in (0, p - g)])
    (f, h, w), (wf, wh, ww) = padded, window
    x = x.view(f // wf, wf, h // wh, wh, w // ww, ww, *x.shape[3:])
    return x.permute(6, 0, 2, 4, 1, 3, 5, 7).reshape(x.shape[6], -1, wf * wh * ww, x.shape[7])


def from_windows(x, grid, padded, window):
    """The inverse: [1, tokens, heads * head_dim]."""
    (f, h, w), (wf, wh, ww) = padded, window
    heads, dim = x.shape[0], x.shape[3]
    x = x.view(heads, f // wf, h // wh, w // ww, wf, wh, ww, dim).permute(1, 4, 2, 5, 3, 6, 0, 7)
    x = x.reshape(f, h, w, heads * dim)[: grid[0], : grid[1], : grid[2]]
    return x.reshape(1, -1, heads * dim)


def select_blocks(pooled_q, pooled_k, allowed, top_k, diagonal):
    """pooled [heads, query_tbs, spatial, d], [heads, keys, d] -> mask [heads, tbs, spatial, keys].

    Keeps the top_k + 1 best pairs of each head and query temporal block and every tie.
    """
    scores = torch.einsum("htsd,hkd->htsk", pooled_q, pooled_k) * pooled_q.shape[-1] ** -0.5
    p = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    flat = p.flatten(2)
    rank = min(top_k, flat.shape[-1] - 1)
    theta = flat.topk(rank + 1, dim=-1).values[..., -1]
    mask = (p >= theta[..., None, None]) & allowed
    first = F.one_hot(allowed.int().argmax(-1), allowed.shape[-1]).bool()
    mask |= first & ~mask.any(-1, keepdim=True)
    if diagonal:
        tbs, spatial = mask.shape[1:3]
        mask |= torch.eye(tbs * spatial, dtype=torch.bool).view(tbs, spatial, -1)
    return mask.flatten(1, 2)  # [heads, query_blocks, key_blocks]


def attend_gathered(q, k, v, mask, key_blocks, attention):
    """Query blocks with the same number of keys go together, their keys gathered side by side."""
    heads, queries, tokens, dim = q.shape
    capacity = k.shape[1]
    rows = mask.flatten(0, 1)
    counts = rows.sum(-1)
    # Selected key blocks of each row as rows of k, ascending, all rows behind each other.
    row, key = rows.nonzero(as_tuple=True)
    index = row // queries * capacity + key_blocks[key]
    starts = counts.cumsum(0) - counts
    q, k, v = (t.reshape(-1, 1, tokens * dim) for t in (q, k, v))
    out = torch.empty_like(q)
    for count in counts.unique().tolist():
        which = (counts == count).nonzero().flatten()
        keys = index[(starts[which, None] + torch.arange(count)).flatten()]
        shape = (len(which), 1, -1, dim)
        out[which] = attention(
            q[which].view(shape), k[keys].view(shape), v[keys].view(shape)
        ).reshape(len(which), 1, -1)
    return out.view(heads, queries, tokens, dim)


def attend_masked(q, k, v, mask, key_blocks, attention):
    """Dense attention under the mask spread over tokens."""
    heads, queries, tokens, dim = q.shape
    if mask.numel() * tokens**2 > MASK_LIMIT:
        raise MemoryError(f"a mask of {mask.numel() * tokens**2 / 2**30:.1f} GiB over tokens")
    k, v = k[:, key_blocks].flatten(1, 2), v[:, key_blocks].flatten(1, 2)
    spread = mask.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)
    out = attention(q.flatten(1, 2)[None], k[None], v[None], spread[None])
    return out.view(heads, queries, tokens, dim)


ATTENTION = {"gathered": attend_gathered, "masked": attend_masked}


def run(network, config, noise, condition, state, time, text, kv_len, attention="gathered",
        masks=None):
    """One group: noise and condition [1, 16, f, h, w] -> flow; advances the state.

    `masks`, if a list, receives the chosen mask of every layer."""
    c = network.config
    latent = torch.cat([noise, condition], 1)
    grid = (latent.shape[2], latent.shape[3] // 2, latent.shape[4] // 2)
    padded = tuple(-(-g // w) * w for g, w in zip(grid, config.window))
    tbs = padded[0] // config.window[0]
    keys_tbs = state.cached + tbs
    angles = network.rotary(state.frames_seen, *grid)
    new_blocks = state.blocks(state.cached, keys_tbs)
    key_blocks = state.blocks(0, keys_tbs)
    pairs = state.spatial**2
    largest = max(pairs * tbs - 1, 1)
    ratio = config.top_k_ratio * config.ref_spatial_tokens / (grid[1] * grid[2])
    top_k = min(max(int(min(pairs * ratio, largest)), 1), largest)
    per_chunk = max(config.stream_chunk_size // config.window[0], 1)
    query_tb = torch.arange(tbs) + state.cached
    visible = torch.arange(keys_tbs) < ((query_tb // per_chunk + 1) * per_chunk)[:, None]
    allowed = visible[:, None, :, None] & state.near[None, :, None]  # [tbs, spatial, tbs, spatial]
    allowed = allowed.flatten(2)

    def attend(layer, weights, qkv):
        qk = network.normed_qk(weights, qkv, angles).to(network.dtype)
        v = qkv[0, :, 2 * c.dim :].view(-1, c.num_heads, c.head_dim)
        windows = lambda x: to_windows(x, grid, padded, config.window)
        q, k = windows(qk[:, 0]), windows(qk[:, 1])
        cache_k, cache_v, pooled_k = state.k[layer], state.v[layer], state.pooled_k[layer]
        cache_k[:, new_blocks] = k
        cache_v[:, new_blocks] = windows(v)
        pooled_k[:, new_blocks] = k.mean(2)
        mask = select_blocks(q.mean(2).unflatten(1, (tbs, -1)), pooled_k[:, key_blocks], allowed,
                             top_k, state.cached == 0)
        if masks is not None:
            masks.append(mask)
        y = ATTENTION[attention](q, cache_k, cache_v, mask, key_blocks, network.attention)
        return from_windows(y, grid, padded, config.window)

    flow = network.run(latent, time, text, attend)
    kept = min(keys_tbs, max(kv_len, 1))
    state.first_slot = (state.first_slot + keys_tbs - kept) % state.capacity
    state.cached = kept
    state.frames_seen += grid[0]
    return flow
