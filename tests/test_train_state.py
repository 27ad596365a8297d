"""theta_0: exact, the same on any mesh, and what it should be."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from models import WIDE, mesh_of, small_run

from templar_jax.config_load import load_run
from templar_jax.sharding import table
from templar_jax.train.state import LANE_STD, init_params, parameter_key, threefry2x32

GOLDEN = {
    "nano": "671a3668b65581f65e1ce04360be6808c37905b55a58a6eee9cc6c1e9dbc774e",
    "tiny": "fda4387d9418291850f93b515f872327ac8e8fa787617524787b533f6556f282",
}


def digest(params) -> str:
    sha = hashlib.sha256()
    for name, value in params.items():
        sha.update(f"{name} {value.shape} {value.dtype}".encode())
        sha.update(np.asarray(value).tobytes())
    return sha.hexdigest()


def test_threefry_known_answers():
    """The known answers of Random123 1.14 for threefry2x32 with 20 rounds."""
    for key, counter, want in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]:
        got = threefry2x32(key, tuple(jax.numpy.uint32(word) for word in counter))
        assert tuple(int(word) for word in got) == want


@pytest.mark.parametrize("name", GOLDEN)
def test_theta_0_is_golden(name):
    run = load_run(name)
    assert digest(init_params(run, mesh_of(1))) == GOLDEN[name], (
        f"theta_0 of configs/{name}.toml changed. Every running network of this config would split: if the change of "
        "the table, the shapes or the seed was meant, put the new digest into GOLDEN; else find what moved a bit."
    )


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2), (1, 8)])
def test_theta_0_is_the_same_on_any_mesh(mesh):
    run = small_run(WIDE)
    one, many = init_params(run, mesh_of(1)), init_params(run, mesh_of(*mesh))
    assert list(many) == [param.name for param in table(run)]
    assert digest(one) == digest(many)


def test_theta_0_is_numpy_f32():
    """The definition again, in NumPy integers, for one element anywhere in the stack."""
    run = small_run()
    (param,) = [param for param in table(run) if param.name == "layers/q"]
    value = np.asarray(init_params(run, mesh_of(1))["layers/q"])
    for layer, row, col in [(0, 0, 0), (1, 0, 1), (1, 77, 5)]:
        words = threefry2x32(
            parameter_key(run.seed, "layers/q"),
            (jax.numpy.uint32(layer), jax.numpy.uint32(row * param.shape[2] + col)),
        )
        assert param.init_std is not None
        lanes = [int(word) >> shift & 0xFFFF for word in words for shift in (0, 16)]
        want = np.float32(sum(lanes) - 131070) * np.float32(param.init_std / LANE_STD)
        assert value[layer, row, col] == want


def test_theta_0_has_the_moments_of_the_table():
    run = small_run(WIDE)
    params = init_params(run, mesh_of(8))
    for param in table(run):
        value = np.asarray(params[param.name], np.float64)
        if param.init_std is None:
            assert (value == 1).all()
            continue
        n = value.size**0.5
        assert abs(value.mean()) < 4 * param.init_std / n
        assert abs(value.std() / param.init_std - 1) < 4 / n
        assert abs(value).max() < 3.5 * param.init_std
    # No two parameters, layers or neighbours share a stream.
    q, gate = np.asarray(params["layers/q"]), np.asarray(params["layers/gate"])
    for a, b in [(q[0], q[1]), (q, gate), (q[:, :, 1:], q[:, :, :-1])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.size**0.5


def test_another_seed_is_another_theta_0():
    run = small_run()
    other = dataclasses.replace(run, seed=1)
    assert digest(init_params(run, mesh_of(1))) != digest(init_params(other, mesh_of(1)))
