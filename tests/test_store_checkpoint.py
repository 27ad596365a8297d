"""Checkpoints: one contract for disk and memory, then what a disk adds: kills, damage, a full disk."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from templar_jax.errors import CheckpointError, NotFound, RefusedError, StoreError
from templar_jax.simulate.loop import VirtualClock, run_virtual
from templar_jax.store.checkpoint import MemoryCheckpoints, Meta
from templar_jax.store.checkpoint_commit import COMMIT
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints
from templar_jax.store.contribution import checkpoint_folder
from templar_jax.store.open import file_locator, open_bucket
from templar_jax.store.simulated import SimStore

RUN = "ab" * 16
META = Meta(RUN, 7, 5, bytes(range(32)), bytes(32))
PART = 1000  # bytes, so that arrays have several parts


def tree(mesh: Mesh, seed: int = 0):
    """(public, private) on the mesh: stacked, sharded, replicated, bfloat16 and scalar leaves, optax states."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    public = {
        "layers/q": put(jax.random.normal(next(keys), (2, 64, 16)), None, "fsdp"),
        "embed": put(jax.random.normal(next(keys), (64, 8)), "fsdp"),
        "norm": put(jnp.ones((5,)) * seed),
        "momentum/embed": put(jax.random.normal(next(keys), (64, 8), jnp.bfloat16), "fsdp"),
    }
    params = {name: public[name] for name in ("layers/q", "embed")}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    feedback = jax.tree.map(lambda x: x * 2, params)
    private = {"opt": jax.jit(optimizer.init)(params), "feedback": feedback, "empty": {}, "none": None}
    return public, private


def mesh_of(devices, count: int) -> Mesh:
    return Mesh(np.array(devices[:count]), ("fsdp",))


def same(a, b) -> bool:
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    equal = [np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(leaves_a, leaves_b, strict=True)]
    return jax.tree.structure(a) == jax.tree.structure(b) and all(equal)


@pytest.fixture(params=["disk", "memory"])
def make(request, tmp_path):
    """Opens the node's checkpoints, each time as a restarted process would."""
    opened, memory = [], MemoryCheckpoints(keep=2, part_bytes=PART)

    def on_disk():
        opened.append(OrbaxCheckpoints(tmp_path / "checkpoints", keep=2, part_bytes=PART))
        return opened[-1]

    yield on_disk if request.param == "disk" else lambda: memory
    for checkpoints in opened:
        checkpoints.close()


@pytest.mark.parametrize("counts", [(8, 1), (1, 4), (4, 8)])
def test_restores_onto_any_mesh(make, devices, counts):
    saver, loader = (mesh_of(devices, count) for count in counts)
    public, private = tree(saver, 3)
    first = make()
    first.save(META, public, private, {"cursor": {"step": 4}})
    first.wait()
    public_like, private_like = tree(loader, 9)
    found, notes = make().restore(RUN, public_like, private_like)
    assert found is not None and notes == []
    assert (found.meta, found.extra) == (META, {"cursor": {"step": 4}})
    assert same(found.public, public) and same(found.private, private)
    assert list(found.public) == list(public_like)
    for name, array in found.public.items():
        assert array.sharding.is_equivalent_to(public_like[name].sharding, array.ndim)
        assert array.dtype == public_like[name].dtype


def test_restores_onto_abstract_targets(make, devices):
    public, private = tree(mesh_of(devices, 8), 3)
    checkpoints = make()
    checkpoints.save(META, public, private, {"partial": True})

    def abstract(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    like = jax.tree.map(abstract, private)
    asked = []
    found, _ = checkpoints.restore(RUN, jax.tree.map(abstract, public), lambda extra: (asked.append(extra), like)[1])
    assert found is not None and same(found.private, private) and asked == [{"partial": True}]


def test_arrays_may_be_donated_as_soon_as_save_returns(make, devices):
    public, private = tree(mesh_of(devices, 8), 3)
    expected = tree(mesh_of(devices, 8), 3)
    checkpoints = make()
    scramble = partial(jax.jit, donate_argnums=0)(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree))
    checkpoints.save(META, public, private, {})
    jax.block_until_ready(scramble((public, private)))
    found, notes = checkpoints.restore(RUN, *tree(mesh_of(devices, 8)))
    assert found is not None and notes == []
    assert same(found.public, expected[0]) and same(found.private, expected[1])


def test_the_newest_counts_and_old_ones_go(make, devices):
    mesh, checkpoints = mesh_of(devices, 1), make()
    assert checkpoints.restore(RUN, *tree(mesh)) == (None, [])
    for window in (3, 4, 4, 5):  # a window may be saved twice: at its start, and at a clean stop in the middle
        checkpoints.save(replace(META, window=window), *tree(mesh, window), {"window": window})
    checkpoints.wait()
    found, _ = make().restore(RUN, *tree(mesh))
    assert found is not None and found.meta.window == 5 and same(found.public, tree(mesh, 5)[0])
    count = len(checkpoints.saved) if isinstance(checkpoints, MemoryCheckpoints) else len(checkpoints._steps())
    assert count == 2


def test_another_run_is_passed_over(make, devices):
    mesh, checkpoints = mesh_of(devices, 1), make()
    checkpoints.save(META, *tree(mesh, 1), {})
    checkpoints.save(replace(META, run_id="cd" * 16), *tree(mesh, 2), {})
    found, notes = checkpoints.restore(RUN, *tree(mesh))
    assert found is not None and same(found.public, tree(mesh, 1)[0])
    assert len(notes) == 1 and "of run cdcdcdcd" in notes[0]


