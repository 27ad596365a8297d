"""What owners of partial work do to arrays: pure functions on the host, over small models.

A pseudo-gradient here is {name: f32 NumPy array of the parameter's shape}.

Letters: T tiles of a unit, N elements of a tile, k values kept of each.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from templar_jax.compress import aggregate
from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import SCALES, STEPS
from templar_jax.compress.tiles import Tiling, from_tiles, tilings, to_tiles
from templar_jax.config import RunConfig
from templar_jax.incentive import similarity
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.node import likeness
from templar_jax.node.engine import Engine

Contribution = Mapping[str, Packed]
Gradient = dict[str, np.ndarray]
MARGIN = 0.02  # below a cosine at which validators would have cut in the window before
Norms = dict[str, np.ndarray]  # f64 [units] of each parameter


def median_norms(run: RunConfig, contributions: Iterable[Contribution]) -> Norms:
    """The norm of each unit to which a receiver would clip these contributions."""
    known = list(contributions)
    return {
        name: aggregate.lower_median(np.array([aggregate.norms(tiling, one[name]) for one in known]))
        for name, tiling in tilings(run).items()
    }


def with_norms(run: RunConfig, contribution: Contribution, wanted: Norms) -> dict[str, Packed]:
    """The same places and signs with the wanted norm in each unit, or one scale code above it: a receiver clips."""
    return {
        name: _scaled(tiling, contribution[name], wanted[name] / np.maximum(_norms(tiling, contribution[name]), 1e-30))
        for name, tiling in tilings(run).items()
    }


def _norms(tiling: Tiling, packed: Packed) -> np.ndarray:
    return aggregate.norms(tiling, packed)


def _scaled(tiling: Tiling, packed: Packed, factors: np.ndarray) -> Packed:
    """Times `factors`, f64 [units]."""
    scales, units = np.asarray(packed.scales), tiling.param.units
    if scales.dtype == np.float32:
        return packed._replace(scales=(scales.reshape(units, -1) * factors[:, None]).astype("f4").reshape(scales.shape))
    steps = np.array([math.ceil(STEPS * math.log2(factor)) if factor > 0 else 0 for factor in factors])
    codes = scales.reshape(units, -1).astype(np.int64)
    moved = np.where(codes > 0, np.clip(codes + steps[:, None], 1, SCALES - 1), 0)
    return packed._replace(scales=moved.astype(np.uint8).reshape(scales.shape))


def stripe(run: RunConfig, gradient: Gradient, number: int, count: int) -> Gradient:
    """The part `number` of `count`: in each tile the largest magnitudes but `number`, and every `count`-th after it.

    All parts together are the count * k largest of each tile; no two have an element in common. Tiles that are sent
    whole are in every part: a zero in them cannot be said.
    """

    def part(tiling: Tiling, values: np.ndarray) -> np.ndarray:
        tiles = in_tiles(tiling, values)
        order = np.argsort(-np.abs(tiles), axis=-1, kind="stable")
        kept = np.zeros(tiles.shape, bool)
        np.put_along_axis(kept, order[..., number : count * tiling.k : count], True, -1)
        whole: Any = np.where(kept, tiles, 0).reshape(*tiles.shape[:-1], *tiling.sides)
        return np.asarray(from_tiles(whole, tiling.sides, tiling.param.stack))

    return {
        name: gradient[name] if tiling.full else part(tiling, gradient[name]) for name, tiling in tilings(run).items()
    }


def in_tiles(tiling: Tiling, values: Any) -> np.ndarray:
    """[*stack, *unit] -> [*stack, *grid, N]."""
    tiles = np.asarray(to_tiles(values, tiling.sides, tiling.param.stack))
    return tiles.reshape(*tiles.shape[: -len(tiling.sides)], tiling.size)


def noisy(gradient: Gradient, share: float, chance: np.random.Generator) -> Gradient:
    """With normal noise of `share` times each parameter's root mean square."""
    return {
        name: value + np.float32(share * np.sqrt(np.mean(value**2))) * chance.standard_normal(value.shape, np.float32)
        for name, value in gradient.items()
    }


def mixed(parts: Sequence[tuple[float, Gradient]]) -> Gradient:
    """The weighted sum."""
    total = {name: np.zeros_like(value) for name, value in parts[0][1].items()}
    for weight, part in parts:
        total = {name: value + np.float32(weight) * part[name] for name, value in total.items()}
    return total


def compressed(engine: Engine, gradient: Gradient) -> dict[str, Packed]:
    """As a miner compresses it, without error feedback."""
    zeros = engine.compressor.init()
    placed = {name: jax.device_put(gradient[name], zero.sharding) for name, zero in zeros.items()}
    return engine.compressor.update(engine.compressor.init(), placed, zeros)[1]


def decoded(engine: Engine, contribution: Contribution) -> Gradient:
    """What a contribution stands for."""
    return {name: np.asarray(value) for name, value in engine.outer.dense(contribution).items()}


def cosine(run: RunConfig, one: Contribution, other: Contribution) -> float:
    """As a validator compares two contributions."""
    tiles = likeness.sample(run, b"")
    laid = likeness.Laid(likeness.elements(run, tiles))
    laid.lay(likeness.kept(run, one, tiles))
    return laid.with_(likeness.kept(run, other, tiles))[0]


def unlike(run: RunConfig, contributions: Sequence[Contribution]) -> float:
    """The largest cosine that a validator would have taken for honest work's among these contributions; 1 for any."""
    config = IncentiveConfig()
    if len(contributions) < config.similarity_least_peers:
        return 1.0
    pairs = [cosine(run, one, other) for at, one in enumerate(contributions) for other in contributions[at + 1 :]]
    return similarity.cut(config, pairs)


def first_unlike(
    run: RunConfig, choices: Sequence[float], limit: float, make: Callable[[float], Sequence[Contribution]]
) -> Sequence[Contribution]:
    """What `make` makes of the first of `choices` whose first two contributions have a cosine of at most `limit`."""
    made: Sequence[Contribution] = ()
    for choice in choices:
        made = make(choice)
        if len(made) < 2 or cosine(run, made[0], made[1]) <= limit - MARGIN:
            break
    return made
