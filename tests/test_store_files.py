"""file:// buckets: what goes wrong on a disk, and locators."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from templar_jax.errors import ConfigError, NotFound, StoreError
from templar_jax.store.disk import DRAFT, write_file
from templar_jax.store.open import file_locator, open_bucket, open_reader, parse
from templar_jax.store.sealed_files import load_seal, prune_seals, save_seal


def bucket_at(path: Path):
    return open_bucket(file_locator(path))


def test_leftovers_of_a_killed_writer_are_not_objects(tmp_path):
    async def body():
        bucket = bucket_at(tmp_path / "b")
        await bucket.put("w/1", b"x")
        (tmp_path / "b/w/2.__lock").write_bytes(b"half")
        (tmp_path / "b/w/3#1").write_bytes(b"half")
        assert [item.key for item in await bucket.list("")] == ["w/1"]
        await bucket.put("w/2", b"y")  # a stale lock does not block
        assert [item.key for item in await bucket.list("")] == ["w/1", "w/2"]
        old, new = tmp_path / "b/w/4.__lock", tmp_path / "b/w/5.__lock"
        for leftover in (old, new):
            leftover.write_bytes(b"half")
        os.utime(old, (0, 0))
        bucket_at(tmp_path / "b")  # sweeps what is nobody's any more
        assert not old.exists() and new.exists()

    asyncio.run(body())


def test_only_plain_files_are_read(tmp_path):
    async def body():
        bucket = bucket_at(tmp_path / "b")
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "b/link").symlink_to(tmp_path / "secret")
        os.mkfifo(tmp_path / "b/pipe")  # would block for ever
        for key in ("link", "pipe"):
            with pytest.raises(StoreError, match="not a plain file"):
                await bucket.get(key, 100, 1)

    asyncio.run(body())


def test_a_bucket_that_does_not_exist_yet_is_empty(tmp_path):
    async def body():
        reader = open_reader(file_locator(tmp_path / "later"), local=True)
        assert await reader.list("") == []
        with pytest.raises(NotFound):
            await reader.get("a", 1, 1)
        assert not (tmp_path / "later").exists()

    asyncio.run(body())


def test_a_path_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file is in the way") as caught:
        bucket_at(tmp_path / "file")
    assert "\n" not in str(caught.value)

    async def body():
        bucket = bucket_at(tmp_path / "b")
        await bucket.put("a", b"1")
        with pytest.raises(StoreError, match="a file is in the way") as caught:
            await bucket.put("a/b", b"1")
        assert "\n" not in str(caught.value)

    asyncio.run(body())


def test_a_folder_that_is_not_writable_is_one_clear_line():
    with pytest.raises(StoreError, match=r"^/proc/\S+") as caught:
        bucket_at(Path("/proc/templar"))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_line_and_leaves_no_object(tmp_path):
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:

        async def body():
            bucket = bucket_at(disk / "b")
            await bucket.put("small", bytes(1000))
            with pytest.raises(StoreError, match="no space left on the disk") as caught:
                await bucket.put("big", bytes(2**20))
            assert "\n" not in str(caught.value)
            assert [item.key for item in await bucket.list("")] == ["small"]

        asyncio.run(body())
        with pytest.raises(StoreError, match="no space left on the disk"):
            save_seal(disk / "seals", 3, bytes(32), bytes(2**20))
        assert load_seal(disk / "seals", 3) is None
        assert not [path for path in disk.rglob("*") if DRAFT in path.name]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


WRITER = """
import asyncio, sys
from pathlib import Path
from templar_jax.store.open import file_locator, open_bucket
from templar_jax.store.parts import upload

async def main():
    bucket, number = open_bucket(file_locator(Path(sys.argv[1]))), 0
    print("ready", flush=True)
    while True:
        number += 1
        await upload(bucket, "k", bytes([number % 251]) * 3_000_000, part_bytes=1_000_000)
        await bucket.put("plain", bytes([number % 251]) * 500_000)

asyncio.run(main())
"""


@pytest.mark.processes
def test_a_writer_killed_at_any_moment_leaves_nothing_half_written(tmp_path):
    from templar_jax.store.parts import download

    async def read(moment: float) -> int:
        reader, seen = open_reader(file_locator(tmp_path / "b"), local=True), 0
        until = time.monotonic() + moment
        while time.monotonic() < until:
            try:
                whole = await download(reader, "k", 3_000_000, 3_000_000, 10)
                plain = await reader.get("plain", 500_000, 10)
            except NotFound:
                continue  # not yet there
            assert whole == whole[:1] * 3_000_000 and plain == plain[:1] * 500_000
            seen += 1
        return seen

    seen = 0
    for moment in (0.05, 0.11, 0.17):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "b")], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        seen += asyncio.run(read(moment))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        seen += asyncio.run(read(0.02))
    assert seen > 0


def test_write_file_replaces_or_keeps(tmp_path):
    path = tmp_path / "folder/file"
    assert write_file(path, [b"a", b"b"])
    assert not write_file(path, [b"c"], replace=False)
    assert path.read_bytes() == b"ab"
    assert write_file(path, [b"c"])
    assert path.read_bytes() == b"c" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_an_existing_seal_is_never_replaced(tmp_path):
    first, second = (bytes([1]) * 32, b"first"), (bytes([2]) * 32, b"second")
    assert load_seal(tmp_path, 7) is None
    assert save_seal(tmp_path, 7, *first) == first
    assert save_seal(tmp_path, 7, *second) == first
    assert load_seal(tmp_path, 7) == first
    save_seal(tmp_path, 8, *second)
    (tmp_path / f"0000000009.seal{DRAFT}1").write_bytes(b"half")
    prune_seals(tmp_path, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["0000000008.seal"]


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:20], lambda d: b"", lambda d: d[:50] + b"?" + d[51:]]
)
def test_a_damaged_seal_says_what_to_do(tmp_path, damage):
    save_seal(tmp_path, 7, bytes(32), b"sealed")
    path = tmp_path / "0000000007.seal"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match="damaged: remove it"):
        load_seal(tmp_path, 7)


def test_a_long_path_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="the chain takes 128: use a shorter folder"):
        file_locator(tmp_path / ("x" * 120))


@pytest.mark.parametrize("path", ["/a b", "/a/ü", "/a%20b", "/plain-path_1.2~", "/a,b;c"])
def test_any_path_has_one_locator(path):
    locator = file_locator(Path(path))
    assert parse(locator) == Path(path) and locator.isascii() and " " not in locator
