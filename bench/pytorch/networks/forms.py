"""Two choices that every transformer leaves open, named by the parts of a form ("matmul_onednn").

Products: nn.Linear (MKL in the published wheel; on CPUs of other makers than Intel its f32 kernels
stop at AVX2) or `onednn`, the packed product of oneDNN that torch.compile puts in its place.
Attention: F.scaled_dot_product_attention or `matmul`, two products and a softmax (whose bf16 scores
are rounded, which the first avoids).
"""
import torch
import torch.nn.functional as F
from torch import nn


class PackedLinear(nn.Module):
    def __init__(self, linear, rows, gelu=False):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias
        self.post = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.post)


def pack_linears(network, rows=256):
    """Replaces every nn.Linear; a GELU behind one in a Sequential joins it."""
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                if isinstance(child[i], nn.Linear) and isinstance(child[i + 1], nn.GELU):
                    child[i] = PackedLinear(child[i], rows, gelu=True)
                    child[i + 1] = nn.Identity()
        if isinstance(child, nn.Linear):
            setattr(network, name, PackedLinear(child, rows))
        else:
            pack_linears(child, rows)


def matmul_attention(q, k, v, attn_mask=None, scale=None):
    scores = torch.matmul(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-1, -2))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill_(~attn_mask, -torch.inf)
        else:
            scores += attn_mask
    return torch.matmul(scores.softmax(-1), v)


def attention_of(form):
    return matmul_attention if "matmul" in form else F.scaled_dot_product_attention
