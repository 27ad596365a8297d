"""Would fp8 matmuls hold numerically? Emulated in the layers' matrices, beside bfloat16 and float32, paired by seed.

    python scripts/bench.py fp8 --steps 600 --seeds 3 --json FILE

Inputs and weights are rounded to e4m3, gradients of outputs to e5m2, with one scale a tensor from its own largest
magnitude (https://arxiv.org/abs/2209.05433); their products are summed in f32. Attention's own products,
embedding and head stay as they are, parameters and optimiser f32. All three train from one theta_0 on the same batches;
every loss is of held-out text in f32. It says nothing of kernels, their accumulation, or speed.

Letters: B sequences, S tokens, I and O dims of a matrix.
"""

import argparse
import dataclasses
import math
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from templar_jax.config import ComputeConfig, MeshConfig, RunConfig
from templar_jax.data.pages import Pages
from templar_jax.model import llama
from templar_jax.model.layers import linear
from templar_jax.node.open import pin_data
from templar_jax.sharding import make_mesh
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.inner import make_inner
from templar_jax.train.state import Params, init_params

CONFIG = "nano"
E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
ARMS = {"float32": ("float32", False), "bfloat16": ("bfloat16", False), "fp8": ("bfloat16", True)}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=600, help="inner steps (default 600)")
    parser.add_argument("--seeds", type=int, default=3, help="(default 3)")


def rounded(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(values that `dtype` can hold, as f32; the scale that they are to be multiplied with)."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(), 1e-30) / float(jnp.finfo(dtype).max)
    return (x / scale).astype(dtype).astype(jnp.float32), scale


def product(pattern: str, a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> jax.Array:
    """An einsum of rounded values, summed in f32."""
    return jnp.einsum(pattern, a[0], b[0], preferred_element_type=jnp.float32) * (a[1] * b[1])


@jax.custom_vjp
def linear_fp8(x_BSI: jax.Array, weights_IO: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """As `layers.linear`."""
    x = rounded(x_BSI, E4M3)
    return tuple(product("bsi,io->bso", x, rounded(w_IO, E4M3)).astype(x_BSI.dtype) for w_IO in weights_IO)


def _forward(x_BSI, weights_IO):
    return linear_fp8(x_BSI, weights_IO), (x_BSI, weights_IO)


def _backward(saved, d_ys_BSO):
    x_BSI, weights_IO = saved
    x, d_x, d_ws = rounded(x_BSI, E4M3), jnp.zeros(x_BSI.shape, jnp.float32), []
    for w_IO, d_y_BSO in zip(weights_IO, d_ys_BSO, strict=True):
        d_y = rounded(d_y_BSO, E5M2)
        d_x += product("bso,io->bsi", d_y, rounded(w_IO, E4M3))
        d_ws.append(product("bsi,bso->io", x, d_y).astype(w_IO.dtype))
    return d_x.astype(x_BSI.dtype), tuple(d_ws)


linear_fp8.defvjp(_forward, _backward)


def trained(run: RunConfig, pages: Pages, dtype: str, fp8: bool, steps: int, seed: int) -> Params:
    """Parameters after `steps` inner steps of one miner; the seed gives theta_0 and the order of the pages."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])
    inner = make_inner(run, ComputeConfig(dtype="bfloat16" if dtype == "bfloat16" else "float32"), mesh)
    params, opt = init_params(dataclasses.replace(run, seed=seed), mesh), inner.init()
    size, page = run.inner.batch, run.data.page
    order = np.random.default_rng(seed).permutation(pages.manifest.n_pages)
    need = order[np.arange(math.ceil(steps * size / page)) % len(order)]
    tokens_NS = np.asarray(pages.read(need.tolist())).reshape(-1, run.data.sequence).astype(np.int32)
    llama.linear = linear_fp8 if fp8 else linear  # read when the first step is traced
    try:
        for step in range(steps):
            params, opt, _ = inner.step(params, opt, tokens_NS[step * size : (step + 1) * size], step)
    finally:
        llama.linear = linear
    return params


def run(args: argparse.Namespace) -> dict[str, Any]:
    pinned, pages = pin_data(args.run, args.node, lambda text: print(text, flush=True))
    mesh = make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])
    evaluate = make_evaluate(pinned, ComputeConfig(), mesh)
    heldout_NS, _ = pages.read_heldout(256)
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        for arm, (dtype, fp8) in ARMS.items():
            params = trained(pinned, pages, dtype, fp8, args.steps, seed)
            nats = np.concatenate([evaluate(params, part) for part in np.split(heldout_NS, 16)])
            losses[arm].append(float(nats.mean()) / (pinned.data.sequence - 1))
            print(f"seed {seed} {arm}: {losses[arm][-1]:.5f} nats per token", flush=True)
    figures: dict[str, Any] = {"steps": args.steps, "run": pinned.run_id, **losses}
    for arm in ("float32", "fp8"):
        differences = [a - b for a, b in zip(losses[arm], losses["bfloat16"], strict=True)]
        figures[f"{arm} less bfloat16, mean"] = mean(differences)
        figures[f"{arm} less bfloat16, sd"] = stdev(differences) if args.seeds > 1 else 0.0
    return figures
