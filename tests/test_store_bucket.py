"""One contract for all buckets: files, simulated, and S3 where TEMPLAR_TEST_S3 names a server's bucket (a locator;
write keys as for a node)."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from templar_jax.errors import NotFound, StoreError
from templar_jax.simulate.loop import VirtualClock, run_virtual
from templar_jax.store.bucket import Bucket, Reader, is_key
from templar_jax.store.open import file_locator, open_bucket, open_reader
from templar_jax.store.simulated import SimStore

S3 = os.environ.get("TEMPLAR_TEST_S3", "")
BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    ".",
    "a/.",
    "a b",
    "a\n",
    "é",
    "a\\b",
    "x.__lock",
    "a" * 513,
    "a\0b",
]


@dataclass
class World:
    """How to open buckets of one implementation, and how to run a coroutine with them."""

    run: Callable[[Callable[[Callable[[], Bucket], Callable[[str], Reader]], Awaitable[Any]]], Any]


def _files(tmp_path) -> World:
    locator = file_locator(tmp_path / "a bucket")
    return World(
        lambda body: asyncio.run(body(lambda: open_bucket(locator), lambda text: open_reader(text, local=True)))
    )


def _simulated(tmp_path) -> World:
    def run(body):
        async def main():
            store = SimStore(VirtualClock())
            return await body(lambda: store.bucket("own"), store.reader)

        return run_virtual(main)

    return World(run)


def _s3(tmp_path) -> World:
    async def clean(body):
        bucket = open_bucket(S3)
        await bucket.delete([item.key for item in await bucket.list("")])
        return await body(lambda: open_bucket(S3), lambda text: open_reader(text, local=True))

    return World(lambda body: asyncio.run(clean(body)))


@pytest.fixture(params=["files", "simulated"] + (["s3"] if S3 else []))
def world(request, tmp_path) -> World:
    return {"files": _files, "simulated": _simulated, "s3": _s3}[request.param](tmp_path)


def test_a_put_is_read_back_by_owner_and_peer(world):
    async def body(own, reader):
        bucket = own()
        peer = reader(bucket.locator)
        for data in (b"", b"one", bytes(range(256)) * 999):
            await bucket.put("w/0000000001/sealed", data)
            assert await bucket.get("w/0000000001/sealed", len(data), 10) == data
            assert await peer.get("w/0000000001/sealed", len(data) + 5, 10) == data

    world.run(body)


def test_a_missing_object_is_not_found(world):
    async def body(own, reader):
        bucket = own()
        await bucket.put("folder/file", b"1")
        for key in ("nothing", "folder", "folder/file/below"):
            with pytest.raises(NotFound):
                await reader(bucket.locator).get(key, 10, 10)

    world.run(body)


def test_a_larger_object_is_refused(world):
    async def body(own, reader):
        bucket = own()
        await bucket.put("big", bytes(1000))
        with pytest.raises(StoreError, match="1000 bytes, more than the 999") as caught:
            await reader(bucket.locator).get("big", 999, 10)
        assert not isinstance(caught.value, NotFound) and "\n" not in str(caught.value)

    world.run(body)


def test_list_takes_a_folder_in_order_and_stops_at_the_limit(world):
    async def body(own, reader):
        bucket = own()
        assert await bucket.list("w") == []
        for key in ("w/10/b", "w/1/a", "w/1/b/c", "w/1", "wx", "v"):
            if key != "w/1":  # a folder and an object cannot share a name everywhere
                await bucket.put(key, key.encode())
        peer = reader(bucket.locator)
        assert [item.key for item in await peer.list("w")] == ["w/1/a", "w/1/b/c", "w/10/b"]
        assert [item.key for item in await peer.list("w/1/")] == ["w/1/a", "w/1/b/c"]
        assert [(item.key, item.size) for item in await peer.list("")] == [
            ("v", 1), ("w/1/a", 5), ("w/1/b/c", 7), ("w/10/b", 6), ("wx", 2),
        ]  # fmt: skip
        assert [item.key for item in await peer.list("", limit=2)] == ["v", "w/1/a"]
        assert await peer.list("nothing") == []

    world.run(body)


def test_delete_takes_missing_keys(world):
    async def body(own, reader):
        bucket = own()
        await bucket.put("a/b", b"1")
        await bucket.put("a/c", b"2")
        await bucket.delete(["a/b", "never/was"])
        assert [item.key for item in await bucket.list("")] == ["a/c"]
        await bucket.delete([])
        await bucket.put("a/b", b"3")  # a folder that emptied can be used again
        assert await bucket.get("a/b", 1, 10) == b"3"

    world.run(body)


def test_a_key_that_is_none_is_refused_everywhere(world):
    async def body(own, reader):
        bucket = own()
        for key in BAD_KEYS:
            assert not is_key(key)
            for call in (bucket.put(key, b""), bucket.get(key, 1, 1), bucket.delete([key])):
                with pytest.raises(StoreError, match="not an object key"):
                    await call
        with pytest.raises(StoreError, match="not an object key"):
            await bucket.list("../up")

    world.run(body)


def test_a_reader_sees_the_old_or_the_new_object_never_a_mixture(world):
    async def body(own, reader):
        bucket, size = own(), 300_000
        contents = [bytes([value]) * size for value in range(8)]
        await bucket.put("k", contents[0])
        peer, seen = reader(bucket.locator), set()
        stop = asyncio.Event()

        async def write():
            for data in contents * 3:
                await bucket.put("k", data)
            stop.set()

        async def read():
            while not stop.is_set():
                data = await peer.get("k", size, 10)
                assert len(data) == size and data == bytes([data[0]]) * size
                seen.add(data[0])

        await asyncio.gather(write(), read(), read())
        assert seen

    world.run(body)
