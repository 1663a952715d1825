"""The Wan2.1 video autoencoder, streaming: causal 3-D convolutions, 4x in time and 8x in space.

Written from the specification and from src/models/wan_vae.cc. Pictures and features are
[frames, channels, height, width] of one video inside, [1, channels, frames, height, width] outside.
A causal convolution is tried in several forms (FORMS): a 3-D convolution, or 2-D convolutions of
the frames under its taps, contiguous or channels last.
"""
import torch
import torch.nn.functional as F
from torch import nn

FORMS = ("conv3d", "conv3d_channels_last", "stacked", "stacked_channels_last", "taps_channels_last")

MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
DEVIATION = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
             3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


class CausalConv(nn.Conv3d):
    """3 taps in time; the state keeps the last two input frames."""

    def __init__(self, inputs, outputs, kernel):
        super().__init__(inputs, outputs, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))
        self.form = "conv3d"

    def run(self, x, state, keep=2, stride=1):
        past = state.get(self)
        if past is None:
            past = x.new_zeros(keep, *x.shape[1:])
        x = torch.cat([past, x])
        state[self] = x[-keep:].clone()
        frames = (len(x) - 3) // stride + 1
        padding = self.padding[1:]
        if self.form.startswith("conv3d"):
            y = F.conv3d(x.transpose(0, 1)[None], self.weight, self.bias, (stride, 1, 1),
                         self.padding)
            return y[0].transpose(0, 1)
        taps = [x[tap : tap + stride * frames : stride] for tap in range(3)]
        if self.form.startswith("stacked"):
            return F.conv2d(torch.cat(taps, 1), self.stacked, self.bias, 1, padding)
        y = F.conv2d(taps[0], self.tap_weights[0], self.bias, 1, padding)
        for tap, weight in zip(taps[1:], self.tap_weights[1:]):
            y += F.conv2d(tap, weight, None, 1, padding)
        return y


class Norm(nn.Module):
    """Each position's channels divided by their root mean square."""

    def __init__(self, channels, spatial_axes=3):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *[1] * spatial_axes))

    def forward(self, x):
        # max(|x|, 1e-12) of the specification: an eps far below any real mean square.
        channels = x.shape[1]
        y = F.rms_norm(x.permute(0, 2, 3, 1), (channels,), self.gamma.flatten(), 1e-24)
        return y.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.residual = nn.ModuleList([
            Norm(inputs), nn.SiLU(), CausalConv(inputs, outputs, (3, 3, 3)),
            Norm(outputs), nn.SiLU(), nn.Identity(), CausalConv(outputs, outputs, (3, 3, 3)),
        ])
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else None

    def run(self, x, state):
        r = self.residual
        y = r[2].run(F.silu(r[0](x), inplace=True), state)
        y = r[6].run(F.silu(r[3](y), inplace=True), state)
        if self.shortcut is not None:
            x = F.conv2d(x, self.shortcut.weight[:, :, 0], self.shortcut.bias)
        return y.add_(x)


class AttentionBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = Norm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def run(self, x, state):
        frames, _, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None]
        y = F.scaled_dot_product_attention(*qkv.chunk(3, -1))[:, 0]
        return self.proj(y.transpose(1, 2).reshape(frames, -1, height, width)).add_(x)


class Resample(nn.Module):
    def __init__(self, channels, outputs, up, temporal):
        super().__init__()
        conv = nn.Conv2d(channels, outputs, 3, 1 if up else 2, 1 if up else 0)
        change = nn.Upsample(scale_factor=2) if up else nn.ZeroPad2d((0, 1, 0, 1))
        self.up = up
        self.resample = nn.Sequential(change, conv)
        self.time_conv = None
        if temporal:
            self.time_conv = CausalConv(channels, 2 * channels if up else channels, (3, 1, 1))

    def run(self, x, state):
        first = state["first"]
        if self.up:
            if self.time_conv is not None and not first:
                y = self.time_conv.run(x, state)  # even frames' channels, then odd frames'
                x = y.reshape(-1, x.shape[1], *x.shape[2:])
            return self.resample(x)
        x = self.resample(x)
        if self.time_conv is None:
            return x
        if not first:
            return self.time_conv.run(x, state, keep=1, stride=2)
        state[self.time_conv] = x[-1:].clone()
        return x


