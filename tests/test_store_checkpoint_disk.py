"""Checkpoints on disk, beyond the contract: damage, kills, a full disk."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import META, RUN, mesh_of, same, tree

from templar_jax.errors import CheckpointError, StoreError
from templar_jax.store.checkpoint_commit import COMMIT
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints


def damage_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def damage_flip(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, Path.unlink])
@pytest.mark.parametrize("where", ["public", "private", "meta", COMMIT])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path, devices, damage, where):
    mesh = mesh_of(devices, 1)
    checkpoints = OrbaxCheckpoints(tmp_path)
    for window in (4, 5):
        checkpoints.save(replace(META, window=window), *tree(mesh, window), {})
    checkpoints.close()
    newest = tmp_path / "00000002"
    files = [path for path in newest.rglob("*") if path.is_file() and where in path.relative_to(newest).parts]
    damage(max(files, key=lambda path: path.stat().st_size))
    again = OrbaxCheckpoints(tmp_path)
    restored, notes = again.restore(RUN, *tree(mesh))
    assert restored is not None and restored.meta.window == 4 and same(restored.public, tree(mesh, 4)[0])
    assert len(notes) == 1 and str(newest) in notes[0] and "passed over" in notes[0] and "\n" not in notes[0]
    again.save(replace(META, window=6), *tree(mesh, 6), {})  # goes on beside the damaged one
    again.wait()
    restored, notes = again.restore(RUN, *tree(mesh))
    assert restored is not None and restored.meta.window == 6 and notes == []
    again.close()


SAVER = """
import os, sys
from pathlib import Path
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from templar_jax.store.checkpoint import Meta
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints

checkpoints = OrbaxCheckpoints(Path(sys.argv[1]), keep=2)
window = 0
while True:
    window += 1
    public = {"w": jax.numpy.full((700, 700), float(window))}
    checkpoints.save(Meta("ab" * 16, window, window, bytes(32), bytes(32)), public, {"e": public["w"] + 0.5}, {})
    if window >= 3:
        print(window, flush=True)
"""


@pytest.mark.processes
def test_a_saver_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    like = jax.ShapeDtypeStruct((700, 700), np.float32)
    for pause in (0.0, 0.013, 0.031):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        (tmp_path / "00009999.orbax-checkpoint-tmp").mkdir()  # as a kill in Orbax's own writing leaves it
        checkpoints = OrbaxCheckpoints(tmp_path)
        assert not list(tmp_path.glob("*tmp*"))
        found, notes = checkpoints.restore(RUN, {"w": like}, {"e": like})
        checkpoints.close()
        assert found is not None and all("interrupted" in note for note in notes)
        value = float(found.meta.window)
        assert found.meta.window >= 1
        assert (np.asarray(found.public["w"]) == value).all() and (np.asarray(found.private["e"]) == value + 0.5).all()


def test_a_full_disk_is_one_clear_line_and_the_old_checkpoint_stays(tmp_path, devices):
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        small, big = {"w": jnp.ones((50, 50))}, {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}
        checkpoints = OrbaxCheckpoints(disk / "c")
        checkpoints.save(META, small, {}, {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="no space left") as caught:
            checkpoints.save(META, big, {}, {})
            checkpoints.wait()
        assert "\n" not in str(caught.value)
        checkpoints.close()
        again = OrbaxCheckpoints(disk / "c")
        found, _ = again.restore(RUN, small, {})
        assert found is not None and same(found.public, small)
        again.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file is in the way"):
        OrbaxCheckpoints(tmp_path / "file")


def test_the_record_is_plain_json(tmp_path, devices):
    checkpoints = OrbaxCheckpoints(tmp_path)
    checkpoints.save(META, *tree(mesh_of(devices, 1)), {"cursor": {"run_id": RUN, "step": 3}})
    checkpoints.close()
    record = json.loads((tmp_path / "00000001/meta/metadata").read_text())
    assert record["extra"] == {"cursor": {"run_id": RUN, "step": 3}} and record["window"] == META.window
