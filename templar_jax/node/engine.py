"""Every device function of a run on one mesh, built once and compiled before the first window."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from templar_jax.compress.aggregate import clip_factors
from templar_jax.compress.codec import encode
from templar_jax.compress.feedback import Compressor, make_compressor
from templar_jax.compress.packed import Packed
from templar_jax.compress.root import make_root
from templar_jax.config import ComputeConfig, RunConfig
from templar_jax.data.loader import Loader, make_loader
from templar_jax.node.theta_0 import make_theta_0
from templar_jax.train.evaluate import make_evaluate
from templar_jax.train.evaluate_peer import PeerEvaluation, make_evaluate_peer
from templar_jax.train.inner import Inner, make_inner
from templar_jax.train.offload import parameters_like
from templar_jax.train.outer import Outer, make_outer
from templar_jax.train.working import make_working

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Engine:
    """Pure functions on device arrays; see the rooms model, train and compress."""

    run: RunConfig
    mesh: Mesh
    inner: Inner
    compressor: Compressor
    outer: Outer
    root: Any  # Params -> 32 bytes
    salted_root: Callable[[Params, int], bytes]  # the same under a salt: 0 <= salt < 2**256
    evaluate: Any  # (Params, tokens [B, S] int32) -> nats [B] float32
    theta_0: Callable[[], Params]  # a fresh copy each time; ConfigError: not the model that the run pins
    working: Callable[[Params], Params]  # as forward passes read them
    like: dict[str, jax.ShapeDtypeStruct]  # where the global parameters lie
    peers: PeerEvaluation  # of contributions, by a validator
    encode: Callable[[dict[str, Packed]], bytes]  # what `compressor.update` has just returned, as a plaintext
    make_loader: Callable[..., Loader] = make_loader  # of the batches that `inner.step` takes


@lru_cache(maxsize=4)
def build(run: RunConfig, compute: ComputeConfig, mesh: Mesh, start: str = "") -> Engine:
    """The engine of a run; nodes that share a process share it (and its executables).

    Args:
      start: as `NodeConfig.start`; theta_0 needs it where the run pins one.
    """
    like = parameters_like(run, mesh, "snapshot" in compute.offload)
    return Engine(
        run=run,
        mesh=mesh,
        inner=make_inner(run, compute, mesh),
        compressor=make_compressor(run, mesh, compute.offload),
        outer=make_outer(run, mesh, compute.offload),
        root=make_root(run, mesh),
        salted_root=lambda params, salt: make_root(run, mesh, salt)(params),
        evaluate=make_evaluate(run, compute, mesh),
        theta_0=make_theta_0(run, mesh, like, start),
        working=make_working(run, compute, mesh),
        like=like,
        peers=make_evaluate_peer(run, compute, mesh),
        encode=partial(encode, run),
    )


def warm(
    engine: Engine, eval_sequences: int, say: Callable[[str], None] = lambda part: None, score_sequences: int = 0
) -> None:
    """Runs every executable that a window runs, once, so that no window waits for a compiler; says each part first.

    Args:
      score_sequences: of a validator, which evaluates peers and does not train; 0: a miner.
    """
    run = engine.run
    say("parameters")
    start = engine.theta_0()
    params = engine.inner.begin(start)
    if not score_sequences or run.audit_bytes_max:
        say("inner step")
        opt = engine.inner.init()
        batch = np.zeros((run.inner.batch, run.data.sequence), np.int32)
        for step in range(2):  # the second takes the first's outputs, whose layouts may differ from init's
            params, opt, metrics = engine.inner.step(params, opt, batch, step)
        float(metrics.loss)
    say("compression")
    feedback = engine.compressor.init()
    for _ in range(2):
        feedback, packed = engine.compressor.update(feedback, start, params)
    say("outer step")
    theta, momentum = start, engine.outer.init()
    for _ in range(2):
        theta, momentum = engine.outer.apply(theta, momentum, {0: packed, 1: packed})
    engine.root(theta)
    if eval_sequences:
        say("evaluation")
        heldout_nats(engine, theta, np.zeros((eval_sequences, run.data.sequence), np.int32))
    if score_sequences:
        say("evaluation of peers")
        warm_peers(engine, theta, packed, score_sequences)


def warm_peers(engine: Engine, theta: Params, packed: dict[str, Packed], sequences: int) -> None:
    """What a validator does to a contribution, once. Gives up `theta`."""
    run = engine.run
    factors = clip_factors(run, {0: packed})[0]
    others = np.zeros((sequences, run.data.sequence), np.int32)
    own = others[: run.pages_per_window * run.data.page]
    engine.peers.before(theta, others)
    engine.peers.before(theta, np.zeros((run.inner.batch, run.data.sequence), np.int32))  # see receipt
    for _ in range(2):
        theta, _ = engine.peers.peer(theta, packed, factors, 1.0, own, others)


def heldout_nats(engine: Engine, params: Params, tokens_NS: np.ndarray) -> float:
    """Sum of nats over all predicted positions of N sequences, in batches of the inner batch size.

    N is rounded down to a multiple of the batch (one shape, one executable).
    """
    size = engine.run.inner.batch
    params = engine.working(params)
    total = 0.0
    for first in range(0, len(tokens_NS) - size + 1, size):
        total += float(np.asarray(engine.evaluate(params, tokens_NS[first : first + size]), np.float64).sum())
    return total
