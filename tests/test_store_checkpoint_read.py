"""A node's checkpoints read from outside: the right one is found, onto any mesh, and a damaged one is refused."""

import os

import jax
import numpy as np
import pytest
from models import SMALL, WIDE, mesh_of, rough_params, small_run

from templar_jax.compress.root import make_root
from templar_jax.errors import CheckpointError, ConfigError
from templar_jax.sharding import shardings
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints
from templar_jax.store.checkpoint_read import open_checkpoint
from templar_jax.store.snapshot import Meta

RUN = small_run(WIDE)


def save(root, params, *windows):
    checkpoints = OrbaxCheckpoints(root, keep=len(windows) + 1)
    try:
        for window in windows:
            public = {**params, "momentum/norm": params["norm"] * 2}
            meta = Meta(RUN.run_id, window, window - 1, bytes(32), b"r" * 32)
            checkpoints.save(meta, public, {"opt": params["norm"]}, {})
            checkpoints.wait()
    finally:
        checkpoints.close()
    for at, commit in enumerate(sorted(root.glob("*/COMMIT.json"))):
        os.utime(commit, (1000 + at, 1000 + at))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """(params, home) with checkpoints of windows 3 and 4 where a node keeps them."""
    home = tmp_path_factory.mktemp("home")
    params = rough_params(RUN, mesh_of(8))
    save(home / "abcd1234" / "miner-0" / "checkpoints", params, 3, 4)
    return params, home


@pytest.mark.parametrize("depth", range(4))
def test_the_newest_is_found_from_any_folder_above(home, depth):
    _, root = home
    folder = root / "/".join(["abcd1234", "miner-0", "checkpoints", "00000002"][: depth + 1])
    for path in (root, folder):
        saved = open_checkpoint(path)
        assert (saved.meta.window, saved.meta.outer_step, saved.meta.root) == (4, 3, b"r" * 32)
    assert open_checkpoint(root, window=3).folder.name == "00000001"


def test_arrays_are_read_one_by_one_and_onto_any_mesh(home):
    params, root = home
    saved = open_checkpoint(root)
    saved.check(RUN)
    np.testing.assert_array_equal(saved.load("layers/down"), np.asarray(params["layers/down"]))
    np.testing.assert_array_equal(saved.load("momentum/norm"), 2 * np.asarray(params["norm"]))
    at = shardings(RUN, mesh_of(2, 2))
    like = {name: jax.ShapeDtypeStruct(params[name].shape, "bfloat16", sharding=at[name]) for name in params}
    placed = saved.place(like)
    assert list(placed) == list(params)
    for name, value in placed.items():
        assert value.sharding == at[name] and value.dtype == "bfloat16"
        np.testing.assert_array_equal(np.asarray(value), np.asarray(params[name].astype("bfloat16")))


def test_what_is_not_there_is_said(home, tmp_path):
    _, root = home
    with pytest.raises(CheckpointError, match="no checkpoint under"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint of window 9"):
        open_checkpoint(root, window=9)
    with pytest.raises(ConfigError, match="--config"):
        open_checkpoint(root).check(small_run(SMALL))


def test_a_changed_byte_and_a_killed_save_are_refused(tmp_path):
    params = rough_params(RUN, mesh_of(1))
    save(tmp_path, params, 5, 6)
    (tmp_path / "00000002" / "COMMIT.json").unlink()  # as if killed before it was committed
    assert open_checkpoint(tmp_path).meta.window == 5
    victim = max(
        (path for path in (tmp_path / "00000001" / "public").rglob("d/*")), key=lambda path: path.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("mesh", [(1, 1), (4, 1), (8, 1), (4, 2), (2, 4)], ids=str)
def test_the_state_root_is_the_same_on_every_mesh(home, mesh):
    params, root = home
    there, at = mesh_of(*mesh), shardings(RUN, mesh_of(*mesh))
    like = {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=at[name]) for name, value in params.items()}
    assert make_root(RUN, there)(open_checkpoint(root).place(like)) == make_root(RUN, mesh_of(8))(params)
