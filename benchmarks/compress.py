"""Compress, decode, and aggregate 20 peers, beside plain torch on the same parameters, and checked to agree."""

import argparse
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from benchmarks.turns import ratio, take_turns
from templar_jax.compress import codec
from templar_jax.compress.feedback import make_compressor
from templar_jax.compress.tiles import tilings
from templar_jax.config import MeshConfig, RunConfig
from templar_jax.sharding import make_mesh, shardings, table
from templar_jax.train.outer import make_outer

CONFIG = str(Path(__file__).with_name("compress.toml"))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (default 7)")
    parser.add_argument("--peers", type=int, default=20, help="contributions of the aggregate (default 20)")
    parser.add_argument("--no-torch", action="store_true", help="leave out the torch baseline")


def drift(run: RunConfig, seed: int) -> dict[str, np.ndarray]:
    """Random parameters of the run: f32, normal, every unit at a scale of its own."""
    rng = np.random.default_rng(seed)
    return {
        param.name: rng.standard_normal(param.shape, np.float32) * np.float32(1e-3 * rng.uniform(0.5, 2))
        for param in table(run)
    }


class Ours:
    """The three jobs, each as a node does them: from device parameters to bytes, and from bytes to parameters."""

    def __init__(self, run: RunConfig, devices: Sequence[Any], start: dict, end: dict) -> None:
        mesh = make_mesh(MeshConfig(), devices)
        where = shardings(run, mesh)
        self.run, self.compressor, self.outer = run, make_compressor(run, mesh), make_outer(run, mesh)
        self.start = {name: jax.device_put(value, where[name]) for name, value in start.items()}
        self.end = {name: jax.device_put(value, where[name]) for name, value in end.items()}
        self.feedback = self.compressor.init()

    def compress(self) -> bytes:
        self.feedback, packed = self.compressor.update(self.feedback, self.start, self.end)
        data = codec.encode(self.run, packed)
        jax.block_until_ready(self.feedback)
        return data

    def decode(self, data: bytes) -> dict[str, jax.Array]:
        return jax.block_until_ready(self.outer.dense(codec.decode(self.run, data)))

    def aggregate(self, contributions: dict) -> dict[str, jax.Array]:
        return jax.block_until_ready(self.outer.apply(self.start, {}, contributions)[0])


def run(args: argparse.Namespace) -> dict[str, float | int | str]:
    """Figures: parameters/s of each job, bits per parameter, ratios over torch; see scripts/bench.py."""
    jax.config.update("jax_num_cpu_devices", args.node.mesh.cpu_devices or os.cpu_count() or 1)  # before the first use
    devices, config = jax.local_devices(), args.run
    parameters = sum(math.prod(param.shape) for param in table(config))
    start, end = drift(config, 0), drift(config, 1)
    ours = Ours(config, devices, start, end)
    data = ours.compress()
    payloads = [ours.compress() for _ in range(args.peers)]  # the drained feedback differs each time
    contributions = {uid: codec.decode(config, payload) for uid, payload in enumerate(payloads)}
    contenders = {
        "compress": ours.compress,
        "decode": lambda: ours.decode(data),
        "aggregate": lambda: ours.aggregate(contributions),
    }
    if importlib.util.find_spec("torch") and not args.no_torch:
        contenders.update(torch_jobs(config, len(devices), start, end, ours, data, payloads))
    seconds = take_turns(contenders, args.rounds)
    figures: dict[str, float | int | str] = {
        "parameters": parameters,
        "peers": args.peers,
        "devices": len(devices),
        "platform": devices[0].platform,
        "payload_bytes": len(data),
        "bits_per_param": 8 * len(data) / parameters,
    }
    for name, times in seconds.items():
        figures[f"{name}_params_per_s"] = parameters / median(times)
    for job in ("compress", "decode", "aggregate"):
        if f"torch_{job}" in seconds:
            figures["ratio_" + job + (f"_{args.peers}" if job == "aggregate" else "")] = ratio(
                seconds[f"torch_{job}"], seconds[job]
            )
    return figures


def torch_jobs(config: RunConfig, cores: int, start: dict, end: dict, ours: Ours, data: bytes, payloads: list) -> dict:
    """Torch's contenders, after checking that they do the same work."""
    from benchmarks import compress_torch

    compress_torch.use_cores(cores)
    torch = compress_torch.TorchCompress(tilings(config), start, end, config.compress.feedback_decay)
    theirs = torch.compress()
    check_same(codec.decode(config, data), torch.unpack(theirs))
    contributed = {uid: codec.decode(config, payload) for uid, payload in enumerate(payloads)}
    contributions = [torch.compact(compress_torch.taken(packed)) for packed in contributed.values()]
    for mine, other in (
        (ours.decode(data), torch.decode(torch.pack(compress_torch.taken(codec.decode(config, data))))),
        (ours.aggregate(contributed), torch.aggregate(contributions)),
    ):
        for name, value in other.items():
            np.testing.assert_allclose(np.asarray(mine[name]), value.numpy(), rtol=0, atol=1e-6)
    return {
        "torch_compress": torch.compress,
        "torch_decode": lambda: torch.decode(theirs),
        "torch_aggregate": lambda: torch.aggregate(contributions),
    }


def check_same(mine: dict, theirs: dict) -> None:
    """AssertionError unless both sent the same; a sum in another order may move a scale code here and there."""
    for name, (indices, codes, scales) in theirs.items():
        one = mine[name]
        for ours, other in ((one.indices, indices), (one.codes, codes), (one.scales, scales)):
            same = (ours.reshape(-1) == other.numpy().reshape(-1)).mean()
            if same < 0.999:
                raise AssertionError(f"not the same work: {same:.4%} of torch's {name} equal ours")
