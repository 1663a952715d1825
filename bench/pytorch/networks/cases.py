"""Builds the cases of bench/network_cases.json: one steady-state call of one network.

Counterpart of bench/bench_networks.cc; what is outside the measured call there is outside here.
"""
import torch

from . import memory_net, sparse_sr_dit, umt5, wan_dit, wan_vae


def randomize(network, seed=7):
    """Weights of a size that keeps activations of order one; norms near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        p.requires_grad_(False)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            p.fill_(1)
        elif name.endswith("bias"):
            p.normal_(0, 0.02, generator=generator)
        elif name.endswith("modulation"):
            p.normal_(0, 0.3, generator=generator)
        else:
            p.normal_(0, p[0].numel() ** -0.5, generator=generator)
    return network


def normal(shape, dtype, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def text_of(network, dtype):
    c = network.config
    return network.text(normal((1, c.text_len, c.text_dim), dtype, 90))


def latent_of(case, channels, dtype, seed=1, key="latent"):
    """[1, channels, frames, height, width] of the sizes under `key`."""
    return normal((1, channels, *case[key]), dtype, seed)


def frames_of(case, channels, dtype, memory_format, key="latent"):
    """[frames, channels, height, width]."""
    frames, height, width = case[key]
    x = normal((frames, channels, height, width), dtype)
    return x.contiguous(memory_format=memory_format)


def causal_wan(case, dtype, form):
    config = wan_dit.WanDitConfig(**case["config"])
    network = randomize(wan_dit.WanDit(config)).prepare(dtype, form)
    latent = latent_of(case, config.in_dim, dtype)
    _, _, chunk, height, width = latent.shape
    capacity = case["cache_frames"]
    state = wan_dit.KvState(network, capacity, height // 2 * (width // 2))
    time = network.time(500.0)
    text = text_of(network, dtype)
    for first in range(0, capacity, chunk):
        rows = state.rows(state.append(chunk))
        wan_dit.run_causal(network, latent, state, rows, first, time, text)
    return network, lambda: wan_dit.run_causal(network, latent, state, rows, first, time, text)


def wan_bidirectional(case, dtype, form):
    config = wan_dit.WanDitConfig(**case["config"])
    network = randomize(wan_dit.WanDit(config)).prepare(dtype, form)
    latent = latent_of(case, config.in_dim, dtype)
    time = network.time(500.0)
    text = text_of(network, dtype)
    return network, lambda: wan_dit.run_bidirectional(network, latent, time, text)


def sparse_sr(case, dtype, form):
    config = sparse_sr_dit.SparseSrConfig.from_json(case["config"])
    network = randomize(wan_dit.WanDit(config.transformer)).prepare(dtype, form)
    channels = config.transformer.in_dim // 2
    noise = latent_of(case, channels, dtype, 1)
    condition = latent_of(case, channels, dtype, 2)
    _, _, frames, height, width = noise.shape
    kv_len = case["kv_len"]
    state = sparse_sr_dit.SparseSrState(network, config, height // 2, width // 2, frames, kv_len)
    time = network.time(1000.0)
    text = text_of(network, dtype)
    return network, lambda: sparse_sr_dit.run(
        network, config, noise, condition, state, time, text, kv_len, attention=form.split("_")[0]
    )


def convolutional(network, case, dtype, form, channels, key="latent"):
    memory_format = getattr(torch, form)
    network = memory_net.prepare(randomize(network), dtype, memory_format)
    x = frames_of(case, channels, dtype, memory_format, key)
    state = {}
    return network, lambda: network.run(x, state)


def latent_upsampler(case, dtype, form):
    config = dict(case["config"])
    kind = memory_net.UpsamplerV1 if config.pop("version") == 1 else memory_net.UpsamplerV3
    return convolutional(kind(**config), case, dtype, form, config.get("in_channels", 16))


def tiny_decoder(case, dtype, form):
    config = dict(case["config"])
    channels = config.get("latent_channels", 16)
    if config["layout"] == "net":
        network = memory_net.UpsamplerV3(
            8, 4, config["widths"], memory_init=config["memory_init"], in_channels=channels,
            out_channels=3,
        )
    else:
        network = memory_net.TinyDecoder(**config)
    return convolutional(network, case, dtype, form, channels)


def tiny_encoder(case, dtype, form):
    network = memory_net.TinyEncoder(**case["config"])
    return convolutional(network, case, dtype, form, 3, "pictures")


def vae(case, dtype, form, decode):
    network = wan_vae.WanVae(**case["config"], parts=("decoder",) if decode else ("encoder",))
    network = wan_vae.prepare(randomize(network), dtype, form)
    state = {}
    if decode:
        latent = latent_of(case, case["config"]["z_dim"], dtype)
        return network, lambda: network.decode(latent, state)
    pictures = latent_of(case, 3, dtype, key="pictures")
    network.encode(pictures[:, :, :1], state)
    return network, lambda: network.encode(pictures, state)


def umt5_encoder(case, dtype, form):
    config = case["config"]
    network = umt5.prepare(randomize(umt5.Umt5Encoder(**config)), dtype, form)
    length = case["length"]
    ids = torch.zeros(1, case["tokens"], dtype=torch.int64)
    ids[0, :length] = (torch.arange(length) * 37 + 5) % config["vocab_size"]
    lengths = torch.tensor([length])
    return network, lambda: network.run(ids, lengths)


DENSE = ("sdpa", "sdpa_onednn", "matmul_onednn")
SPARSE = ("gathered", "gathered_onednn", "gathered_matmul_onednn", "masked_onednn")

# module of a case: how it is built, and the forms of it that are tried.
BUILDERS = {
    "causal_wan": (causal_wan, DENSE),
    "wan_bidirectional": (wan_bidirectional, DENSE),
    "sparse_sr_dit": (sparse_sr, SPARSE),
    "latent_upsampler": (latent_upsampler, ("contiguous_format", "channels_last")),
    "tiny_decoder": (tiny_decoder, ("contiguous_format", "channels_last")),
    "tiny_encoder": (tiny_encoder, ("contiguous_format", "channels_last")),
    "wan_vae_decode": (lambda *a: vae(*a, decode=True), wan_vae.FORMS),
    "wan_vae_encode": (lambda *a: vae(*a, decode=False), wan_vae.FORMS),
    "umt5_encoder": (umt5_encoder, DENSE),
}
