"""Exact top-k against a slow oracle, ties above all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compress_numpy import tiles_of, top_k
from hypothesis import given
from hypothesis import strategies as st

from templar_jax.compress import select
from templar_jax.compress.tiles import from_tiles, largest_divisor, place, split_rows, to_tiles

search = jax.jit(select.top_k, static_argnums=(1, 2, 3))


def check(x: np.ndarray, sides: tuple[int, ...], k: int, chunk: int = 3) -> None:
    """Two units at once, the second turned about, so that what belongs to one does not end up in the other."""
    units = [x, -x[::-1].copy()]
    got = np.asarray(search([jnp.asarray(unit) for unit in units], sides, k, chunk))
    want = [top_k(row, k) for unit in units for row in tiles_of(unit, sides)]
    np.testing.assert_array_equal(got, want)


@given(
    levels=st.sampled_from([1, 2, 3, 50]),
    k=st.sampled_from([1, 5, 7, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ties_go_to_the_lower_index(levels, k, seed):
    """Few distinct values, so the k-th magnitude is nearly always shared; 16 x 16 tiles search by groups of 8."""
    rng = np.random.default_rng(seed)
    check(rng.integers(-levels, levels + 1, (32, 48)).astype(np.float32), (16, 16), k)


@pytest.mark.parametrize(
    ("shape", "sides", "k"),
    [
        ((96, 80), (48, 40), 64),  # sides that are no power of two
        ((62, 26), (31, 13), 9),  # a prime side: no groups
        ((320,), (64,), 8),  # runs of a 1-D unit
        ((320,), (64,), 64),  # full
        ((128, 64), (64, 64), 4095),
        ((8, 8), (8, 8), 1),
    ],
)
def test_shapes(shape, sides, k):
    rng = np.random.default_rng(0)
    check(np.round(rng.standard_normal(shape) * 8).astype(np.float32) / 8, sides, k)


@pytest.mark.parametrize("kind", ["zero", "one nonzero", "all equal", "signed zeros", "tiny and huge"])
def test_degenerate_tiles(kind):
    x = np.zeros((64, 128), np.float32)
    if kind == "one nonzero":
        x[40, 100] = -3
    elif kind == "all equal":
        x[:] = -1
    elif kind == "signed zeros":
        x[::2] = -0.0
    elif kind == "tiny and huge":
        x = np.resize(np.float32([3e38, -1e-30, 1e-44, -3e38, 0]), x.shape)
    check(x, (64, 64), 64)


def test_equals_lax_top_k_on_large_tiles():
    """Random f32 at the real size; ties at the 64th place occur there too."""
    x = np.random.default_rng(1).standard_normal((512, 512)).astype(np.float16).astype(np.float32)
    got = search([jnp.asarray(x)], (64, 64), 64, 64)
    tiles = to_tiles(jnp.asarray(x), (64, 64)).reshape(-1, 4096)
    np.testing.assert_array_equal(got, jnp.sort(jax.lax.top_k(jnp.abs(tiles), 64)[1], -1))


@pytest.mark.parametrize(
    ("stack", "grid", "sides"),
    [((), (3, 2), (4, 5)), ((2,), (1, 3), (5, 2)), ((2, 3), (2, 2), (1, 3)), ((2,), (3,), (4,))],
)
def test_tiles_and_places(stack, grid, sides):
    """to_tiles, its inverse and `place` say the same about where an element lies."""
    shape = (*stack, *(g * s for g, s in zip(grid, sides, strict=True)))
    x = np.arange(np.prod(shape)).reshape(shape)
    tiles = to_tiles(jnp.asarray(x), sides, len(stack))
    np.testing.assert_array_equal(from_tiles(tiles, sides, len(stack)), x)
    flat = np.asarray(tiles).reshape(*stack, *grid, -1)
    offsets = jnp.broadcast_to(jnp.arange(flat.shape[-1]), flat.shape)
    where = jax.jit(place, static_argnums=(0, 2))(sides, offsets, len(stack))
    np.testing.assert_array_equal(x[tuple(np.asarray(i) for i in where)], flat)
    unit_rows = split_rows(jnp.asarray(flat.reshape(-1, flat.shape[-1])), [jnp.asarray(x)], sides)
    np.testing.assert_array_equal(unit_rows[0], flat)


def test_largest_divisor():
    assert [largest_divisor(n, 64) for n in (4096, 96, 80, 320, 67, 1)] == [64, 48, 40, 64, 1, 1]
