"""The inner step: forward, backward, clip and AdamW, beside eager torch on the same shapes and weights."""

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import ratio, take_turns
from templar_jax.config import ComputeConfig, MeshConfig, NodeConfig, RunConfig
from templar_jax.model.flops import parameters, train_flops_per_token
from templar_jax.sharding import make_mesh
from templar_jax.train.compiles import counting
from templar_jax.train.inner import make_inner
from templar_jax.train.state import init_params

CONFIG = str(Path(__file__).with_name("step.toml"))
MATMUL = 2048  # edge of the square f32 matmul whose rate stands for what the machine can do


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="steps of each contender (default 5)")
    parser.add_argument("--one-device", action="store_true", help="also measure on a mesh of one device")
    parser.add_argument("--no-torch", action="store_true", help="leave out the torch baseline")


def ours(config: RunConfig, compute: ComputeConfig, devices: Sequence[Any], tokens: np.ndarray):
    """(step, figures) of the inner step on these devices; figures hold what its first step showed."""
    mesh = make_mesh(MeshConfig(), devices)
    params = init_params(config, mesh)
    inner = make_inner(config, compute, mesh)
    state = [params, inner.init(), 0]

    def step():
        state[0], state[1], metrics = inner.step(state[0], state[1], tokens, state[2])
        state[2] += 1
        jax.block_until_ready((state[0], metrics))
        return metrics

    with counting() as compiles:
        metrics = step()
    return step, {
        "loss": float(metrics.loss),
        "compile_seconds": compiles.seconds,
        "attention": inner.placement.attention,
    }


def matmul() -> Callable[[], object]:
    a = jnp.ones((MATMUL, MATMUL), jnp.float32)
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, a))


def run(args: argparse.Namespace) -> dict[str, float | int | str]:
    """Figures: tokens/s, model FLOP/s and their ratios; see scripts/bench.py."""
    run_config: RunConfig = args.run
    node: NodeConfig = args.node
    jax.config.update("jax_num_cpu_devices", node.mesh.cpu_devices or os.cpu_count() or 1)  # before the first use
    devices = jax.local_devices()
    shape = run_config.inner.batch, run_config.data.sequence
    tokens = np.random.default_rng(0).integers(0, run_config.model.vocab, shape, dtype=np.int32)
    step, first = ours(run_config, node.compute, devices, tokens)
    contenders = {"ours": step, "matmul": matmul()}
    if args.one_device:
        contenders["one_device"] = ours(run_config, node.compute, devices[:1], tokens)[0]
    if importlib.util.find_spec("torch") and not args.no_torch:
        from benchmarks.step_torch import TorchStep

        torch_step = TorchStep(run_config, tokens)
        contenders["torch"] = torch_step
        torch_loss = torch_step()
        if abs(torch_loss - first["loss"]) > 1e-3:
            raise AssertionError(f"not the same work: torch's first loss is {torch_loss}, ours {first['loss']}")
    started = time.perf_counter()
    seconds = take_turns(contenders, args.rounds)
    flops = train_flops_per_token(run_config.model, shape[1]) * tokens.size
    rate = 2 * MATMUL**3 / median(seconds["matmul"])
    figures: dict[str, float | int | str] = {
        "parameters": parameters(run_config.model),
        "batch": shape[0],
        "sequence": shape[1],
        "devices": len(devices),
        "platform": devices[0].platform,
        "attention": first["attention"],
        "compile_seconds": first["compile_seconds"],
        "seconds_per_step": median(seconds["ours"]),
        "tokens_per_s": tokens.size / median(seconds["ours"]),
        "tflops": flops / median(seconds["ours"]) / 1e12,
        "matmul_tflops": rate / 1e12,
        "mfu": flops / median(seconds["ours"]) / rate,
    }
    for name in seconds.keys() - {"ours", "matmul"}:
        figures[f"{name}_tokens_per_s"] = tokens.size / median(seconds[name])
        figures["ratio_step_tokens_per_s" if name == "torch" else f"ratio_over_{name}"] = ratio(
            seconds[name], seconds["ours"]
        )
    figures["measured_seconds"] = time.perf_counter() - started
    return figures
