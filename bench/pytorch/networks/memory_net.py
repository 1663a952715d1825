"""The convolutional networks whose only memory is each memory block's last input: the tiny decoder
and encoder, the ultra decoders and the latent upsamplers v1 and v3.

Written from the specification and from src/models/{memory_net,tiny_decoder,latent_upsampler}.cc.
Pictures are [frames, channels, height, width] (one stream); the state is a list, one entry for each
layer that has any.
"""
import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def conv3x3(inputs, outputs, bias=True, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    def __init__(self, width, init, activation="relu"):
        super().__init__()
        act = ACTIVATIONS[activation]
        self.conv = nn.Sequential(
            conv3x3(2 * width, width), act(), conv3x3(width, width), act(), conv3x3(width, width)
        )
        self.act = act()
        self.init = init

    def run(self, x, memory):
        """Output and the memory of the next call."""
        if memory is None:
            memory = x[:1] if self.init == "replicate" else torch.zeros_like(x[:1])
        past = torch.cat([memory, x[:-1]]) if len(x) > 1 else memory
        y = self.conv(torch.cat([x, past], 1))
        return self.act(y.add_(x)), x[-1:].clone()


class TGrow(nn.Module):
    """Each frame becomes `frames` frames."""

    def __init__(self, width, frames, stored):
        super().__init__()
        self.frames = frames
        self.stored = stored
        self.conv = nn.Conv2d(width, width * stored, 1, bias=False)

    def forward(self, x):
        weight = self.conv.weight
        if self.frames != self.stored:
            weight = weight[-x.shape[1] * self.frames :]
        y = F.conv2d(x, weight)
        return y.reshape(-1, x.shape[1], *x.shape[2:]) if self.frames > 1 else y


class TPool(nn.Module):
    """`frames` frames become one; frames that do not fill one wait in the state."""

    def __init__(self, width, frames):
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width * frames, width, 1, bias=False)

    def run(self, x, pending):
        if pending is not None and len(pending):
            x = torch.cat([pending, x])
        whole = len(x) // self.frames * self.frames
        pending = x[whole:].clone()
        x = x[:whole]
        return self.conv(x.reshape(-1, x.shape[1] * self.frames, *x.shape[2:])), pending


class PixelShuffle(nn.Module):
    """A convolution to factor^2 times the channels and a pixel shuffle, stored as `name`.0."""

    def __init__(self, width, name):
        super().__init__()
        self.name = name
        setattr(self, name, nn.Sequential(conv3x3(width, 4 * width), nn.PixelShuffle(2)))

    def forward(self, x):
        return getattr(self, self.name)(x)


def run_list(layers, x, state):
    """Runs `layers`; entry i of `state` belongs to layer i."""
    for i, layer in enumerate(layers):
        if isinstance(layer, (MemBlock, TPool)):
            x, state[i] = layer.run(x, state.get(i))
        else:
            x = layer(x)
        if not len(x):
            return x
    return x


class TinyDecoder(nn.Module):
    """Layouts `tiny` and `ultra`: decoder.N. Latents [f, 16, h, w] -> pictures in [0, 1]."""

    def __init__(self, layout, widths, time_upscale=(2, 2), memory_init="zero", latent_channels=16):
        super().__init__()

        def enlarge(width, frames, stored):
            # A 1x1 convolution commutes with pixel repetition: it runs at the smaller size.
            grow = TGrow(width, frames, stored)
            if layout == "tiny":
                return [nn.Upsample(scale_factor=2), grow]
            return [PixelShuffle(width, "up"), grow]

        def blocks(width):
            return [MemBlock(width, memory_init) for _ in range(3)]

        w = widths
        layers = [Clamp(), conv3x3(latent_channels, w[0]), nn.ReLU()]
        layers += blocks(w[0]) + enlarge(w[0], 1, 1) + [conv3x3(w[0], w[1], bias=False)]
        layers += blocks(w[1]) + enlarge(w[1], time_upscale[0], 2)
        layers += [conv3x3(w[1], w[2], bias=False)]
        layers += blocks(w[2]) + enlarge(w[2], time_upscale[1], 2)
        layers += [conv3x3(w[2], w[3], bias=False), nn.ReLU(), conv3x3(w[3], 3)]
        self.decoder = nn.ModuleList(layers)
        order = list(layers)
        if layout == "tiny":
            for i in (6, 12, 18):
                order[i], order[i + 1] = order[i + 1], order[i]
        self.order = tuple(order)

    def run(self, latent, state):
        return run_list(self.order, latent, state)


