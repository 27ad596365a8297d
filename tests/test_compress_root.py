"""The state root: golden, the same on any mesh, and different after any change."""

import hashlib

import jax
import numpy as np
import pytest
from compress_numpy import MESHES, SMALL, assert_no_collectives, placed, rough, run_of
from models import mesh_of

from templar_jax.compress import root as room
from templar_jax.compress.root import make_root
from templar_jax.config_load import load_run
from templar_jax.sharding import shardings, table
from templar_jax.train.state import init_params

GOLDEN = {
    "nano": "b554091b1c7b94b3fce32316029877d9015d3946f050bfe6af2c809fbb656ef4",
    "tiny": "9a43315f8c680c46ed0fa91048718afcf3c515a2078a85774bd86c427775ca0b",
}


def numpy_root(run, params, salt: int = 0) -> bytes:
    """The definition again."""

    def mix(x):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return x ^ (x >> np.uint32(16))

    seed = hashlib.sha256(b"templar root" + salt.to_bytes(32, "little")).digest()
    digest = hashlib.sha256(seed)
    for param in table(run):
        for index in np.ndindex(param.shape[: param.stack]):
            unit = params[param.name][index].ravel()
            position = np.arange(unit.size, dtype=np.uint32)
            lanes = [
                mix(unit.view(np.uint32) ^ mix(position ^ salted)).sum(dtype=np.uint32)
                for salted in np.frombuffer(seed, "<u4")[:4]
            ]
            name = param.name + "".join(f".{i}" for i in index)
            digest.update(f"{name} {param.unit_shape} float32 ".encode() + np.array(lanes, "<u4").tobytes())
    return digest.digest()


@pytest.mark.parametrize("name", GOLDEN)
def test_root_of_theta_0_is_golden(name):
    run, mesh = load_run(name), mesh_of(1)
    assert make_root(run, mesh)(init_params(run, mesh)).hex() == GOLDEN[name], (
        f"the state root of theta_0 of configs/{name}.toml changed: every node would disagree with the manifests of "
        "running networks. If parameters, table or the root itself were meant to change, put the new value into GOLDEN."
    )


@pytest.mark.parametrize("mesh", [(1, 1), *MESHES])
@pytest.mark.parametrize("salt", [0, 12345])
def test_the_definition_on_any_mesh(mesh, salt):
    run, mesh = run_of(), mesh_of(*mesh)
    params = rough(run, 0)
    assert make_root(run, mesh, salt)(placed(run, mesh, params)) == numpy_root(run, params, salt)


def test_every_change_shows():
    run, mesh = run_of(SMALL), mesh_of(1)
    params, root = rough(run, 0), make_root(run, mesh)
    seen = {root(placed(run, mesh, params)), make_root(run, mesh, 1)(placed(run, mesh, params))}

    def changed(name, change):
        copy = {key: value.copy() for key, value in params.items()}
        change(copy[name])
        return root(placed(run, mesh, copy))

    def flip(value):
        value.view(np.uint32).reshape(-1)[-1] ^= 1

    def swap_elements(value):
        value[0, 0, [0, 1]] = value[0, 0, [1, 0]]

    def swap_layers(value):
        value[[0, 1]] = value[[1, 0]]

    changes = [("norm", flip), ("layers/q", flip), ("layers/q", swap_elements), ("layers/attn_norm", swap_layers)]
    for name, change in changes:
        new = changed(name, change)
        assert new not in seen and len(new) == 32
        seen.add(new)
    exchanged = {**params, "layers/k": params["layers/v"], "layers/v": params["layers/k"]}  # of one shape
    assert root(placed(run, mesh, exchanged)) not in seen


@pytest.mark.parametrize("mesh", MESHES)
def test_no_collectives(mesh):
    run, mesh = run_of(), mesh_of(*mesh)
    where = shardings(run, mesh)
    params = [jax.ShapeDtypeStruct(param.shape, np.float32, sharding=where[param.name]) for param in table(run)]
    assert_no_collectives(room._make_sums(run, mesh, tuple(shardings(run, mesh))).lower(params, np.zeros(4, np.uint32)))


def test_any_salt_uses_one_executable():
    run, mesh = run_of(SMALL), mesh_of(1)
    params = placed(run, mesh, rough(run, 0))
    make_root(run, mesh)(params)
    compiled = room._make_sums(run, mesh, tuple(shardings(run, mesh)))._cache_size()
    assert len({make_root(run, mesh, salt)(params) for salt in range(5)}) == 5
    assert room._make_sums(run, mesh, tuple(shardings(run, mesh)))._cache_size() == compiled
