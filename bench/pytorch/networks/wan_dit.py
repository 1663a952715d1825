"""The Wan2.1 diffusion transformer, causal with a KV cache and bidirectional.

Written from the specification and from src/models/wan_dit.cc. What does not depend on the latent
(text keys and values, the timestep's modulation, rotary tables) is computed before the pass.
One timestep per pass, batch 1: the modulation then is the affine part of the layer norms.
"""
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from . import forms


@dataclasses.dataclass
class WanDitConfig:
    dim: int = 1536
    ffn_dim: int = 8960
    num_layers: int = 30
    num_heads: int = 12
    in_dim: int = 16
    out_dim: int = 16
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6

    @property
    def head_dim(self):
        return self.dim // self.num_heads


class Norm(nn.Module):
    """A norm's weight alone; the arithmetic is at its place of use."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = Norm(dim)
        self.norm_k = Norm(dim)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config.dim
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        self.self_attn = Attention(dim)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = Attention(dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, dim),
        )


class Head(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head = nn.Linear(config.dim, config.out_dim * 4)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))


def join(*linears):
    """One nn.Linear whose output is the outputs of `linears` side by side."""
    joined = nn.Linear(linears[0].in_features, sum(l.out_features for l in linears), device="meta")
    joined.weight = nn.Parameter(torch.cat([l.weight for l in linears]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([l.bias for l in linears]), requires_grad=False)
    return joined


class WanDit(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config.dim
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.rotary = None

    def prepare(self, dtype, form=""):
        """Joins q, k, v and k, v of the text; afterwards published names no longer load.

        `form`: see forms.py."""
        self.eval().requires_grad_(False).to(dtype)
        self.dtype = dtype
        for block in self.blocks:
            a = block.self_attn
            a.qkv = join(a.q, a.k, a.v)
            a.norm_qk = torch.stack([a.norm_q.weight, a.norm_k.weight])  # [2, dim]
            del a.q, a.k, a.v
            c = block.cross_attn
            c.kv = join(c.k, c.v)
            del c.k, c.v
        # A convolution whose kernel is its stride is a product over patches.
        convolution = self.patch_embedding
        self.patch_embedding = nn.Linear(4 * self.config.in_dim, self.config.dim, device="meta")
        self.patch_embedding.weight = nn.Parameter(convolution.weight.flatten(1), False)
        self.patch_embedding.bias = convolution.bias
        self.attention = forms.attention_of(form)
        if "onednn" in form:
            forms.pack_linears(self)
        self.rotary = RotaryTable(self.config.head_dim)
        return self

    def time(self, timestep):
        """Norm weights, norm biases and gates of every block and the head's affine part."""
        half = self.config.freq_dim // 2
        steps = torch.arange(half, dtype=torch.float64)
        angles = timestep * torch.pow(10000.0, -steps / half)
        e = torch.cat([angles.cos(), angles.sin()])[None].to(self.dtype)  # [1, freq_dim]
        e = self.time_embedding(e)
        e0 = self.time_projection(e).view(1, 6, self.config.dim)
        blocks = []
        for block in self.blocks:
            m = (block.modulation + e0).float()[0]  # [6, dim]
            blocks.append([
                (1 + m[1]).to(self.dtype), m[0].to(self.dtype), m[2].to(self.dtype),
                (1 + m[4]).to(self.dtype), m[3].to(self.dtype), m[5].to(self.dtype),
            ])
        h = (self.head.modulation + e[:, None]).float()[0]  # [2, dim]: shift, scale
        return blocks, ((1 + h[1]).to(self.dtype), h[0].to(self.dtype))

    def text(self, embeddings):
        """Keys and values [1, heads, text_len, head_dim] of every block."""
        c = self.config
        context = self.text_embedding(embeddings.to(self.dtype))
        layers = []
        for block in self.blocks:
            k, v = block.cross_attn.kv(context).chunk(2, -1)
            k = F.rms_norm(k, (c.dim,), block.cross_attn.norm_k.weight, c.eps)
            heads = (1, -1, c.num_heads, c.head_dim)
            layers.append([t.reshape(heads).transpose(1, 2).contiguous() for t in (k, v)])
        return layers

    def normed_qk(self, attention, qkv, angles):
        """q and k after norm and rotary embedding: [tokens, 2, heads, head_dim]."""
        c = self.config
        tokens = qkv.shape[1]
        qk = qkv[0, :, : 2 * c.dim].view(tokens, 2, c.dim)
        qk = F.rms_norm(qk, (c.dim,), None, c.eps) * attention.norm_qk
        pairs = torch.view_as_complex(qk.float().view(tokens, 2, c.num_heads, -1, 2))
        return torch.view_as_real(pairs * angles).view(tokens, 2, c.num_heads, c.head_dim)

    def run(self, latent, time, text, attend):
        """latent [1, in_dim, f, h, w] -> [1, out_dim, f, h, w]; attend(layer, weights, qkv)."""
        c = self.config
        d = (c.dim,)
        _, _, f, h, w = latent.shape
        x = latent.view(c.in_dim, f, h // 2, 2, w // 2, 2).permute(1, 2, 4, 0, 3, 5)
        x = x.reshape(1, f * h * w // 4, c.in_dim * 4)
        x = self.patch_embedding(x)  # [1, tokens, dim]
        for i, (block, m) in enumerate(zip(self.blocks, time[0])):
            n = F.layer_norm(x, d, m[0], m[1], c.eps)
            y = attend(i, block.self_attn, block.self_attn.qkv(n))
            x = torch.addcmul(x, block.self_attn.o(y), m[2])
            n = block.norm3(x)
            q = F.rms_norm(block.cross_attn.q(n), d, block.cross_attn.norm_q.weight, c.eps)
            q = q.view(1, -1, c.num_heads, c.head_dim).transpose(1, 2)
            y = self.attention(q, *text[i]).transpose(1, 2).reshape(n.shape)
            x = x + block.cross_attn.o(y)
            n = F.layer_norm(x, d, m[3], m[4], c.eps)
            x = torch.addcmul(x, block.ffn(n), m[5])
        x = self.head.head(F.layer_norm(x, d, *time[1], c.eps))  # [1, tokens, 4 * out_dim]
        x = x.view(f, h // 2, w // 2, 2, 2, c.out_dim).permute(5, 0, 1, 3, 2, 4)
        return x.reshape(1, c.out_dim, f, h, w)


class RotaryTable:
    """Rotations of the pairs of a head: frame, row and column axes, tables of 1024 positions."""

    def __init__(self, head_dim):
        pairs = head_dim // 2
        side = pairs // 3
        positions = torch.arange(1024, dtype=torch.float64)
        self.axes = []
        for count in (pairs - 2 * side, side, side):
            steps = torch.arange(count, dtype=torch.float64) / count
            angles = torch.outer(positions, torch.pow(10000.0, -steps))
            self.axes.append(torch.polar(torch.ones_like(angles), angles).to(torch.complex64))
        self.last = (None, None)

    def __call__(self, first_frame, frames, height, width):
        """[tokens, 1, 1, head_dim / 2] complex; the last table is kept."""
        key = (first_frame, frames, height, width)
        if self.last[0] != key:
            grid = (frames, height, width, -1)
            table = torch.cat([
                self.axes[0][first_frame : first_frame + frames, None, None].expand(grid),
                self.axes[1][None, :height, None].expand(grid),
                self.axes[2][None, None, :width].expand(grid),
            ], -1)
            self.last = (key, table.flatten(0, 2)[:, None, None])
        return self.last[1]


class KvState:
    """Caches [1, heads, frames * tokens, head_dim] of all layers, a ring of frame slots."""

    def __init__(self, network, frames, tokens_per_frame, sink=0):
        c = network.config
        shape = (frames * tokens_per_frame, c.num_heads, c.head_dim)
        self.k = [torch.zeros(shape, dtype=network.dtype) for _ in range(c.num_layers)]
        self.v = [torch.zeros(shape, dtype=network.dtype) for _ in range(c.num_layers)]
        self.frames = frames
        self.tokens = tokens_per_frame
        self.sink = sink
        self.slots = []  # of the visible frames, oldest first

    def append(self, count):
        """Slots of `count` new frames; past the capacity the oldest after the sink give way."""
        new = []
        for _ in range(count):
            if len(self.slots) < self.frames:
                slot = len(self.slots)
            else:
                slot = self.slots.pop(self.sink)
            self.slots.append(slot)
            new.append(slot)
        return new

    def rows(self, slots):
        """Token rows of `slots`: a slice where they are neighbours, else an index."""
        if all(b == a + 1 for a, b in zip(slots, slots[1:])):
            return slice(slots[0] * self.tokens, (slots[-1] + 1) * self.tokens)
        return torch.cat([torch.arange(s * self.tokens, (s + 1) * self.tokens) for s in slots])


def run_causal(network, latent, state, rows, first_frame, time, text):
    """One forward of a chunk; keys and values go to `rows` of the caches."""
    c = network.config
    grid = (latent.shape[2], latent.shape[3] // 2, latent.shape[4] // 2)
    angles = network.rotary(first_frame, *grid)
    visible = len(state.slots) * state.tokens

    def attend(layer, weights, qkv):
        qk = network.normed_qk(weights, qkv, angles)
        k, v = state.k[layer], state.v[layer]
        k[rows] = qk[:, 1].to(k.dtype)
        v[rows] = qkv[0, :, 2 * c.dim :].view(-1, c.num_heads, c.head_dim)
        y = network.attention(
            qk[:, 0].to(k.dtype).transpose(0, 1)[None],
            k[:visible].transpose(0, 1)[None],
            v[:visible].transpose(0, 1)[None],
        )
        return y.transpose(1, 2).reshape(1, -1, c.dim)

    return network.run(latent, time, text, attend)


def run_bidirectional(network, latent, time, text):
    """All frames attend to each other."""
    c = network.config
    grid = (latent.shape[2], latent.shape[3] // 2, latent.shape[4] // 2)
    angles = network.rotary(0, *grid)

    def attend(_, weights, qkv):
        qk = network.normed_qk(weights, qkv, angles).to(network.dtype)
        v = qkv[0, :, 2 * c.dim :].view(-1, c.num_heads, c.head_dim)
        y = network.attention(
            qk[:, 0].transpose(0, 1)[None], qk[:, 1].transpose(0, 1)[None],
            v.transpose(0, 1)[None],
        )
        return y.transpose(1, 2).reshape(1, -1, c.dim)

    return network.run(latent, time, text, attend)
