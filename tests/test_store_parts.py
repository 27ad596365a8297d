"""Uploads in parts, on virtual time with faults: complete and right, or a named refusal within the deadline."""

import asyncio
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templar_jax.errors import NotFound, RefusedError, StoreError
from templar_jax.simulate.loop import VirtualClock, run_virtual
from templar_jax.store import contribution
from templar_jax.store.parts import MAX_PARTS, Index, decode_index, download, encode_index, part_key, upload
from templar_jax.store.simulated import Fault, SimStore

DATA = bytes(value % 251 for value in range(1050))
SHA = hashlib.sha256(DATA).digest()


def simulate(body, **options):
    """Runs `body(store, own bucket, a peer's view of it)` on virtual time."""

    async def main():
        store = SimStore(VirtualClock(), **options)
        bucket = store.bucket("own")
        return await body(store, bucket, store.reader("sim:own", actor="peer"))

    return run_virtual(main, horizon=5000.0)


async def refused(call) -> str:
    with pytest.raises(RefusedError) as caught:
        await call
    return caught.value.reason


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1050])
def test_round_trip(size):
    async def body(store, bucket, peer):
        index = await upload(bucket, "k", DATA[:size], part_bytes=100)
        assert len(index.parts) == -(-size // 100)
        assert await download(peer, "k", size, size, 10) == DATA[:size]
        assert await download(peer, "k", 0, 10_000, 10, sha256=index.sha256) == DATA[:size]

    simulate(body)


def test_parts_move_side_by_side():
    async def body(store, bucket, peer):
        await upload(bucket, "k", DATA, part_bytes=100)  # 11 parts, 4 at a time, then the index: 3 + 1 rounds
        return store.clock.time()

    assert simulate(body, latency=1.0, bytes_per_second=1e12) == pytest.approx(4.0)


def test_the_index_is_written_last_and_without_it_there_is_nothing():
    async def body(store, bucket, peer):
        order = []

        def fault(operation):
            if operation.kind == "put":
                order.append(operation.key)
            return Fault("drop") if operation.key == "k" and operation.kind == "put" else None

        store.fault = fault
        with pytest.raises(StoreError):
            await upload(bucket, "k", DATA, part_bytes=100)
        assert order[-1] == "k" and len(order) == 12
        with pytest.raises(NotFound):
            await download(peer, "k", 0, 10_000, 10)

    simulate(body)


def test_bounds_and_pin_are_checked_before_any_part_is_fetched():
    async def body(store, bucket, peer):
        await upload(bucket, "k", DATA, part_bytes=100)
        asked = []
        store.fault = lambda operation: asked.append(operation.key)
        assert await refused(download(peer, "k", 1051, 2000, 10)) == "size"
        assert await refused(download(peer, "k", 0, 1049, 10)) == "size"
        assert await refused(download(peer, "k", 0, 2000, 10, sha256=bytes(32))) == "hash"
        assert asked == ["k"] * 3

    simulate(body)


def test_changed_missing_and_torn_parts():
    async def body(store, bucket, peer):
        await upload(bucket, "k", DATA, part_bytes=100)
        key = part_key("k", SHA, 3)
        objects = store.buckets["own"]
        good = objects[key]
        objects[key] = (bytes(100), 0.0)
        assert await refused(download(peer, "k", 0, 2000, 10)) == "hash"
        objects[key] = (good[0][:50], 0.0)
        assert await refused(download(peer, "k", 0, 2000, 10)) == "size"
        objects[key] = (good[0] * 2, 0.0)
        with pytest.raises(StoreError):
            await download(peer, "k", 0, 2000, 10)
        del objects[key]
        with pytest.raises(NotFound):
            await download(peer, "k", 0, 2000, 10)
        objects[key] = good
        assert await download(peer, "k", 0, 2000, 10) == DATA

    simulate(body)


def test_an_index_that_lies_about_the_whole():
    async def body(store, bucket, peer):
        index = await upload(bucket, "k", DATA, part_bytes=100)
        lie = bytes(32)
        for part in range(11):
            await bucket.put(part_key("k", lie, part), DATA[part * 100 : part * 100 + 100])
        await bucket.put("k", encode_index(Index(1050, 100, lie, index.parts)))
        assert await refused(download(peer, "k", 0, 2000, 10)) == "hash"

    simulate(body)


def test_replacing_an_object_never_mixes_the_two():
    async def body(store, bucket, peer):
        other = DATA[::-1]

        async def write():
            for data in (DATA, other) * 5:
                await upload(bucket, "k", data, part_bytes=100)

        async def read():
            got = []
            for _ in range(30):
                got.append(await download(peer, "k", 0, 2000, 50))
                await store.clock.sleep(0.013)
            return got

        await upload(bucket, "k", DATA, part_bytes=100)
        got, _ = await asyncio.gather(read(), write())
        assert set(got) == {DATA, other}

    simulate(body)


@pytest.mark.parametrize("kind", ["stall", "delay"])
def test_a_slow_store_costs_the_timeout_and_no_more(kind):
    async def body(store, bucket, peer):
        await upload(bucket, "k", DATA, part_bytes=100)
        store.fault = lambda operation: Fault(kind, 1000.0) if ".parts/" in operation.key else None
        started = store.clock.time()
        with pytest.raises(StoreError, match="did not answer"):
            await download(peer, "k", 0, 2000, 30)
        assert store.clock.time() - started == pytest.approx(30.0, abs=0.01)

    simulate(body)


def test_a_slow_trickle_ends_at_the_deadline_of_the_whole():
    async def body(store, bucket, peer):
        await upload(bucket, "k", DATA, part_bytes=50)
        store.fault = lambda operation: Fault("delay", 9.0)  # each part alone is in time
        started = store.clock.time()
        with pytest.raises(StoreError):
            await download(peer, "k", 0, 2000, 20)
        assert store.clock.time() - started <= 20.01

    simulate(body)


def test_one_fault_leaves_no_job_behind():
    async def body(store, bucket, peer):
        await upload(bucket, "k", DATA, part_bytes=10)
        store.fault = lambda operation: Fault("drop") if operation.key.endswith("00007") else None
        with pytest.raises(StoreError, match="refused"):
            await download(peer, "k", 0, 2000, 30)
        assert len(asyncio.all_tasks()) == 1

    simulate(body)


@settings(max_examples=300)
@given(st.integers(0, 55 + 11 * 32), st.integers(1, 255))
def test_a_changed_index_is_refused_or_another(at, change):
    hashes = tuple(hashlib.sha256(DATA[start : start + 100]).digest() for start in range(0, 1050, 100))
    index = Index(1050, 100, SHA, hashes)
    data = bytearray(encode_index(index))
    data[at] ^= change
    try:
        other = decode_index(bytes(data))
    except RefusedError as error:
        assert error.reason == "index"
    else:
        assert other != index and encode_index(other) == bytes(data)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_garbage_is_no_index(data):
    with pytest.raises(RefusedError, match="index"):
        decode_index(data)


def test_too_many_parts():
    async def body(store, bucket, peer):
        with pytest.raises(StoreError, match="raise part_bytes"):
            await upload(bucket, "k", bytes(MAX_PARTS + 1), part_bytes=1)
        assert store.buckets["own"] == {}

    simulate(body)


def test_torn_put_and_get():
    async def body(store, bucket, peer):
        store.fault = lambda operation: Fault("torn")
        with pytest.raises(StoreError, match="broke off"):
            await bucket.put("a", b"1234")
        assert await peer.get("a", 10, 10) == b"1"

    simulate(body)


def test_readers_of_a_simulated_world():
    async def body(store, bucket, peer):
        with pytest.raises(StoreError):
            store.reader("sim:nobody")
        with pytest.raises(StoreError):
            store.reader("file:///etc")

    simulate(body)


def test_keys_are_published_and_fetched():
    async def body(store, bucket, peer):
        with pytest.raises(NotFound):
            await contribution.fetch_key(peer, 3, 10)
        await contribution.publish_key(bucket, 3, SHA)
        assert await contribution.fetch_key(peer, 3, 10) == SHA
        await bucket.put(contribution.published_key(3), SHA[:31])
        assert await refused(contribution.fetch_key(peer, 3, 10)) == "key"
        await bucket.put(contribution.published_key(3), SHA + b"1")
        with pytest.raises(StoreError):
            await contribution.fetch_key(peer, 3, 10)

    simulate(body)


def test_retention_keeps_new_windows_and_all_manifests():
    async def body(store, bucket, peer):
        for window in range(5):
            await upload(bucket, contribution.sealed_key(window), DATA, part_bytes=600)
            await upload(bucket, contribution.mirror_key(window, 3), DATA, part_bytes=600)
            await contribution.publish_key(bucket, window, SHA)
            await bucket.put(contribution.manifest_key(window, SHA), b"m")
            await bucket.put(f"{contribution.checkpoint_folder(window)}/commit", b"c")
        before = set(store.buckets["own"])
        assert await contribution.expire(bucket, 3) == 3 * 7
        left = set(store.buckets["own"])
        assert {contribution.window_of(key) for key in left if key.startswith("w/")} == {3, 4}
        assert {key for key in before if not key.startswith("w/")} <= left
        await contribution.expire(bucket, 3, oldest_checkpoint=4)
        kept = [key for key in store.buckets["own"] if key.startswith("checkpoint/")]
        assert kept == [f"{contribution.checkpoint_folder(4)}/commit"]

    simulate(body)