def test_a_program_with_another_optimizer_keeps_the_model(make, devices):
    mesh, checkpoints = mesh_of(devices, 1), make()
    public, private = tree(mesh, 1)
    checkpoints.save(META, public, private, {})
    found, notes = checkpoints.restore(RUN, public, {"opt": jnp.zeros(3)})
    assert found is not None and found.private is None and same(found.public, public)
    assert len(notes) == 1 and "start afresh" in notes[0]


def test_another_table_of_parameters_is_passed_over(make, devices):
    mesh, checkpoints = mesh_of(devices, 1), make()
    public, private = tree(mesh, 1)
    checkpoints.save(META, public, private, {})
    found, notes = checkpoints.restore(RUN, public | {"norm": jnp.ones(6)}, private)
    assert found is None and len(notes) == 1 and "other parameters" in notes[0]


def test_no_private_part_at_all(make, devices):
    checkpoints = make()
    public = tree(mesh_of(devices, 1), 1)[0]
    checkpoints.save(META, public, {}, {})
    found, notes = checkpoints.restore(RUN, public, {})
    assert found is not None and found.private == {} and notes == []


def publish_and(checkpoints, tmp_path, body):
    """Publishes to a bucket of the world that the implementation belongs to, then runs `body(bucket, announced)`."""

    async def in_files():
        bucket = open_bucket(file_locator(tmp_path / "bucket"))
        return await body(bucket, await checkpoints.publish(bucket))

    async def in_simulation():
        bucket = SimStore(VirtualClock()).bucket("own")
        return await body(bucket, await checkpoints.publish(bucket))

    return run_virtual(in_simulation) if isinstance(checkpoints, MemoryCheckpoints) else asyncio.run(in_files())


def test_publish_and_fetch(make, devices, tmp_path):
    public, private = tree(mesh_of(devices, 8), 3)
    saver = make()
    saver.save(replace(META, window=6), *tree(mesh_of(devices, 8), 2), {})
    saver.save(META, public, private, {})
    like = tree(mesh_of(devices, 4))[0]

    async def body(bucket, announced):
        window, digest = announced
        assert window == META.window
        found = await make().fetch(bucket, RUN, window, digest, like, 30)
        assert same(found.public, public) and (found.meta, found.private, found.extra) == (META, None, {})
        sharding = found.public["embed"].sharding
        assert sharding.is_equivalent_to(like["embed"].sharding, 2)
        assert await saver.publish(bucket) == announced

    publish_and(saver, tmp_path, body)


def test_golden(make, tmp_path):
    """Nodes of two versions could not join each other: raise snapshot.SCHEMA where a change is meant."""
    checkpoints = make()
    public = {"b": jnp.arange(700, dtype=jnp.float32).reshape(2, 350), "a": jnp.arange(3, dtype=jnp.bfloat16)}
    checkpoints.save(META, public, {}, {})

    async def body(bucket, announced):
        assert announced[1].hex() == "aae3ea602d0a5dbbf8415b57d56d6d6f834f1d087eef891dd90e92ff85c977a5"

    publish_and(checkpoints, tmp_path, body)


def test_nothing_to_publish(make, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to publish"):
        publish_and(make(), tmp_path, None)


def test_what_a_peer_serves_is_not_believed(make, devices, tmp_path):
    public, private = tree(mesh_of(devices, 1), 3)
    checkpoints = make()
    checkpoints.save(META, public, private, {})

    async def body(bucket, announced):
        window, digest = announced
        folder = checkpoint_folder(window)

        async def reason(run=RUN, window=window, digest=digest, like=public) -> str:
            with pytest.raises(RefusedError) as caught:
                await checkpoints.fetch(bucket, run, window, digest, like, 30)
            return caught.value.reason

        assert await reason(digest=bytes(32)) == "hash"
        assert await reason(run="cd" * 16) == "run"
        assert await reason(like=public | {"more": jnp.ones(3)}) == "snapshot"
        with pytest.raises(StoreError, match="more than the"):
            await reason(like={name: x for name, x in public.items() if name != "norm"})
        renamed = {("other" if name == "norm" else name): x for name, x in public.items()}
        assert await reason(like=renamed) == "snapshot"
        commit = await bucket.get(f"{folder}/commit", 10_000, 1)
        await bucket.put(f"{checkpoint_folder(8)}/commit", commit)
        for item in await bucket.list(folder):
            data = await bucket.get(item.key, 10_000, 1)
            await bucket.put(item.key.replace(folder, checkpoint_folder(8)), data)
        assert await reason(window=8) == "window"
        key = f"{folder}/part-0001-00002"
        part = await bucket.get(key, 10_000, 1)
        await bucket.put(key, part[:-1] + bytes([part[-1] ^ 1]))
        assert await reason() == "hash"
        await bucket.put(key, part[:-1])
        assert await reason() == "hash"
        await bucket.put(key, part + b"1")
        with pytest.raises(StoreError):
            await checkpoints.fetch(bucket, RUN, window, digest, public, 30)
        await bucket.delete([key])
        with pytest.raises(NotFound):
            await checkpoints.fetch(bucket, RUN, window, digest, public, 30)

    publish_and(checkpoints, tmp_path, body)
    assert not list(tmp_path.glob("checkpoints/fetched-*"))


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
