"""Large objects: raw parts, then an index written last. Without the index the object does not exist.

KEY                            index: magic, sizes, sha256 of the whole and of every part
KEY.parts/HASH/00000 ...       parts; HASH = first 16 hex digits of the sha256 of the whole, so that a replaced
                               object never mixes with the one before
"""

import asyncio
import hashlib
import struct
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from templar_jax.errors import RefusedError, StoreError
from templar_jax.store.bucket import Bucket, Reader

PART_BYTES = 32 * 2**20  # 16 to 64 MiB go well
MAX_PARTS = 4096
CONCURRENCY = 4  # parts in flight of one object

_MAGIC = b"TMPARTS1"
_HEAD = struct.Struct("<8sQQ32s")  # magic, total bytes, bytes of a part, sha256 of the whole; then 32 bytes a part
MAX_INDEX = _HEAD.size + 32 * MAX_PARTS


@dataclass(frozen=True)
class Index:
    """What the index object says: to be believed only after the bounds were checked and the hashes matched."""

    total: int  # bytes
    part_bytes: int
    sha256: bytes
    parts: tuple[bytes, ...]  # sha256 of each part

    def size(self, part: int) -> int:
        """Bytes of part number `part`."""
        return min(self.part_bytes, self.total - part * self.part_bytes)


def part_key(key: str, sha256: bytes, part: int) -> str:
    """Name of one part's object."""
    return f"{key}.parts/{sha256.hex()[:16]}/{part:05d}"


def encode_index(index: Index) -> bytes:
    return _HEAD.pack(_MAGIC, index.total, index.part_bytes, index.sha256) + b"".join(index.parts)


def decode_index(data: bytes) -> Index:
    """Raises RefusedError("index")."""
    if len(data) < _HEAD.size:
        raise RefusedError("index", "too short")
    magic, total, part_bytes, sha256 = _HEAD.unpack_from(data)
    if magic != _MAGIC or part_bytes == 0:
        raise RefusedError("index", "not an index of parts")
    count = -(-total // part_bytes)
    if count > MAX_PARTS or len(data) != _HEAD.size + 32 * count:
        raise RefusedError("index", f"{len(data)} bytes for {count} parts")
    starts = range(_HEAD.size, len(data), 32)
    return Index(total, part_bytes, sha256, tuple(data[start : start + 32] for start in starts))


async def upload(bucket: Bucket, key: str, data: bytes, part_bytes: int = PART_BYTES) -> Index:
    """Writes the parts, then the index. Killed before that, it leaves nothing that a reader would find.

    Raises:
      StoreError: the bucket failed, or the object has more than MAX_PARTS parts.
    """
    view = memoryview(data)
    count = -(-len(view) // part_bytes)
    if count > MAX_PARTS:
        raise StoreError(f"{key}: {count} parts are too many, raise part_bytes above {part_bytes}")
    whole, hashes = hashlib.sha256(), []
    for part in range(count):
        piece = view[part * part_bytes : (part + 1) * part_bytes]
        whole.update(piece)
        hashes.append(hashlib.sha256(piece).digest())
        await asyncio.sleep(0)  # keep the loop alive while gigabytes are hashed
    index = Index(len(view), part_bytes, whole.digest(), tuple(hashes))

    async def put(part: int) -> None:
        start = part * part_bytes
        await bucket.put(part_key(key, index.sha256, part), bytes(view[start : start + index.size(part)]))

    await gather_all((lambda part=part: put(part)) for part in range(count))
    await bucket.put(key, encode_index(index))
    return index


async def read_index(reader: Reader, key: str, min_bytes: int, max_bytes: int, timeout: float) -> Index:
    """The index, its size checked against the bounds. Raises RefusedError("index" | "size"), NotFound, StoreError."""
    index = decode_index(await reader.get(key, MAX_INDEX, timeout))
    if not min_bytes <= index.total <= max_bytes:
        raise RefusedError("size", f"{index.total} bytes, allowed are {min_bytes} to {max_bytes}")
    return index


async def download(
    reader: Reader, key: str, min_bytes: int, max_bytes: int, timeout: float, sha256: bytes | None = None
) -> bytes:
    """The whole object, every part and the whole checked against the index.

    Args:
      min_bytes, max_bytes: bounds of the object, known from the run's configuration; at most twice the object is held.
      timeout: seconds for everything.
      sha256: of the whole, where it is known from elsewhere; compared before any part is fetched.
    Raises:
      RefusedError: "index", "size" or "hash".
      NotFound: the object, or a part of it, is not there (yet).
      StoreError: the bucket failed, or took longer than `timeout`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    index = await read_index(reader, key, min_bytes, max_bytes, timeout)
    if sha256 is not None and index.sha256 != sha256:
        raise RefusedError("hash", f"{key} holds {index.sha256.hex()[:12]}, expected {sha256.hex()[:12]}")
    pieces: list[bytes] = [b""] * len(index.parts)

    async def fetch(part: int) -> None:
        left = deadline - loop.time()
        if left <= 0:
            raise StoreError(f"{key} was not fetched within {timeout:.0f} s")
        piece = await reader.get(part_key(key, index.sha256, part), index.size(part), left)
        if len(piece) != index.size(part):
            raise RefusedError("size", f"part {part} of {key} has {len(piece)} bytes")
        if hashlib.sha256(piece).digest() != index.parts[part]:
            raise RefusedError("hash", f"part {part} of {key}")
        pieces[part] = piece

    await gather_all((lambda part=part: fetch(part)) for part in range(len(pieces)))
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(piece)
        await asyncio.sleep(0)
    if whole.digest() != index.sha256:
        raise RefusedError("hash", f"{key} as a whole")
    return b"".join(pieces)


async def gather_all(jobs: Iterator[Callable[[], Coroutine[Any, Any, None]]], limit: int = CONCURRENCY) -> None:
    """Runs the jobs, `limit` at a time, in order of their start. The first failure cancels the others and is raised."""

    async def worker() -> None:
        for job in jobs:
            await job()

    workers = [asyncio.ensure_future(worker()) for _ in range(limit)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
