"""How like a miner's contribution and private state are to what the same steps gave here: pure functions.

    likeness of a and b = 2 a.b / (a.a + b.b)

It is 1 only where both are equal, the cosine where they are of one length, and falls where they are not.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from templar_jax.compress import aggregate
from templar_jax.compress.aggregate import Contribution
from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import CODES
from templar_jax.compress.tiles import Tiling, fold, place, tilings
from templar_jax.config import RunConfig
from templar_jax.sharding import table


class Likeness(NamedTuple):
    """Each is 1 where the miner did what was done here."""

    sent: float  # of what was sent with what was to be sent here, at the elements that were sent
    overlap: float  # share of those that would have been sent here too
    state: float  # the smaller of two: of the optimizer's state, and of the error feedback, at the window's end


def compare(
    run: RunConfig,
    theirs: Contribution,
    ended: list[np.ndarray],
    ours: Contribution,
    ends: list[np.ndarray],
) -> Likeness:
    """Of the miner's contribution and final state (`private.leaves`) with those of the steps that were run again."""
    names = [param.name for param in table(run)]
    left = dict(zip(names, ends[-len(names) :], strict=True))
    optimizer, feedback = slice(None, -len(names)), slice(-len(names), None)
    with np.errstate(invalid="ignore", over="ignore"):  # theirs may be anything
        sent, overlap = _contributions(run, theirs, ours, left)
        state = min(_arrays(ended[part], ends[part]) for part in (optimizer, feedback))
    return Likeness(sent, overlap, state)


def likeness(dot: float, a: float, b: float) -> float:
    """From a.b, a.a and b.b; 1 where both are zeros, 0 where something is not finite."""
    if not math.isfinite(a + b + dot):
        return 0.0
    return 2.0 * dot / (a + b) if a + b > 0.0 else 1.0


def _arrays(theirs: list[np.ndarray], ours: list[np.ndarray]) -> float:
    """Mean likeness of the arrays of floats, weighted by size."""
    total, weight = 0.0, 0
    for a, b in zip(theirs, ours, strict=True):
        if np.issubdtype(a.dtype, np.floating):
            x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            total, weight = total + a.size * likeness(float(x @ y), float(x @ x), float(y @ y)), weight + a.size
    return total / weight if weight else 1.0


def _contributions(
    run: RunConfig, theirs: Contribution, ours: Contribution, left: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """(likeness of their values with what was to be sent here at their places, kept elements in common over kept).

    What was to be sent is what was sent here, quantised as theirs is, or else what was left. Compared there, an element
    that rounding moved across the limit of the k-th magnitude costs little: of elements nearly alike others may be
    kept.
    """
    both = kept = 0
    dot = a = b = 0.0
    for name, tiling in tilings(run).items():
        (their_places, their_values), (our_places, our_values) = (_laid(tiling, c[name]) for c in (theirs, ours))
        sent, there = np.zeros(tiling.param.shape), np.zeros(tiling.param.shape, bool)
        sent[our_places], there[our_places] = our_values, True
        here = np.where(there, sent, left[name])[their_places]
        both, kept = both + int(there[their_places].sum()), kept + here.size
        dot, a, b = dot + float(their_values @ here), a + float(their_values @ their_values), b + float(here @ here)
    return likeness(dot, a, b), both / kept


def _laid(tiling: Tiling, packed: Packed) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """(coordinates in the parameter, decoded values as f64) of everything that was kept, flat."""
    offsets = np.arange(tiling.k) if tiling.full else np.asarray(packed.indices).astype(np.int32)
    grid = fold(tiling, np.ascontiguousarray(np.broadcast_to(offsets, tiling.packed_shape)))
    places = place(tiling.sides, jnp.asarray(grid), tiling.param.stack)
    entry = np.asarray(packed.codes).reshape(tiling.param.units, -1).astype(np.int64)
    if np.asarray(packed.scales).dtype != np.float32:  # one table for all scale codes
        scales = np.asarray(packed.scales).reshape(tiling.param.units, -1).astype(np.int64)
        entry += CODES * np.repeat(scales, tiling.k, 1)
    values = np.take_along_axis(aggregate.values(tiling, packed), entry, 1).astype(np.float64)
    return tuple(np.broadcast_to(np.asarray(axis), grid.shape).ravel() for axis in places), values.ravel()
