#!/usr/bin/env python3
"""Replays golden files through the PyTorch networks: check.py PATH... (files or folders).

Prints the relative error of every output; exit status 1 if one is over the limit or a mask differs.
"""
import argparse
import json
import pathlib
import sys

import torch
from safetensors import safe_open

from networks import cases, memory_net, sparse_sr_dit, umt5, wan_dit, wan_vae

LIMIT = 1e-4
NO_NETWORK = ("flow_match_scheduler", "tokenizer_t5", "lora_merge")


class Golden:
    def __init__(self, path):
        self.path = path
        self.rows = []
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.module = metadata.get("module", "")
        self.config = json.loads(metadata.get("config", "{}"))

    def __getitem__(self, name):
        tensor = self.tensors[name]
        return tensor.float() if tensor.is_floating_point() else tensor

    def __contains__(self, name):
        return name in self.tensors

    def load(self, network, also=()):
        """Binds every weight of the file; `also` are networks that share it."""
        weights = {n[2:]: self[n] for n in self.tensors if n.startswith("w.")}
        used = set()
        for part in (network, *also):
            own = part.state_dict().keys()
            part.load_state_dict({n: weights[n] for n in own})
            used |= own
        if used != weights.keys():
            raise SystemExit(f"{self.path}: unused {sorted(weights.keys() - used)}")
        return network

    def compare(self, name, got):
        want = self[name]
        error = ((got.float().reshape(want.shape) - want).norm() / want.norm()).item()
        self.row(name, error <= LIMIT, f"relative error {error:.2e}")

    def compare_equal(self, name, got):
        want = self[name]
        same = bool((torch.as_tensor(got).reshape(want.shape).to(want.dtype) == want).all())
        self.row(name, same, "equal" if same else "differs")

    def row(self, name, good, text):
        self.rows.append(good)
        print(f"  {'ok  ' if good else 'FAIL'} {name:24} {text}")


def transformer(g, form):
    names = [f for f in wan_dit.WanDitConfig.__dataclass_fields__ if f in g.config]
    config = wan_dit.WanDitConfig(**{name: g.config[name] for name in names})
    network = g.load(wan_dit.WanDit(config)).prepare(torch.float32, form)
    stored = g["in.context"]
    context = torch.zeros(1, config.text_len, config.text_dim)
    context[:, : stored.shape[1]] = stored
    return network, network.text(context)


def every_form(forms):
    """Replays a file once in each form that may be measured."""

    def decorate(replay):
        def run(g):
            for form in forms:
                print(f"  {form}:")
                replay(g, form)
        return run

    return decorate


@every_form(cases.DENSE)
def causal_wan(g, form):
    network, text = transformer(g, form)
    height, width = g.config["latent"]
    tokens = height // 2 * (width // 2)
    chunk = g.config["frames_per_chunk"]
    capacity = g.config["kv_cache_tokens"] // tokens
    state = wan_dit.KvState(network, capacity, tokens, g.config["sink_size"])
    for c in range(g.config["num_chunks"]):
        rows = state.rows(state.append(chunk))
        for s, t in enumerate(g["in.timesteps"].tolist()):
            latent = g[f"in.x.{c}.{s}"]
            time = network.time(t)
            flow = wan_dit.run_causal(network, latent, state, rows, c * chunk, time, text)
            g.compare(f"out.flow.{c}.{s}", flow)
        g.compare_equal(f"out.local_end.{c}", len(state.slots) * tokens)
    order = state.slots + sorted(set(range(capacity)) - set(state.slots))
    keys = torch.cat([state.k[0][state.rows([slot])] for slot in order])
    g.compare("out.cache_k.0", keys)


@every_form(cases.DENSE)
def wan_bidirectional(g, form):
    network, text = transformer(g, form)
    time = network.time(g["in.t"].item())
    g.compare("out.flow", wan_dit.run_bidirectional(network, g["in.x"], time, text))


