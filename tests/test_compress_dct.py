"""The cosine transform: the reference's coefficients, its own inverse, and the same bits as NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compress_numpy import product, tiles_of

from templar_jax.compress import dct
from templar_jax.compress.tiles import Tiling, to_tiles
from templar_jax.sharding import Param


@functools.partial(jax.jit, static_argnums=(1, 2))
def transform(x, sides, inverse, zero):
    """One parameter without a stack."""
    tiling = Tiling(Param("x", x.shape, (None,) * x.ndim, 1.0, True, ""), sides, (), 1)
    return dct.transform_units([tiling], [x], inverse, zero)[0]


@pytest.mark.parametrize("unit", ["square", "vector"])
def test_the_reference(data_dir, unit):
    with np.load(data_dir / "compression.npz") as vectors:
        dense, want = vectors[f"peer0/{unit}/dense"], vectors[f"dct/{unit}/coefficients"]
    sides = want.shape[dense.ndim :]
    got = transform(jnp.asarray(dense), sides, False, np.uint32(0))
    np.testing.assert_allclose(to_tiles(got, sides), want, atol=2e-6 * np.abs(want).max())
    back = transform(got, sides, True, np.uint32(0))
    np.testing.assert_allclose(back, dense, atol=2e-6 * np.abs(dense).max())


@pytest.mark.parametrize("inverse", [False, True])
def test_bit_for_bit_numpy(inverse):
    """Terms in ascending order, each operation rounded by itself: no matrix product, no fused multiply-add."""
    x = np.random.default_rng(0).standard_normal((24, 32)).astype(np.float32)
    got = np.asarray(transform(jnp.asarray(x), (12, 16), inverse, np.uint32(0)))
    want = tiles_of(x, (12, 16)).reshape(-1, 12, 16)
    for dim, side in ((1, 12), (2, 16)):
        matrix = dct.basis(side).T if inverse else dct.basis(side)
        total = np.zeros_like(want)
        for term in range(side):
            column = matrix[:, term].reshape((side, 1) if dim == 1 else (1, side))
            total = total + product(column, want.take([term], dim))
        want = total
    np.testing.assert_array_equal(tiles_of(got, (12, 16)).reshape(want.shape), want)


def test_basis_is_orthonormal():
    basis = dct.basis(64).astype(np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(64), atol=1e-6)
