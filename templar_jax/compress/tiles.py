"""How a unit is cut into tiles, and where the elements of a tile lie in the parameter.

Nothing is transposed on the way: an element is addressed as (layer, tile, offset) and turned into the
parameter's own coordinates, one array per dim, so no index can pass int32 however large the model.

Letters: U units of a parameter (its stack dims together), T tiles of a unit (row-major), N elements of a tile,
k values kept of each.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from templar_jax.config import RunConfig
from templar_jax.sharding import Param, shards, spec, table


@dataclass(frozen=True)
class Tiling:
    """How one parameter is cut: `sides` are a tile's extents, `grid` counts tiles along each dim of the unit."""

    param: Param
    sides: tuple[int, ...]
    grid: tuple[int, ...]
    k: int

    @property
    def size(self) -> int:
        """N: elements of a tile."""
        return math.prod(self.sides)

    @property
    def tiles(self) -> int:
        """T: tiles of a unit."""
        return math.prod(self.grid)

    @property
    def full(self) -> bool:
        """Every element is kept, so no indices are sent."""
        return self.k == self.size

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of `Packed.indices` and `.codes`: [*stack, T, k]."""
        return (*self.param.shape[: self.param.stack], self.tiles, self.k)

    @property
    def kept(self) -> int:
        """Values kept of the whole parameter."""
        return math.prod(self.packed_shape)


def largest_divisor(extent: int, most: int) -> int:
    """The largest divisor of `extent` that is <= `most`."""
    return next(side for side in range(min(extent, most), 0, -1) if extent % side == 0)


def tiling(run: RunConfig, param: Param) -> Tiling:
    """The run's tiling of one parameter: sides are the largest divisors <= compress.tile, 1-D units cut in runs."""
    sides = tuple(largest_divisor(extent, run.compress.tile) for extent in param.unit_shape)
    grid = tuple(extent // side for extent, side in zip(param.unit_shape, sides, strict=True))
    k = (param.routed and run.compress.expert_k) or run.compress.k
    return Tiling(param, sides, grid, min(k, math.prod(sides)))


@functools.lru_cache(maxsize=16)  # read many times a window
def tilings(run: RunConfig) -> Mapping[str, Tiling]:
    """{name: Tiling} of every parameter in the order of the table."""
    return MappingProxyType({param.name: tiling(run, param) for param in table(run)})


def groups(run: RunConfig, mesh: Mesh, most: int = 2**28) -> list[tuple[str, ...]]:
    """Parameters that one executable works on: together at most `most` elements per device, or one large one.

    Small models need one dispatch; large ones never hold temporaries of more than one parameter's stack.
    """
    made: list[tuple[str, ...]] = []
    filled = most
    for param in table(run):
        elements = math.prod(param.shape) // math.prod(shards(mesh, axis) for axis in spec(param, mesh))
        if filled + elements > most:
            made.append(())
            filled = 0
        made[-1] += (param.name,)
        filled += elements
    return made


def alike(cut: Sequence[Tiling]) -> dict[tuple[tuple[int, ...], int], list[int]]:
    """Positions of the parameters that are cut alike, by (sides, k): their tiles can be worked on together."""
    found: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for position, tiling in enumerate(cut):
        found.setdefault((tiling.sides, tiling.k), []).append(position)
    return found


def fold(tiling: Tiling, packed: np.ndarray, batch: int = 0) -> np.ndarray:
    """[*batch, *stack, T, ...] -> [*batch, *stack, *grid, ...]: the form in which tiles are sharded."""
    stack = batch + tiling.param.stack
    return packed.reshape(*packed.shape[:stack], *tiling.grid, *packed.shape[stack + 1 :])


def unfold(tiling: Tiling, folded: np.ndarray) -> np.ndarray:
    """[*stack, *grid, ...] -> [*stack, T, ...]."""
    stack, dims = tiling.param.stack, len(tiling.grid)
    return folded.reshape(*folded.shape[:stack], tiling.tiles, *folded.shape[stack + dims :])


def split_offset(sides: tuple[int, ...], offset: jax.Array) -> tuple[jax.Array, ...]:
    """Offset in a tile -> position along each of its dims (row-major)."""
    parts = []
    for side in reversed(sides[1:]):
        parts.append(offset % side)
        offset = offset // side
    return (offset, *reversed(parts))


def place(sides: tuple[int, ...], offsets: jax.Array, stack: int = 0) -> tuple[jax.Array, ...]:
    """Coordinates in the (local) parameter of offsets in tiles.

    Args:
      sides: extents of a tile.
      offsets: integer [*stack, *grid, k].
      stack: number of leading stack dims.

    Returns:
      One int32 index array per dim of the parameter, broadcastable to `offsets.shape`.
    """

    def iota(dim: int) -> jax.Array:
        shape = [1] * offsets.ndim
        shape[dim] = offsets.shape[dim]
        return jax.lax.broadcasted_iota(jnp.int32, shape, dim)

    inside = split_offset(sides, offsets.astype(jnp.int32))
    unit = [iota(stack + dim) * side + part for dim, (side, part) in enumerate(zip(sides, inside, strict=True))]
    return (*(iota(dim) for dim in range(stack)), *unit)


def to_tiles(x: jax.Array, sides: tuple[int, ...], stack: int = 0) -> jax.Array:
    """[*stack, *unit] -> [*stack, *grid, *sides]: a transposition, used where a transform needs whole tiles."""
    dims = len(sides)
    split = [part for extent, side in zip(x.shape[stack:], sides, strict=True) for part in (extent // side, side)]
    order = [*range(stack), *(stack + 2 * d for d in range(dims)), *(stack + 2 * d + 1 for d in range(dims))]
    return x.reshape(*x.shape[:stack], *split).transpose(order)


def from_tiles(tiles: jax.Array, sides: tuple[int, ...], stack: int = 0) -> jax.Array:
    """[*stack, *grid, *sides] -> [*stack, *unit]: the inverse of `to_tiles`."""
    dims = len(sides)
    order = [*range(stack), *(stack + part for d in range(dims) for part in (d, dims + d))]
    unit = [tiles.shape[stack + d] * sides[d] for d in range(dims)]
    return tiles.transpose(order).reshape(*tiles.shape[:stack], *unit)


def split_rows(rows: jax.Array, units: Sequence[jax.Array], sides: tuple[int, ...]) -> list[jax.Array]:
    """[tiles of all units in turn, n] -> per unit [*stack, *grid, n]: the inverse of taking them together."""
    parts, taken = [], 0
    for unit in units:
        stack = unit.ndim - len(sides)
        grid = (extent // side for extent, side in zip(unit.shape[stack:], sides, strict=True))
        shape = (*unit.shape[:stack], *grid)
        parts.append(rows[taken : taken + math.prod(shape)].reshape(*shape, -1))
        taken += math.prod(shape)
    return parts
