"""The orthonormal cosine transform of every tile: coefficients lie where the tile's elements lay.

Written as sums in a fixed order with guarded products, so that sender and receivers get the same bits on any mesh
and backend (a matrix product would not give that). Optional; costs 2 * 64 multiply-adds per element and way.

Letters: n tiles, S side of a tile.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from templar_jax.compress.exact import product
from templar_jax.compress.tiles import Tiling, alike, from_tiles, split_rows, to_tiles


@functools.cache
def basis(side: int) -> np.ndarray:
    """DCT-II, orthonormal: f32 [S, S], row k the k-th cosine."""
    frequency, position = np.arange(side)[:, None], np.arange(side)
    rows = np.cos(math.pi * (position + 0.5) * frequency / side) * math.sqrt(2 / side)
    rows[0] = math.sqrt(1 / side)
    # Rounded well above f64's grain first: cosines of different libraries then round to the same f32.
    return (np.round(rows * 2.0**40) / 2.0**40).astype(np.float32)


def transform(tiles: jax.Array, inverse: bool, zero: jax.Array) -> jax.Array:
    """The (inverse) DCT along each dim of a tile, terms added in ascending order.

    Args:
      tiles: f32 [n, *sides].
      inverse: coefficients to elements.
      zero: uint32 scalar 0, an argument of the jitted function (see `exact.product`).
    """
    for dim in range(1, tiles.ndim):
        side = tiles.shape[dim]
        matrix = jnp.asarray(basis(side).T if inverse else basis(side))  # [out, in]
        x = jnp.moveaxis(tiles, dim, 0)  # [in, ...]

        def add(term: jax.Array, total: jax.Array, x: jax.Array = x, matrix: jax.Array = matrix) -> jax.Array:
            column = matrix[:, term].reshape(-1, *(1,) * (x.ndim - 1))
            return total + product(column, x[term][None], zero)

        tiles = jnp.moveaxis(jax.lax.fori_loop(0, side, add, jnp.zeros_like(x)), 0, dim)
    return tiles


def transform_units(
    cut: Sequence[Tiling], arrays: Sequence[jax.Array], inverse: bool, zero: jax.Array
) -> list[jax.Array]:
    """`transform` of every tile of a shard's parameters f32 [*stack, *unit], those that are cut alike together."""
    done: list[jax.Array] = list(arrays)
    for (sides, _), positions in alike(cut).items():
        units = [arrays[position] for position in positions]
        tiles = [to_tiles(unit, sides, unit.ndim - len(sides)).reshape(-1, *sides) for unit in units]
        changed = transform(jnp.concatenate(tiles), inverse, zero)
        rows = split_rows(changed.reshape(changed.shape[0], -1), units, sides)
        for position, unit, row in zip(positions, units, rows, strict=True):
            done[position] = from_tiles(row.reshape(*row.shape[:-1], *sides), sides, unit.ndim - len(sides))
    return done
