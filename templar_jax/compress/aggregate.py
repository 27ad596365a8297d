"""Many contributions become one update: on the host the numbers, on the device a gather and an addition.

Host: integer histograms of each contribution's codes per unit give its norm in f64, exactly, whatever the sharding;
the lower median of the norms clips; clip factor, mean and outer learning rate are folded into one small f32
table of decoded values per contribution and unit, rounded once. Device: look up, and add in ascending order of uid.
Nothing is multiplied on a device, so every node gets the same bits.

With compress.dct all of this happens in the tiles' cosine domain; norms agree because the transform is orthonormal.

Letters: R contributions, T tiles of a unit, k values kept of each, E entries of a value table
(sign1: 4 * scale code + code, 1024; v213: code, 4).
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from templar_jax.compress.exact import TINY
from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import CODES, SCALES, sign1_table
from templar_jax.compress.tiles import Tiling, place, tilings
from templar_jax.config import RunConfig

Contribution = Mapping[str, Packed]
Tables = dict[str, np.ndarray]  # per parameter f32 [*stack, E]


def histogram(tiling: Tiling, packed: Packed) -> np.ndarray:
    """How often each entry of the value table occurs in each unit: int64 [units, E]."""
    units = tiling.param.units
    codes = np.asarray(packed.codes).reshape(units, tiling.tiles, tiling.k)
    narrow = np.uint8 if tiling.k < 2**8 else np.uint16  # a tile's counts; NumPy adds what it need not widen fastest
    per_tile = [np.add.reduce((codes == code).view(np.uint8), -1, dtype=narrow) for code in range(CODES)]
    if np.asarray(packed.scales).dtype == np.float32:
        return np.stack([counts.sum(-1, dtype=np.int64) for counts in per_tile], -1)
    entry = np.asarray(packed.scales).reshape(units, tiling.tiles).astype(np.int64) + SCALES * np.arange(units)[:, None]
    # Weights are f64: exact, a unit having far fewer than 2**53 values.
    counts = [np.bincount(entry.ravel(), counts.ravel(), units * SCALES) for counts in per_tile]
    return np.stack(counts, -1).astype(np.int64).reshape(units, SCALES * CODES)


def values(tiling: Tiling, packed: Packed) -> np.ndarray:
    """Decoded value of each entry of the table, before any clip: f32 [units, E]."""
    scales = np.asarray(packed.scales)
    if scales.dtype == np.float32:
        return scales.reshape(tiling.param.units, CODES)
    flat = sign1_table(tiling.k, tiling.size).reshape(-1)
    return np.broadcast_to(flat, (tiling.param.units, flat.size))


def norms(tiling: Tiling, packed: Packed) -> np.ndarray:
    """Euclidean norm of each unit of a contribution: f64 [units], independent of any order of summation."""
    squares = np.square(values(tiling, packed).astype(np.float64))
    counts = histogram(tiling, packed)
    return np.array(
        [math.sqrt(math.fsum((count * square)[count > 0])) for count, square in zip(counts, squares, strict=True)]
    )


def lower_median(rows: np.ndarray) -> np.ndarray:
    """[R, n] -> [n]: of an even number of values the lower of the middle two."""
    return np.sort(rows, axis=0)[(len(rows) - 1) // 2]


def clip_factors(run: RunConfig, contributions: Mapping[int, Contribution]) -> dict[int, dict[str, np.ndarray]]:
    """By uid and parameter: f64 [units], what brings a unit's norm down to the lower median of all (1 or less)."""
    factors: dict[int, dict[str, np.ndarray]] = {uid: {} for uid in contributions}
    for name, tiling in tilings(run).items():
        all_norms = np.array([norms(tiling, contribution[name]) for contribution in contributions.values()])
        limit = lower_median(all_norms)
        for uid, norm in zip(contributions, all_norms, strict=True):
            too_large = (norm > limit) if run.outer.clip else np.zeros(norm.shape, bool)
            factors[uid][name] = np.where(too_large, limit / np.where(norm > 0, norm, 1), 1.0)
    return factors


def value_tables(run: RunConfig, contribution: Contribution, factors: dict[str, np.ndarray], step: float) -> Tables:
    """The values that a device adds for each code of one contribution, rounded once from f64.

    Args:
      contribution: what one peer sent.
      factors: its clip factors, by parameter f64 [units].
      step: outer learning rate over the number that the sum is divided by.

    Returns:
      {name: f32 [*stack, E]}; magnitudes below 2**-100 are 0.
    """
    tables = {}
    for name, tiling in tilings(run).items():
        stack = tiling.param.shape[: tiling.param.stack]
        exact = values(tiling, contribution[name]).astype(np.float64) * (factors[name] * step)[:, None]
        rounded = exact.astype(np.float32)
        rounded[np.abs(rounded) < TINY] = 0
        tables[name] = rounded.reshape(*stack, -1)
    return tables


def look_up(value_table: jax.Array, codes: jax.Array, scales: jax.Array | None, dims: int) -> jax.Array:
    """The values of one contribution to one parameter, on a shard.

    Args:
      value_table: f32 [*stack, E].
      codes: uint8 [*stack, *grid, k].
      scales: uint8 [*stack, *grid]; None for v213.
      dims: number of grid dims.

    Returns:
      f32 [*stack, *grid, k].
    """
    stack = value_table.shape[:-1]
    entry = codes.astype(jnp.int32)
    if scales is not None:
        entry = scales.astype(jnp.int32)[..., None] * CODES + entry
    flat_table = value_table.reshape(math.prod(stack), -1)
    unit = jnp.arange(flat_table.shape[0]).reshape(*stack, *(1,) * (dims + 1))
    return flat_table.at[unit, entry].get(mode="promise_in_bounds")


def add(total: jax.Array, tiling: Tiling, indices: jax.Array, values: jax.Array) -> jax.Array:
    """Adds values [*stack, *grid, k] at their offsets to a shard f32 [*stack, *unit]. Offsets within a tile differ."""
    where = place(tiling.sides, indices, tiling.param.stack)
    return total.at[where].add(values, unique_indices=True, mode="promise_in_bounds")
