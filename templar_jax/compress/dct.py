"""The orthonormal cosine transform of every tile, in place: coefficients lie where the tile's elements lay.

Written as sums in a fixed order with guarded products, so that sender and receivers get the same bits on any mesh
and backend (a matrix product would not give that). Optional; costs 2 * 64 multiply-adds per element and way.

Letters: S side of a tile, k frequency.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from templar_jax.compress.exact import product


@functools.cache
def basis(side: int) -> np.ndarray:
    """DCT-II, orthonormal: f32 [k, S], row k the k-th cosine."""
    frequency, position = np.arange(side)[:, None], np.arange(side)
    rows = np.cos(math.pi * (position + 0.5) * frequency / side) * math.sqrt(2 / side)
    rows[0] = math.sqrt(1 / side)
    # Rounded well below f32's grain first: cosines of different libraries then round to the same f32.
    return (np.round(rows * 2.0**40) / 2.0**40).astype(np.float32)


def _transform(x: jax.Array, dim: int, side: int, inverse: bool, zero: jax.Array) -> jax.Array:
    """Multiplies every run of `side` elements along `dim` by the basis, terms added in ascending order."""
    matrix = jnp.asarray(basis(side).T if inverse else basis(side))  # [out, in]
    runs = x.shape[:dim] + (x.shape[dim] // side, side) + x.shape[dim + 1 :]
    x = jnp.moveaxis(x.reshape(runs), dim + 1, 0)  # [in, ...]
    wide = (side,) + (1,) * (x.ndim - 1)

    def add(term: jax.Array, total: jax.Array) -> jax.Array:
        return total + product(matrix[:, term].reshape(wide), x[term][None], zero)

    y = jax.lax.fori_loop(0, side, add, jnp.zeros((side, *x.shape[1:]), jnp.float32))
    return jnp.moveaxis(y, 0, dim + 1).reshape(*runs[:dim], -1, *runs[dim + 2 :])


def transform(x: jax.Array, sides: tuple[int, ...], stack: int, inverse: bool, zero: jax.Array) -> jax.Array:
    """The (inverse) DCT of every tile of a parameter, along each dim of the tile.

    Args:
      x: f32 [*stack, *unit].
      sides: extents of a tile.
      stack: number of stack dims.
      inverse: coefficients to elements.
      zero: uint32 scalar 0, an argument of the jitted function (see `exact.product`).
    """
    for dim, side in enumerate(sides):
        x = _transform(x, stack + dim, side, inverse, zero)
    return x
