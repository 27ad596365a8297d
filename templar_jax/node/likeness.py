"""How alike contributions are: cosines and overlaps of their kept values, on the host, the same on every machine.

Kept values are compared where they lie in the model. Of a large model a sample of tiles is taken, drawn by a seed
that nobody knows before the keys are out; a cosine of 100,000 values does not need the other millions.

Letters: n kept values, T tiles of a unit, k values kept of each, N elements of a tile.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from templar_jax.compress import aggregate
from templar_jax.compress.aggregate import Contribution
from templar_jax.compress.quantize import CODES
from templar_jax.compress.tiles import tilings
from templar_jax.config import RunConfig
from templar_jax.data.permute import permute
from templar_jax.incentive.evidence import Identity, Pair

MOST = 2**17  # kept values of a contribution that are compared

Tiles = dict[str, np.ndarray]  # per parameter: numbers of tiles, over all its units


@dataclass(frozen=True)
class Kept:
    """The sampled values of one contribution."""

    where: np.ndarray  # int64 [n], position among all elements of the sampled tiles, each once
    values: np.ndarray  # f64 [n], unclipped
    norm: float


@dataclass(frozen=True)
class Likeness:
    """What is compared in one window."""

    pairs: tuple[Pair, ...]
    stale: dict[Identity, float]  # largest cosine with a re-encoded aggregate of the last windows


def sample(run: RunConfig, seed: bytes) -> Tiles:
    """All tiles of a small model; of a larger one the same share of each parameter's, at least one."""
    cut = tilings(run)
    total = sum(tiling.kept for tiling in cut.values())
    tiles: Tiles = {}
    for name, tiling in cut.items():
        there = tiling.param.units * tiling.tiles
        count = there if total <= MOST else max(1, there * MOST // total)
        tiles[name] = np.sort(permute(seed + name.encode(), there, np.arange(count)).astype(np.int64))
    return tiles


def elements(run: RunConfig, tiles: Tiles) -> int:
    """Elements of the sampled tiles."""
    return sum(len(tiles[name]) * tiling.size for name, tiling in tilings(run).items())


def kept(run: RunConfig, contribution: Contribution, tiles: Tiles) -> Kept:
    """The decoded values of a contribution in the sampled tiles."""
    where, values, base = [], [], 0
    for name, tiling in tilings(run).items():
        chosen, packed = tiles[name], contribution[name]
        entry = np.asarray(packed.codes).reshape(-1, tiling.k)[chosen].astype(np.int64)
        if np.asarray(packed.scales).dtype != np.float32:
            entry += CODES * np.asarray(packed.scales).reshape(-1)[chosen].astype(np.int64)[:, None]
        offsets = np.arange(tiling.k) if tiling.full else np.asarray(packed.indices).reshape(-1, tiling.k)[chosen]
        starts = base + tiling.size * np.arange(len(chosen), dtype=np.int64)
        where.append((starts[:, None] + offsets.astype(np.int64)).ravel())
        table = aggregate.values(tiling, packed)
        values.append(table[(chosen // tiling.tiles)[:, None], entry].astype(np.float64).ravel())
        base += len(chosen) * tiling.size
    flat = np.concatenate(values)
    return Kept(np.concatenate(where), flat, float(np.sqrt(_sum(flat * flat))))


def _sum(terms: np.ndarray) -> float:
    """One after the other: np.sum's order depends on the machine."""
    return float(np.cumsum(terms)[-1]) if terms.size else 0.0


class Laid:
    """One contribution laid out densely, to be compared with many."""

    def __init__(self, size: int) -> None:
        self._values, self._there = np.zeros(size), np.zeros(size, bool)
        self._one: Kept | None = None

    def lay(self, one: Kept) -> None:
        if self._one is not None:
            self._values[self._one.where], self._there[self._one.where] = 0.0, False
        self._values[one.where], self._there[one.where] = one.values, True
        self._one = one

    def with_(self, other: Kept) -> tuple[float, float]:
        """(cosine, overlap) with the contribution that is laid out; cosine 0 where either is all zeros."""
        assert self._one is not None
        norms = self._one.norm * other.norm
        dot = _sum(self._values[other.where] * other.values)
        both, smaller = int(self._there[other.where].sum()), min(len(other.where), len(self._one.where))
        return max(-1.0, min(1.0, dot / norms)) if norms > 0.0 else 0.0, both / smaller if smaller else 0.0


def compare(
    run: RunConfig,
    seed: bytes,
    window: int,
    now: Mapping[Identity, Contribution],
    earlier: Mapping[int, Mapping[Identity, Contribution]],
    aggregates: Iterable[Contribution],
) -> Likeness:
    """Everybody's contribution of this window beside everybody else's, earlier ones, and re-encoded aggregates.

    Args:
      seed: draws the sample of a large model.
      earlier: by window, then by identity.
      aggregates: last outer steps, compressed anew as a copier would send them.
    """
    tiles = sample(run, seed)
    laid = Laid(elements(run, tiles))
    mine = {peer: kept(run, now[peer], tiles) for peer in sorted(now)}
    pairs: list[Pair] = []
    for number, (peer, one) in enumerate(mine.items()):
        laid.lay(one)
        pairs += [Pair(peer, other, window, *laid.with_(mine[other])) for other in list(mine)[number + 1 :]]
    for before in sorted(earlier):
        for other in sorted(earlier[before]):
            laid.lay(kept(run, earlier[before][other], tiles))
            pairs += [Pair(peer, other, before, *laid.with_(one)) for peer, one in mine.items()]
    stale: dict[Identity, float] = {}
    for contribution in aggregates:
        laid.lay(kept(run, contribution, tiles))
        for peer, one in mine.items():
            stale[peer] = max(stale.get(peer, -1.0), laid.with_(one)[0])
    return Likeness(tuple(pairs), stale)
