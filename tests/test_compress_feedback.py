"""Error feedback and compression: against NumPy, on meshes, without collectives."""

import jax
import numpy as np
import pytest
from compress_numpy import (
    MESHES,
    SMALL,
    assert_no_collectives,
    decoded,
    dense_unit,
    placed,
    product,
    rough,
    run_of,
    same_bits,
    sides_of,
    tiles_of,
    top_k,
)
from models import mesh_of

from templar_jax.compress import feedback as room
from templar_jax.compress.feedback import make_compressor
from templar_jax.compress.tiles import tilings
from templar_jax.sharding import shardings, table

RUNS = {
    "sign1": run_of(),
    "v213": run_of(quantizer="v213"),
    "dct": run_of(dct=True),
}


def two_windows(run, mesh):
    """(feedback, packed) after each of two windows."""
    compressor = make_compressor(run, mesh)
    left, seen = compressor.init(), []
    for window in range(2):
        start, end = (placed(run, mesh, rough(run, 10 * window + which)) for which in (0, 1))
        left, packed = compressor.update(left, start, end)
        seen.append((jax.device_get(left), packed))
    return seen


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", RUNS)
def test_same_bytes_on_one_and_eight_devices(kind, mesh):
    run = RUNS[kind]
    for (left, packed), (other_left, other_packed) in zip(
        two_windows(run, mesh_of(1)), two_windows(run, mesh_of(*mesh)), strict=True
    ):
        same_bits(left, other_left)
        assert list(packed) == list(other_packed) == [param.name for param in table(run)]
        for name in packed:
            for array, other in zip(packed[name], other_packed[name], strict=True):
                assert array.dtype == other.dtype and array.shape == other.shape
                assert array.tobytes() == other.tobytes(), f"{name} differs between 1 and {mesh} devices"


@pytest.mark.parametrize("kind", ["sign1", "v213"])
def test_against_numpy(kind):
    """Index sets, and feedback' = e - sent with e = (start - end) + decay * feedback, bit for bit."""
    run = run_of(SMALL, quantizer=kind)
    mesh = mesh_of(1)
    compressor = make_compressor(run, mesh)
    before, start, end = (rough(run, seed) for seed in range(3))
    left, packed = compressor.update(*(placed(run, mesh, params) for params in (before, start, end)))
    for param in table(run):
        name, shape, sides = param.name, param.unit_shape, sides_of(param.unit_shape)
        total = (start[name] - end[name]) + product(np.float32(run.compress.feedback_decay), before[name])
        sent = decoded(run, name, packed[name])
        indices = packed[name].indices
        assert indices.dtype == np.uint16 and packed[name].codes.dtype == np.uint8
        indices = indices.reshape(param.units, *indices.shape[param.stack :])
        for unit, one in enumerate(total.reshape(param.units, *shape)):
            want = [top_k(tile, indices.shape[-1]) for tile in tiles_of(one, sides)[:6]]
            np.testing.assert_array_equal(indices[unit][:6], want)
            update = dense_unit(indices[unit], sent[unit], shape)
            rest = np.asarray(left[name]).reshape(param.units, *shape)[unit]
            np.testing.assert_array_equal(rest, one - update)
            # Where the quantiser is within a factor of two, the difference is exact: nothing is lost at all.
            near = (update / 2 <= one) & (one <= 2 * update) & (update > 0)
            assert near.any()
            np.testing.assert_array_equal((rest.astype(np.float64) + update)[near], one[near].astype(np.float64))


def test_dct_conserves_to_rounding():
    run = run_of(SMALL, dct=True)
    mesh = mesh_of(1)
    start, zeros = rough(run, 1), {n: np.zeros_like(v) for n, v in rough(run, 1).items()}
    compressor = make_compressor(run, mesh)
    left, packed = compressor.update(compressor.init(), placed(run, mesh, start), placed(run, mesh, zeros))
    for param in table(run):
        sent = np.square(decoded(run, param.name, packed[param.name]).astype(np.float64)).sum()
        whole = np.square(start[param.name].astype(np.float64)).sum()
        rest = np.square(np.asarray(left[param.name], np.float64)).sum()
        assert rest < whole, f"{param.name}: what is left must be less than what was there"
        assert sent > 0


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", RUNS)
def test_no_collectives(kind, mesh):
    run, mesh = RUNS[kind], mesh_of(*mesh)
    names = tuple(param.name for param in table(run))
    where = shardings(run, mesh)
    params = [jax.ShapeDtypeStruct(param.shape, np.float32, sharding=where[param.name]) for param in table(run)]
    args = (params, params, params, np.float32(0.9), np.uint32(0))
    if kind != "v213":
        assert_no_collectives(room.sign1_executable(run, mesh, names).lower(*args))
        return
    choose, subtract = room.v213_executables(run, mesh, names)
    assert_no_collectives(choose.lower(*args))
    folded = [(*t.param.shape[: t.param.stack], *t.grid, t.k) for t in tilings(run).values()]
    ints, floats = (
        [jax.ShapeDtypeStruct(shape, dtype, sharding=p.sharding) for shape, p in zip(folded, params, strict=True)]
        for dtype in (np.int32, np.float32)
    )
    assert_no_collectives(subtract.lower(params, ints, floats, floats, np.uint32(0)))


def test_feedback_lies_like_the_parameters_and_is_donated():
    run, mesh = run_of(), mesh_of(8)
    compressor = make_compressor(run, mesh)
    before = compressor.init()
    start, end = (placed(run, mesh, rough(run, seed)) for seed in range(2))
    assert all(not np.asarray(value).any() for value in before.values())
    left, _ = compressor.update(before, start, end)
    for param in table(run):
        for params in (before, left):
            assert params[param.name].sharding.is_equivalent_to(start[param.name].sharding, len(param.shape))
        assert before[param.name].is_deleted() and not start[param.name].is_deleted()


def test_not_finite_is_forgotten():
    run, mesh = run_of(SMALL), mesh_of(1)
    compressor = make_compressor(run, mesh)
    clean = rough(run, 0)
    broken = {name: value.copy() for name, value in clean.items()}
    broken["layers/q"][0, 3, 5], broken["layers/q"][1, 9, 9], broken["norm"][2] = np.nan, np.inf, -np.inf
    zeroed = {name: np.where(np.isfinite(value), value, 0) for name, value in broken.items()}
    zeros = {name: np.zeros_like(value) for name, value in clean.items()}
    (left, packed), (want_left, want) = (
        compressor.update(compressor.init(), placed(run, mesh, start), placed(run, mesh, zeros))
        for start in (broken, zeroed)
    )
    same_bits(left, want_left)
    for name in packed:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(packed[name], want[name], strict=True))


def test_feedback_drains():
    """With nothing new, window after window sends what is left: no element is stuck."""
    run, mesh = run_of(SMALL, feedback_decay=1.0), mesh_of(1)
    compressor = make_compressor(run, mesh)
    zeros = placed(run, mesh, {p.name: np.zeros(p.shape, np.float32) for p in table(run)})
    left, _ = compressor.update(compressor.init(), placed(run, mesh, rough(run, 0)), zeros)
    norms = []
    for _ in range(12):
        left, _ = compressor.update(left, zeros, zeros)
        norms.append({name: float(np.linalg.norm(np.asarray(value))) for name, value in left.items()})
    for name in norms[0]:
        assert norms[-1][name] < 0.85 * norms[0][name], name
