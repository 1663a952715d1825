"""The UMT5 text encoder: T5 with a table of relative positions in every layer.

Written from the specification and from src/models/umt5.cc.
"""
import torch
import torch.nn.functional as F
from torch import nn

from . import forms

EPS = 1e-6


class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Attention(nn.Module):
    def __init__(self, dim, dim_attn):
        super().__init__()
        self.q = nn.Linear(dim, dim_attn, bias=False)
        self.k = nn.Linear(dim, dim_attn, bias=False)
        self.v = nn.Linear(dim, dim_attn, bias=False)
        self.o = nn.Linear(dim_attn, dim, bias=False)


class FeedForward(nn.Module):
    def __init__(self, dim, dim_ffn):
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(dim, dim_ffn, bias=False), nn.GELU(approximate="tanh")
        )
        self.fc1 = nn.Linear(dim, dim_ffn, bias=False)
        self.fc2 = nn.Linear(dim_ffn, dim, bias=False)

    def forward(self, x):
        return self.fc2(self.fc1(x).mul_(self.gate(x)))


class Positions(nn.Module):
    def __init__(self, buckets, heads):
        super().__init__()
        self.embedding = nn.Embedding(buckets, heads)


class Block(nn.Module):
    def __init__(self, dim, dim_attn, dim_ffn, heads, buckets):
        super().__init__()
        self.norm1 = Norm(dim)
        self.attn = Attention(dim, dim_attn)
        self.norm2 = Norm(dim)
        self.ffn = FeedForward(dim, dim_ffn)
        self.pos_embedding = Positions(buckets, heads)


class Umt5Encoder(nn.Module):
    def __init__(self, vocab_size, dim, dim_attn, dim_ffn, num_heads, num_layers, num_buckets=32,
                 max_distance=128):
        super().__init__()
        self.heads = num_heads
        self.buckets = num_buckets
        self.max_distance = max_distance
        self.table = (None, None)
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(
            Block(dim, dim_attn, dim_ffn, num_heads, num_buckets) for _ in range(num_layers)
        )
        self.norm = Norm(dim)

    def bucket_table(self, length, keys):
        """Bucket of every (query, key) pair, [length, keys]; depends on the lengths alone."""
        if self.table[0] != (length, keys):
            relative = torch.arange(keys)[None] - torch.arange(length)[:, None]
            half = self.buckets // 2
            exact = half // 2
            distance = relative.abs()
            far = torch.log(distance.clamp(min=1).float() / exact)
            far = far / torch.log(torch.tensor(self.max_distance / exact)) * (half - exact)
            far = (exact + far.long()).clamp(max=half - 1)
            bucket = torch.where(distance < exact, distance, far) + (relative > 0) * half
            self.table = ((length, keys), bucket)
        return self.table[1]

    def run(self, ids, lengths, zero_padding=True):
        """ids [batch, length], lengths [batch] -> [batch, length, dim]."""
        batch, length = ids.shape
        used = torch.arange(length) < lengths[:, None]  # [batch, length]
        # A single text needs no mask: the keys past its end are cut off.
        keys = int(lengths.max()) if batch == 1 else length
        buckets = self.bucket_table(length, keys)
        x = self.token_embedding(ids)
        for block in self.blocks:
            qkv = block.attn.qkv(block.norm1(x)).view(batch, length, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            bias = block.pos_embedding.embedding.weight.t()[:, buckets][None]
            if batch > 1:
                bias = bias.masked_fill(~used[:, None, None], -torch.inf)
            y = self.attention(
                q, k[:, :, :keys], v[:, :, :keys], attn_mask=bias, scale=1.0
            )
            x = x + block.attn.o(y.transpose(1, 2).reshape(batch, length, -1))
            x = x + block.ffn(block.norm2(x))
        x = self.norm(x)
        return x.masked_fill_(~used[..., None], 0) if zero_padding else x


def prepare(network, dtype, form=""):
    """`form`: see forms.py."""
    network.eval().requires_grad_(False).to(dtype)
    for block in network.blocks:
        a = block.attn
        joined = torch.cat([a.q.weight, a.k.weight, a.v.weight])
        a.qkv = nn.Linear(*joined.shape[::-1], bias=False, device="meta")
        a.qkv.weight = nn.Parameter(joined, False)
        del a.q, a.k, a.v
    network.attention = forms.attention_of(form)
    if "onednn" in form:
        forms.pack_linears(network)
    return network