class Half(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, decoder, dim, z_dim, dim_mult, num_res_blocks, temporal):
        super().__init__()
        widths = [dim * m for m in dim_mult]
        levels = len(widths)
        if decoder:
            widths, temporal = widths[::-1], temporal[::-1]
        width = widths[0] if decoder else dim
        self.decoder = decoder
        self.conv1 = CausalConv(z_dim if decoder else 3, width, (3, 3, 3))
        stages = []
        for level, out in enumerate(widths):
            for _ in range(num_res_blocks + decoder):
                stages.append(ResidualBlock(width, out))
                width = out
            if level + 1 < levels:
                smaller = width // 2 if decoder else width
                stages.append(Resample(width, smaller, decoder, bool(temporal[level])))
                width = smaller
        setattr(self, "upsamples" if decoder else "downsamples", nn.ModuleList(stages))
        inner = widths[0] if decoder else width
        self.middle = nn.ModuleList([
            ResidualBlock(inner, inner), AttentionBlock(inner), ResidualBlock(inner, inner)
        ])
        self.head = nn.ModuleList([
            Norm(width), nn.SiLU(), CausalConv(width, 3 if decoder else 2 * z_dim, (3, 3, 3))
        ])

    def run(self, x, state):
        x = self.conv1.run(x, state)
        if self.decoder:
            parts = [*self.middle, *self.upsamples]
        else:
            parts = [*self.downsamples, *self.middle]
        for part in parts:
            x = part.run(x, state)
        return self.head[2].run(F.silu(self.head[0](x), inplace=True), state)


class WanVae(nn.Module):
    def __init__(self, dim=96, z_dim=16, dim_mult=(1, 2, 4, 4), num_res_blocks=2,
                 temporal_downsample=(0, 1, 1), mean=MEAN, deviation=DEVIATION,
                 parts=("encoder", "decoder")):
        super().__init__()
        self.z_dim = z_dim
        sizes = (dim, z_dim, list(dim_mult), num_res_blocks, list(temporal_downsample))
        if "encoder" in parts:
            self.encoder = Half(False, *sizes)
            self.conv1 = nn.Conv3d(2 * z_dim, 2 * z_dim, 1)
        if "decoder" in parts:
            self.decoder = Half(True, *sizes)
            self.conv2 = nn.Conv3d(z_dim, z_dim, 1)
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.deviation = torch.tensor(deviation).view(-1, 1, 1)
        self.memory_format = torch.contiguous_format

    def parts(self, x, state):
        """The first frame of a video goes alone, by rules of its own."""
        x = x[0].transpose(0, 1)
        for first, part in ((True, x[:1]), (False, x[1:])) if "first" not in state else ((False, x),):
            state["first"] = first
            if len(part):
                yield part.contiguous(memory_format=self.memory_format)

    def decode(self, latent, state):
        """[1, z_dim, f, h, w] -> [1, 3, n, 8h, 8w]."""
        out = []
        for z in self.parts(latent, state):
            z = z * self.deviation + self.mean
            z = F.conv2d(z, self.conv2.weight[:, :, 0], self.conv2.bias)
            out.append(self.decoder.run(z, state))
        return (torch.cat(out) if len(out) > 1 else out[0]).transpose(0, 1)[None]

    def encode(self, pictures, state):
        """[1, 3, n, h, w] -> normalised means [1, z_dim, f, h / 8, w / 8]."""
        out = []
        for x in self.parts(pictures, state):
            h = self.encoder.run(x, state)
            h = F.conv2d(h, self.conv1.weight[:, :, 0], self.conv1.bias)[:, : self.z_dim]
            out.append((h - self.mean) / self.deviation)
        return (torch.cat(out) if len(out) > 1 else out[0]).transpose(0, 1)[None]


def prepare(network, dtype, form):
    """`form` is one of FORMS."""
    network.eval().requires_grad_(False).to(dtype)
    network.mean = network.mean.to(dtype)
    network.deviation = network.deviation.to(dtype)
    last = form.endswith("channels_last")
    if last:
        network.memory_format = torch.channels_last
    for module in network.modules():
        if isinstance(module, CausalConv):
            module.form = form
            if form.startswith("conv3d"):
                if last:
                    module.to(memory_format=torch.channels_last_3d)
            else:
                memory_format = network.memory_format
                taps = [w.contiguous(memory_format=memory_format) for w in module.weight.unbind(2)]
                if form.startswith("stacked"):
                    module.stacked = torch.cat(taps, 1).contiguous(memory_format=memory_format)
                else:
                    module.tap_weights = taps
                del module.weight
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=network.memory_format)
    return network
