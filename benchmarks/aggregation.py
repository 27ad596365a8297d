"""How contributions become one outer step: means and medians compared, without and with peers that poison.

    python scripts/bench.py aggregation --seeds 1 2 3 --json docs/benchmarks/aggregation.json

Real training, compression and clipping of the run (nano by default); only the way to add up is exchanged, in plain
NumPy. Of each element all peers' values count, zeros where it was not sent, unless a rule says "of the senders".
Poison is what the signs and the clip let through: a reversed pseudo-gradient, or noise of the usual norm.

Letters: P peers, n elements.
"""

import argparse
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from templar_jax.compress.aggregate import clip_factors
from templar_jax.config import MeshConfig, RunConfig
from templar_jax.data.assign import assigned
from templar_jax.data.cache import PageCache
from templar_jax.data.loader import make_loader
from templar_jax.data.pages import Pages
from templar_jax.node import engine as engines
from templar_jax.node.engine import Engine, Params
from templar_jax.node.open import pin_data
from templar_jax.sharding import make_mesh, table
from templar_jax.train.state import ordered

CONFIG = "nano"
POISONS = ("none", "reversed", "noise")


def mean(values_Pn: np.ndarray) -> np.ndarray:
    """Over all peers (SparseLoCo's paper): what few send counts little."""
    return values_Pn.mean(0)


def senders_mean(values_Pn: np.ndarray) -> np.ndarray:
    """Over those who sent the element (the reference's code): what one sends lands at full weight."""
    return values_Pn.sum(0) / np.maximum((values_Pn != 0).sum(0), 1)


def trimmed(values_Pn: np.ndarray) -> np.ndarray:
    """Mean of all but the quarter at either end."""
    cut = len(values_Pn) // 4
    return np.sort(values_Pn, 0)[cut : len(values_Pn) - cut].mean(0)


def senders_median(values_Pn: np.ndarray) -> np.ndarray:
    """Lower median of the senders, times their share of the peers."""
    count = (values_Pn != 0).sum(0)
    ranked = np.sort(np.where(values_Pn != 0, values_Pn, np.inf), 0)
    middle = np.take_along_axis(ranked, np.maximum(count - 1, 0)[None] // 2, 0)[0]
    return np.where(count > 0, middle, 0.0) * count / len(values_Pn)


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean,
    "senders_mean": senders_mean,
    "trimmed": trimmed,
    "senders_median": senders_median,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="each is other pages for everybody")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--poisons", nargs="+", choices=POISONS, default=POISONS)
    parser.add_argument("--windows", type=int, default=30)
    parser.add_argument("--peers", type=int, default=12)
    parser.add_argument("--poisoners", type=int, default=3, help="of the peers")


def run(args: argparse.Namespace) -> dict[str, float | int | str]:
    """Figures: mean final held-out loss (nats per token) of each rule under each poison, and per seed."""
    jax.config.update("jax_num_cpu_devices", 1)  # before the first use
    config, pages = pin_data(args.run, args.node, print)
    engine = engines.build(config, args.node.compute, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]), args.node.start)
    figures: dict[str, float | int | str] = {"peers": args.peers, "poisoners": args.poisoners, "windows": args.windows}
    figures["outer_lr"] = config.outer.lr
    for rule, poison in itertools.product(args.rules, args.poisons):
        losses = [train(engine, pages, RULES[rule], poison, seed, args) for seed in args.seeds]
        figures[f"loss_{rule}_{poison}"] = float(np.mean(losses))
        figures |= {f"loss_{rule}_{poison}_{seed}": loss for seed, loss in zip(args.seeds, losses, strict=True)}
        print(f"{rule:15} {poison:9} {' '.join(f'{loss:.4f}' for loss in losses)}", flush=True)
    return figures


def train(engine: Engine, pages: Pages, rule: Callable, poison: str, seed: int, args: argparse.Namespace) -> float:
    """Held-out loss after `windows` windows of `peers` peers."""
    config, cache = engine.run, PageCache(pages, threads=0)
    theta, honest = engine.theta_0(), args.peers - (args.poisoners if poison != "none" else 0)
    states = [[engine.inner.init(), engine.compressor.init()] for _ in range(args.peers)]
    for window in range(args.windows):
        draw = hashlib.sha256(f"{seed}/{window}".encode()).digest()
        sent = {}
        for peer, state in enumerate(states):
            if peer >= honest and poison == "noise":
                rng = np.random.default_rng([seed, window, peer])
                noise = {name: 1e-3 * rng.standard_normal(x.shape, np.float32) for name, x in theta.items()}
                end = {name: jax.device_put(theta[name] - noise[name], x.sharding) for name, x in theta.items()}
            else:
                end = inner_steps(engine, cache, theta, state, window, peer, draw, config)
            state[1], sent[peer] = engine.compressor.update(state[1], theta, end)
        theta = apply(engine, theta, sent, rule, honest if poison == "reversed" else args.peers)
    tokens_NS, _ = pages.read_heldout(256)
    return engines.heldout_nats(engine, theta, tokens_NS) / tokens_NS[:, 1:].size


def inner_steps(
    engine: Engine, cache: PageCache, theta: Params, state: list, window: int, peer: int, draw: bytes, config: RunConfig
) -> Params:
    """One peer's parameters after H steps on its own pages; its optimizer's state moves on."""
    mine, inner = assigned(draw, peer, config.pages_per_window, cache.manifest.n_pages), config.inner
    what: Any = dict(run_id=config.run_id, window=window, batch=inner.batch, steps=inner.steps, seed=draw, threads=0)
    loader, params = make_loader(cache, mine, **what), engine.inner.begin(theta)
    for step in range(inner.steps):
        params, state[0], _ = engine.inner.step(params, state[0], next(loader), window * inner.steps + step)
    loader.close()
    return params


def apply(engine: Engine, theta: Params, sent: dict, rule: Callable, upright: int) -> Params:
    """theta less the sum by `rule`; contributions from number `upright` on are turned round."""
    config, factors, after = engine.run, clip_factors(engine.run, sent), {}
    decoded = {peer: engine.outer.dense(one) for peer, one in sent.items()}
    for param in table(config):
        rows = []
        for peer in sent:
            sign = 1.0 if peer < upright else -1.0
            factor = sign * factors[peer][param.name].reshape(
                param.shape[: param.stack] + (1,) * (len(param.unit_shape))
            )
            rows.append((np.asarray(decoded[peer][param.name]) * factor).reshape(-1))
        step = config.outer.lr * rule(np.array(rows)).reshape(param.shape).astype(np.float32)
        after[param.name] = jax.device_put(np.asarray(theta[param.name]) - step, theta[param.name].sharding)
    return ordered(config, after)