@every_form(cases.SPARSE)
def sparse_sr(g, form):
    network, text = transformer(g, form)
    config = sparse_sr_dit.SparseSrConfig(
        network.config, tuple(g.config["sparse_block_size"]), g.config["sparse_local_range"],
        g.config.get("sparse_top_k_ratio", 1.0), g.config["sparse_ref_spatial_tokens"],
        g.config["stream_chunk_size"],
    )
    height, width = (size // 2 for size in g.config["latent"])
    groups = g.config["groups"]
    kv_len = g.config["kv_len"]
    state = sparse_sr_dit.SparseSrState(network, config, height, width, max(groups), kv_len)
    time = network.time(g["in.t"].double().item())
    for i in range(len(groups)):
        masks = []
        flow = sparse_sr_dit.run(network, config, g[f"in.x.{i}"][None], g[f"in.y.{i}"][None],
                                 state, time, text, kv_len, form.split("_")[0], masks)
        for layer, mask in enumerate(masks):
            g.compare_equal(f"out.mask.{i}.layer{layer}", mask)
        g.compare(f"out.flow.{i}", flow)
        g.compare_equal(f"out.cache_blocks.{i}", state.cached * state.spatial)


def each_format(g, make, replay):
    """Both memory formats are replayed, because both may be measured."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        networks = make()
        for network in networks:
            memory_net.prepare(network, torch.float32, memory_format)
        print(f"  {memory_format}:")
        replay(lambda x: x.contiguous(memory_format=memory_format), *networks)


def latent_upsampler(g):
    c = g.config
    shared = {key: c[key] for key in ("activation", "residual", "residual_scale", "memory_init",
                                      "in_channels", "out_channels") if key in c}

    def make():
        if g.module.endswith("v1"):
            network = memory_net.UpsamplerV1(c["upsample_scale"], c["mid_channels"],
                                             c["num_blocks"], **shared)
        else:
            network = memory_net.UpsamplerV3(c["spatial_scale"], c["temporal_scale"],
                                             c["stage_channels"], c["blocks_per_stage"], **shared)
        return [g.load(network)]

    def replay(layout, network):
        state = {}
        i = 0
        while f"in.x.{i}" in g:
            y = network.run(layout(g[f"in.x.{i}"][0].transpose(0, 1)), state)
            g.compare(f"out.y.{i}", y.transpose(0, 1))
            i += 1

    each_format(g, make, replay)


def decoder(g):
    width = lambda name: g[f"w.{name}.weight"].shape[0]
    init = g.config["memory_init"]

    def make():
        if g.config["layout"] == "net":
            widths = [width("net.2.conv.0"), width("net.7"), width("net.13")]
            return [g.load(memory_net.UpsamplerV3(8, 4, widths, memory_init=init, out_channels=3))]
        layout = "ultra" if g.config["layout"] == "ultra" else "tiny"
        widths = [width(f"decoder.{n}") for n in (1, 8, 14, 20)]
        networks = [memory_net.TinyDecoder(layout, widths, memory_init=init)]
        if "in.video" in g:
            networks.append(memory_net.TinyEncoder(width("encoder.0"), memory_init=init))
        g.load(networks[0], networks[1:])
        return networks

    def replay(layout, network, encoder=None):
        latent = g["in.latent"][0]
        g.compare("out.frames_parallel", network.run(layout(latent), {})[3:])
        state = {}
        frames = torch.cat([network.run(layout(x[None]), state) for x in latent])
        g.compare("out.frames_streaming", frames[3:])
        if encoder is None:
            return
        video = g["in.video"][0]
        g.compare("out.encoded", encoder.run(layout(video), {}))
        if "out.encoded_streaming" in g:
            state = {}
            parts = [encoder.run(layout(x[None]), state) for x in video]
            g.compare("out.encoded_streaming", torch.cat([p for p in parts if len(p)]))

    each_format(g, make, replay)


def vae(g):
    c = g.config
    for form in wan_vae.FORMS:
        network = g.load(wan_vae.WanVae(
            c["dim"], c["z_dim"], c["dim_mult"], c["num_res_blocks"], c["temperal_downsample"],
            g["in.mean"].tolist(), g["in.std"].tolist(),
        ))
        wan_vae.prepare(network, torch.float32, form)
        print(f"  {form}:")
        g.compare("out.encoded", network.encode(g["in.video"], {}))
        latent = g["in.latent"]
        g.compare("out.decoded", network.decode(latent, {}))
        state = {}
        per_latent = 2 ** sum(map(bool, c["temperal_downsample"]))
        first = (g["out.stream.0"].shape[2] - 1) // per_latent + 1
        g.compare("out.stream.0", network.decode(latent[:, :, :first], state))
        g.compare("out.stream.1", network.decode(latent[:, :, first:], state))


@every_form(cases.DENSE)
def umt5_encoder(g, form):
    c = g.config
    network = g.load(umt5.Umt5Encoder(c["vocab"], c["dim"], c["dim_attn"], c["dim_ffn"],
                                      c["num_heads"], c["num_layers"], c["num_buckets"]))
    umt5.prepare(network, torch.float32, form)
    lengths = g["in.mask"].sum(1)
    hidden = network.run(g["in.ids"], lengths, zero_padding=False)
    g.compare("out.hidden", hidden)
    # One text at a time: its keys are cut off, not masked. Rows past its end are compared too.
    rows = [network.run(ids[None], n[None], zero_padding=False)
            for ids, n in zip(g["in.ids"], lengths)]
    g.compare("out.hidden", torch.cat(rows))


REPLAYS = {
    "causal_wan": causal_wan,
    "wan_bidirectional": wan_bidirectional,
    "sparse_sr_dit": sparse_sr,
    "latent_upsampler_v1": latent_upsampler,
    "latent_upsampler_v3": latent_upsampler,
    "tiny_decoder": decoder,
    "ultra_decoder": decoder,
    "ultra_decoder_v3": decoder,
    "wan_vae": vae,
    "umt5_encoder": umt5_encoder,
}


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = []
    for path in options.paths:
        files += sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    rows = []
    replayed = 0
    for path in files:
        golden = Golden(path)
        print(f"{path} ({golden.module})")
        if golden.module in REPLAYS:
            REPLAYS[golden.module](golden)
            rows += golden.rows
            replayed += 1
        elif golden.module in NO_NETWORK or golden.module.startswith("tokenizer"):
            print("  no network")
        else:
            raise SystemExit(f"{path}: no replay for module '{golden.module}'")
    print(f"{replayed} files, {len(rows)} outputs, {rows.count(False)} over {LIMIT:g}")
    if not rows or not all(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
