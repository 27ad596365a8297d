"""How fast this machine is at a run, measured in a process of its own, which also fills the compile cache.

    python -m templar_jax.localnet.measure RUN.toml FILE.json

The other processes then only load what was compiled here.
"""

import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.errors import ConfigError

TIMES = 5
BUSY = 0.7  # share of the time until the commitment that the work of all processes may take
# CPU seconds of a node in each block beside the figures here: chain, files, signatures, Python (docs/decisions.md).
NODE_SECONDS_A_BLOCK = 0.01
STARTS = 2.5  # CPU seconds of a node's start for each of its imports: the rest is loading from the compile cache
LATENCY_SECONDS = 0.1  # of a block for each process that a core has beside the first: nobody is late for a slot


@dataclass(frozen=True)
class Speed:
    """Seconds of one process, and how busy the machine is beside it."""

    start: float  # CPU seconds from exec to ready, with everything in the compile cache
    step: float  # one inner step
    compress: float
    apply: float  # one contribution
    held_out: float  # one evaluation of theta_w
    peer: float  # a validator's evaluation of one contribution
    others: float = 0.0  # processes of somebody else that each core has at work: time over CPU time, less 1


def window_seconds(run: RunConfig, speed: Speed, miners: int, validators: int) -> float:
    """CPU seconds that all nodes together compute in a window."""
    common = min(miners, run.max_contributors) * speed.apply + speed.held_out
    miner = run.inner.steps * speed.step + speed.compress + common
    validator = (miners + 1) * speed.peer + common
    return miners * miner + validators * validator


def fit_block(run: RunConfig, speed: Speed, miners: int, validators: int, cores: int, least: float) -> float:
    """Seconds a block so that every node meets every deadline on this machine; at least `least`.

    The work of a window must fit, with room to spare, between its seed and the commitments' due block; and one
    miner's, which uses one core, as well.
    """
    window, nodes = run.window, miners + validators
    blocks = window.deadline - window.commit_lead
    alone = run.inner.steps * speed.step + speed.compress + run.max_contributors * speed.apply
    work = max(window_seconds(run, speed, miners, validators) / min(cores, nodes), alone)
    overhead = NODE_SECONDS_A_BLOCK * nodes / cores * (1 + speed.others)
    latency = LATENCY_SECONDS * (nodes / cores - 1 + speed.others)
    needed = max(work / (BUSY * blocks) + overhead, latency)
    return max(least, math.ceil(needed * 20) / 20)


def start_seconds(speed: Speed, nodes: int, cores: int) -> float:
    """From the first start to the moment at which all nodes are ready."""
    return 1.0 + 1.5 * speed.start * max(1.0, nodes / cores)


def measure(run: RunConfig, config: NodeConfig) -> Speed:
    """Compiles what miners and validators run, then times it. Raises ConfigError, DataError."""
    import numpy as np

    from templar_jax.compress.aggregate import clip_factors
    from templar_jax.node import engine as engines
    from templar_jax.node import open as opening

    note = functools.partial(print, flush=True)  # localnet.py shows the newest line
    opening.set_up_devices(config)
    run, pages = opening.pin_data(run, config, note)
    imported = time.process_time()
    engine = opening.open_machine(run, config, pages, note).engine
    engines.warm(engine, 0, lambda part: note(f"compiling: {part}"), config.score_sequences)
    note("timing what a window runs")
    began, used = time.perf_counter(), time.process_time()

    theta = engine.theta_0()
    opt, params = engine.inner.init(), engine.inner.begin(theta)
    batch = np.zeros((run.inner.batch, run.data.sequence), np.int32)

    def step() -> None:
        nonlocal params, opt
        params, opt, metrics = engine.inner.step(params, opt, batch, 0)
        float(metrics.loss)

    feedback, packed = engine.compressor.init(), {}

    def compress() -> None:
        nonlocal feedback, packed
        feedback, packed = engine.compressor.update(feedback, theta, params)

    seconds: dict[str, float] = {"start": STARTS * imported, "step": _median(step), "compress": _median(compress)}
    held_out = np.zeros((config.eval_sequences, run.data.sequence), np.int32)
    seconds["held_out"] = _median(lambda: engines.heldout_nats(engine, theta, held_out))
    momentum = engine.outer.init()

    def apply() -> None:
        nonlocal theta, momentum
        theta, momentum = engine.outer.apply(theta, momentum, {0: packed, 1: packed})
        engine.root(theta)

    seconds["apply"] = _median(apply) / 2
    factors = clip_factors(run, {0: packed})[0]
    others = np.zeros((config.score_sequences, run.data.sequence), np.int32)
    own = others[: run.pages_per_window * run.data.page]

    def peer() -> None:
        nonlocal theta
        theta, _ = engine.peers.peer(theta, packed, factors, 1.0, own, others)

    seconds["peer"] = _median(peer)
    busy = (time.perf_counter() - began) / (time.process_time() - used)
    return Speed(**seconds, others=max(0.0, busy - 1))


def _median(work: Callable[[], Any], times: int = TIMES) -> float:
    """Seconds of a call after a first one; fewer calls where one takes long."""
    work()
    taken: list[float] = []
    while len(taken) < times and sum(taken) < 10:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main(config: str, out: str) -> None:
    from templar_jax.config_load import load

    run, node = load(Path(config))
    found = asdict(measure(run, node))
    draft = Path(f"{out}.part")
    draft.write_text(json.dumps(found))
    os.replace(draft, out)


def read(path: Path) -> Speed:
    """What `main` wrote. Raises ConfigError."""
    try:
        return Speed(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no measured speed: {error}; start again") from error


if __name__ == "__main__":
    from templar_jax.config_load import guarded
    from templar_jax.host import huge_pages

    huge_pages()
    guarded(lambda argv: main(*argv))
