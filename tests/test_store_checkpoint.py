"""Checkpoints: one contract for disk and memory."""

import asyncio
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from checkpoints import META, RUN, mesh_of, same, tree

from templar_jax.errors import CheckpointError, NotFound, RefusedError, StoreError
from templar_jax.simulate.loop import VirtualClock, run_virtual
from templar_jax.store.checkpoint import MemoryCheckpoints
from templar_jax.store.checkpoint_orbax import OrbaxCheckpoints
from templar_jax.store.contribution import checkpoint_folder
from templar_jax.store.open import file_locator, open_bucket
from templar_jax.store.simulated import SimStore

PART = 1000  # bytes, so that arrays have several parts


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