class TinyEncoder(nn.Module):
    """Pictures [f, 3, h, w] in [0, 1] -> latents [f / 4, 16, h / 8, w / 8]."""

    def __init__(self, width, latent_channels=16, memory_init="zero"):
        super().__init__()
        layers = [conv3x3(3, width), nn.ReLU()]
        for frames in (2, 2, 1):
            layers += [TPool(width, frames), conv3x3(width, width, bias=False, stride=2)]
            layers += [MemBlock(width, memory_init) for _ in range(3)]
        self.encoder = nn.ModuleList(layers + [conv3x3(width, latent_channels)])

    def run(self, pictures, state):
        return run_list(self.encoder, pictures, state)


def shuffle_head(inputs, outputs, scale):
    """Convolutions and pixel shuffles for the factors 2, 2, ..., rest of `scale`."""
    if scale == 1:
        return nn.Sequential(conv3x3(inputs, outputs))
    layers = []
    while scale > 1:
        factor = 2 if scale % 2 == 0 else scale
        layers += [conv3x3(inputs, outputs * factor**2), nn.PixelShuffle(factor)]
        inputs = outputs
        scale //= factor
    return nn.Sequential(*layers)


class UpsamplerV1(nn.Module):
    """Latents [f, 16, h, w] -> [f, 16, h * scale, w * scale]."""

    def __init__(self, scale, mid_channels, num_blocks, activation="relu", residual=False,
                 residual_scale=1.0, memory_init="replicate", in_channels=16, out_channels=16):
        super().__init__()
        self.pre_shuffle = shuffle_head(in_channels, mid_channels, scale)
        self.act = ACTIVATIONS[activation]()
        self.blocks = nn.ModuleList(
            MemBlock(mid_channels, memory_init, activation) for _ in range(num_blocks)
        )
        self.final = conv3x3(mid_channels, out_channels)
        self.residual_scale = residual_scale
        self.skip_up = shuffle_head(in_channels, out_channels, scale) if residual else None

    def run(self, latent, state):
        x = self.act(self.pre_shuffle(latent))
        y = self.final(run_list(self.blocks, x, state))
        return y if self.skip_up is None else self.skip_up(latent) + self.residual_scale * y


class UpsamplerV3(nn.Module):
    """As v1 for powers of two, also in time; built as 16 -> 3, 8x and 4x it is Ultra Decoder V3."""

    def __init__(self, scale, temporal_scale=1, stage_channels=(256, 128, 64),
                 blocks_per_stage=(3, 3, 3), activation="relu", residual=False, residual_scale=1.0,
                 memory_init="replicate", in_channels=16, out_channels=16):
        super().__init__()
        w = list(stage_channels)
        act = ACTIVATIONS[activation]
        spatial = scale.bit_length() - 1  # doublings, from the first stage on
        temporal = temporal_scale.bit_length() - 1  # doublings, up to the last stage
        layers = [conv3x3(in_channels, w[0]), act()]
        for stage in range(3):
            layers += [MemBlock(w[stage], memory_init, activation)
                       for _ in range(blocks_per_stage[stage])]
            layers.append(PixelShuffle(w[stage], "block") if stage < spatial else nn.Identity())
            grow = 2 if stage >= 3 - temporal else 1
            layers.append(TGrow(w[stage], grow, grow))
            if stage < 2:
                layers.append(conv3x3(w[stage], w[stage + 1], bias=False))
        layers += [act(), conv3x3(w[2], out_channels)]
        self.net = nn.ModuleList(layers)
        self.residual_scale = residual_scale
        self.temporal_scale = temporal_scale
        self.skip_up = None
        if residual:
            single = conv3x3(in_channels, out_channels)
            self.skip_up = single if scale == 1 else shuffle_head(in_channels, out_channels, scale)

    def run(self, latent, state):
        y = run_list(self.net, latent, state)
        if self.skip_up is None:
            return y
        skip = self.skip_up(latent).repeat_interleave(self.temporal_scale, 0)
        return skip + self.residual_scale * y


def prepare(network, dtype, memory_format):
    """Weights of `dtype` in the memory format that the pictures will have, ReLU in place."""
    network.eval().requires_grad_(False).to(dtype=dtype)
    for module in network.modules():
        if isinstance(module, (nn.ReLU, nn.SiLU)):
            module.inplace = True
    return network.to(memory_format=memory_format)
