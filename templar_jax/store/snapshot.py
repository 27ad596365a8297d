"""Published checkpoints: the public arrays as raw parts, and a commit object, written last, that pins every byte.

    FOLDER/part-AAAA-PPPPP    part P of array A: little-endian, C order, PART_BYTES each (the last one shorter)
    FOLDER/commit             magic, schema, run id, window, outer step, predecessor, root, sha256 of the layout,
                              then the sha256 of every part in order

The layout (names, shapes, dtypes in order of the name) follows from the run's configuration, so the commit has an exact
length and nothing in it names a file or claims a size. The same parameters give the same bytes on every node:
sha256(commit) is what a leader commits on the chain, and anybody who holds the parameters can check it.
"""

import asyncio
import hashlib
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from templar_jax.errors import RefusedError, StoreError
from templar_jax.store.bucket import Bucket, Reader
from templar_jax.store.parts import gather_all

PART_BYTES = 32 * 2**20  # of the format: the same for everybody
SCHEMA = 1

_MAGIC = b"TMCKPT01"
_HEAD = struct.Struct("<8sB16sQQ32s32s32s")

Layout = tuple[tuple[str, tuple[int, ...], str], ...]  # (name, shape, dtype), ascending by name


@dataclass(frozen=True)
class Meta:
    """Where in a run's history the public arrays stand."""

    run_id: str  # 32 hex digits
    window: int  # the arrays are those at the start of this window
    outer_step: int  # outer steps taken so far
    predecessor: bytes  # hash of the last manifest, 32 zeros at genesis
    root: bytes  # state root of the parameters


def layout_of(arrays: Mapping[str, Any]) -> Layout:
    """From anything with `.shape` and `.dtype`."""
    return tuple(
        (name, tuple(map(int, arrays[name].shape)), np.dtype(arrays[name].dtype).name) for name in sorted(arrays)
    )


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def part_key(folder: str, array: int, part: int) -> str:
    return f"{folder}/part-{array:04d}-{part:05d}"


async def publish(
    bucket: Bucket,
    folder: str,
    meta: Meta,
    layout: Layout,
    load: Callable[[str], Awaitable[np.ndarray]],
    part_bytes: int = PART_BYTES,
) -> bytes:
    """Uploads the arrays, one at a time, then the commit; returns sha256(commit). Raises StoreError."""
    hashes: list[bytes] = []
    for number, (name, shape, dtype) in enumerate(layout):
        array = np.asarray(await load(name), order="C")
        if (array.shape, array.dtype.name) != (shape, dtype):
            raise ValueError(f"{name} is {array.dtype.name} {array.shape}, its layout says {dtype} {shape}")
        view = array.reshape(-1).view(np.uint8).data
        sizes = _part_sizes(len(view), part_bytes)
        digests = [b""] * len(sizes)

        async def put(part: int, number=number, view=view, digests=digests) -> None:
            piece = bytes(view[part * part_bytes : (part + 1) * part_bytes])
            digests[part] = hashlib.sha256(piece).digest()
            await bucket.put(part_key(folder, number, part), piece)

        await gather_all((lambda part=part: put(part)) for part in range(len(sizes)))
        hashes += digests
    commit = _encode(meta, layout, hashes, part_bytes)
    await bucket.put(f"{folder}/commit", commit)
    return hashlib.sha256(commit).digest()


async def fetch(
    reader: Reader,
    folder: str,
    sha256: bytes,
    layout: Layout,
    write: Callable[[str, int, bytes], None],
    timeout: float,
    part_bytes: int = PART_BYTES,
) -> Meta:
    """Downloads a published checkpoint; every byte handed to `write(name, offset, piece)` has been checked.

    Args:
      sha256: of the commit, from the chain.
      layout: of this run; nothing else is accepted.
      timeout: seconds for everything.
    Raises:
      RefusedError: "hash" or "snapshot"; NotFound; StoreError.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    sizes = [_part_sizes(bytes_of(shape, dtype), part_bytes) for _, shape, dtype in layout]
    length = _HEAD.size + 32 * sum(map(len, sizes))
    commit = await reader.get(f"{folder}/commit", length, timeout)
    if hashlib.sha256(commit).digest() != sha256:
        raise RefusedError("hash", f"the commit in {folder} is not the one on the chain")
    if len(commit) != length:
        raise RefusedError("snapshot", f"a commit of {len(commit)} bytes, this run's have {length}")
    meta = _decode(commit, layout, part_bytes)
    hashes = iter(range(_HEAD.size, length, 32))
    jobs = [
        (name, number, part, size, commit[at : at + 32])
        for number, (name, _, _) in enumerate(layout)
        for (part, size), at in zip(enumerate(sizes[number]), hashes, strict=False)
    ]

    async def get(name: str, number: int, part: int, size: int, digest: bytes) -> None:
        left = deadline - loop.time()
        if left <= 0:
            raise StoreError(f"the checkpoint in {folder} was not fetched within {timeout:.0f} s")
        piece = await reader.get(part_key(folder, number, part), size, left)
        if len(piece) != size or hashlib.sha256(piece).digest() != digest:
            raise RefusedError("hash", f"part {part} of {name} in {folder}")
        write(name, part * part_bytes, piece)

    await gather_all((lambda job=job: get(*job)) for job in jobs)
    return meta


def _part_sizes(total: int, part_bytes: int) -> list[int]:
    return [min(part_bytes, total - start) for start in range(0, total, part_bytes)]


def _layout_hash(layout: Layout, part_bytes: int) -> bytes:
    return hashlib.sha256(repr((layout, part_bytes)).encode()).digest()


def _encode(meta: Meta, layout: Layout, hashes: Iterable[bytes], part_bytes: int) -> bytes:
    run_id, layout_hash = bytes.fromhex(meta.run_id), _layout_hash(layout, part_bytes)
    if [len(run_id), len(meta.predecessor), len(meta.root)] != [16, 32, 32]:
        raise ValueError("a run id has 16 bytes, a hash and a root 32")
    places = run_id, meta.window, meta.outer_step, meta.predecessor, meta.root
    return _HEAD.pack(_MAGIC, SCHEMA, *places, layout_hash) + b"".join(hashes)


def _decode(commit: bytes, layout: Layout, part_bytes: int) -> Meta:
    magic, schema, run_id, window, outer_step, predecessor, root, layout_hash = _HEAD.unpack_from(commit)
    if magic != _MAGIC or schema != SCHEMA or layout_hash != _layout_hash(layout, part_bytes):
        raise RefusedError("snapshot", "another schema, or not this run's table of parameters")
    return Meta(run_id.hex(), window, outer_step, predecessor, root)
