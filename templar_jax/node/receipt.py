"""The loss of a miner's first inner step, recomputed: it proves a forward pass at theta_w on the assigned batch."""

import math

import numpy as np

from templar_jax.data.assign import assigned
from templar_jax.data.loader import first_batch
from templar_jax.incentive.evidence import WORST_NATS
from templar_jax.node.engine import Params
from templar_jax.node.world import Node


def first_loss(node: Node, params: Params, window: int, assignment: bytes, slot: int) -> float:
    """Nats per token of a slot's first batch at `params`. Raises DataError.

    assignment: the window's seed of assignments.
    """
    run = node.run
    ids = assigned(assignment, slot, run.pages_per_window, node.pages.manifest.n_pages)
    batch_BS = first_batch(node.pages, ids, run_id=run.run_id, window=window, batch=run.inner.batch, seed=assignment)
    nats_B = np.asarray(node.engine.peers.before(params, batch_BS), np.float64)
    return math.fsum(nats_B) / (batch_BS.shape[0] * (batch_BS.shape[1] - 1))


def difference(claimed: float, own: float) -> float | None:
    """How far a claimed loss is off, relative to the own one; None where the own one tells nothing."""
    if not math.isfinite(own) or own <= 0.0:
        return None
    off = claimed / own - 1.0
    return max(-WORST_NATS, min(WORST_NATS, off)) if math.isfinite(off) else WORST_NATS
