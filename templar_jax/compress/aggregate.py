"""Many contributions become one update: on the host the numbers, on the device a gather and an addition.

Host: integer histograms of each contribution's codes per unit give its norm in f64, exactly, whatever the sharding;
the lower median of the norms clips; clip factor, mean and outer learning rate are folded into one small f32
table of decoded values per contribution and unit, rounded once. Device: look up, and add in ascending order of uid.
Nothing is multiplied on a device, so every node gets the same bits.

With compress.dct all of this happens in the tiles' cosine domain; norms agree because the transform is orthonormal.

Letters: R contributions, T tiles of a unit, k values kept of each, E entries of a value table
(sign1: 4 * scale code + code, 1024; v213: code, 4).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from templar_jax.compress.exact import TINY, product
from templar_jax.compress.packed import Packed
from templar_jax.compress.quantize import CODES, SCALES, sign1_table
from templar_jax.compress.tiles import Tiling, place, tilings
from templar_jax.config import RunConfig

Contribution = Mapping[str, Packed]
Tables = dict[str, np.ndarray]  # per parameter f32 [*stack, E]


def histogram(tiling: Tiling, packed: Packed) -> np.ndarray:
    """How often each magnitude occurs in each unit: int64 [units, m].

    sign1: m = 512, 2 * scale code + magnitude bit (a sign does not change a norm); v213: m = 4, the code.
    """
    units, scales = tiling.param.units, np.asarray(packed.scales)
    codes = np.asarray(packed.codes).reshape(units, tiling.tiles, tiling.k)
    narrow = np.uint8 if tiling.k < 2**8 else np.uint16  # a tile's counts: NumPy adds fastest what it need not widen
    if scales.dtype == np.float32:
        counts = [np.add.reduce((codes == code).view(np.uint8), -1, dtype=narrow) for code in range(CODES)]
        return np.stack([of_code.sum(-1, dtype=np.int64) for of_code in counts], -1)
    high = np.add.reduce(codes & 1, -1, dtype=narrow)
    entry = scales.reshape(units, tiling.tiles).astype(np.int64) + SCALES * np.arange(units)[:, None]
    # Weights are f64: exact, a unit having far fewer than 2**53 values.
    all_tiles = np.bincount(entry.ravel(), minlength=units * SCALES)
    all_high = np.bincount(entry.ravel(), high.ravel(), units * SCALES).astype(np.int64)
    return np.stack([tiling.k * all_tiles - all_high, all_high], -1).reshape(units, 2 * SCALES)


def magnitudes(tiling: Tiling, packed: Packed) -> np.ndarray:
    """The magnitude of each entry of the histogram, before any clip: f32 [units, m]."""
    scales = np.asarray(packed.scales)
    if scales.dtype == np.float32:
        return np.abs(scales.reshape(tiling.param.units, CODES))
    flat = sign1_table(tiling.k, tiling.size)[:, :2].reshape(-1)
    return np.broadcast_to(flat, (tiling.param.units, flat.size))


def norms(tiling: Tiling, packed: Packed) -> np.ndarray:
    """Euclidean norm of each unit of a contribution: f64 [units], the same wherever it is computed.

    The counts are exact; their terms are added one after the other, in the order of the table.
    """
    terms = histogram(tiling, packed) * np.square(magnitudes(tiling, packed).astype(np.float64))
    return np.sqrt(np.cumsum(terms, -1)[:, -1])  # a cumulative sum has no other order; np.sum's depends on the machine


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


def values(tiling: Tiling, packed: Packed) -> np.ndarray:
    """Decoded value of each entry of the value table, before any clip: f32 [units, E]."""
    scales = np.asarray(packed.scales)
    if scales.dtype == np.float32:
        return scales.reshape(tiling.param.units, CODES)
    flat = sign1_table(tiling.k, tiling.size).reshape(-1)
    return np.broadcast_to(flat, (tiling.param.units, flat.size))


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


def look_up(one: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Offsets and values [*grid, k] of one contribution to one unit, its parts as in `unit_update` without W."""
    entry = one["codes"].astype(jnp.int32)
    if "scales" in one:
        entry = one["scales"].astype(jnp.int32)[..., None] * CODES + entry
    offsets = one.get("indices", jnp.broadcast_to(jnp.arange(entry.shape[-1], dtype=jnp.int32), entry.shape))
    return offsets, one["table"].at[entry].get(mode="promise_in_bounds")


def dense(tiling: Tiling, sent: Mapping[str, jax.Array]) -> jax.Array:
    """The values of a single contribution where they belong, on a shard: f32 [*stack, *unit], 0 elsewhere.

    sent: as in `unit_update`, with the stack dims in front and W = 1.
    """
    stack = tiling.param.stack
    read = look_up
    for _ in range(stack):
        read = jax.vmap(read)
    offsets, found = read({part: jax.lax.index_in_dim(x, 0, stack, keepdims=False) for part, x in sent.items()})
    dims = zip(offsets.shape[stack:-1], tiling.sides, strict=True)
    shape = (*offsets.shape[:stack], *(tiles * side for tiles, side in dims))
    where = place(tiling.sides, offsets, stack)
    return jnp.zeros(shape, jnp.float32).at[where].set(found, unique_indices=True, mode="promise_in_bounds")


def unit_update(
    tiling: Tiling, count: jax.Array, sent: Mapping[str, jax.Array], reciprocals: jax.Array | None, zero: jax.Array
) -> jax.Array:
    """The sum of the first `count` contributions to one unit, on a shard: gather and add, in their order.

    Args:
      tiling: how the unit is cut.
      count: int32 scalar, at most W.
      sent: indices [W, *grid, k] (absent for full tiles), codes [W, *grid, k], scales [W, *grid] (absent for v213),
        table [W, E].
      reciprocals: f32 [>= W + 1] of the integers, if each element is to be divided by the number of contributions
        with a nonzero value there.
      zero: see `exact.product`.

    Returns:
      f32 [*unit].
    """
    grid = sent["codes"].shape[1:-1]
    unit = tuple(tiles * side for tiles, side in zip(grid, tiling.sides, strict=True))
    sums = [jnp.zeros(unit, jnp.float32)]
    if reciprocals is not None:
        sums.append(jnp.zeros(unit, jnp.uint8 if reciprocals.size <= 2**8 else jnp.uint16))

    def add(number: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        offsets, found = look_up({part: array[number] for part, array in sent.items()})
        where = place(tiling.sides, offsets)
        new = [found, *((found != 0).astype(total.dtype) for total in sums[1:])]
        return [
            total.at[where].add(part, unique_indices=True, mode="promise_in_bounds")
            for total, part in zip(sums, new, strict=True)
        ]

    sums = jax.lax.fori_loop(0, count, add, sums)
    if reciprocals is None:
        return sums[0]
    share = reciprocals.at[sums[1].astype(jnp.int32)].get(mode="promise_in_bounds")
    return product(sums[0], share, zero)
