"""The bucket port: all that a node knows of object storage. Implementations: files, S3, simulated.

Keys are relative, "/"-separated, of [A-Za-z0-9._/-] only. A put is atomic: a reader sees the old object, the
new one, or none. Nobody trusts what a peer's bucket says of itself: readers bound sizes and check hashes.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from templar_jax.errors import StoreError


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size: int  # bytes
    modified: float  # the store's own clock: never decides anything


class Reader(Protocol):
    """Somebody's bucket, opened from the locator on the chain. May raise `StoreError`, `NotFound`."""

    locator: str  # at most 128 bytes with the read key; what stands in a commitment's field 1

    async def get(self, key: str, max_bytes: int, timeout: float) -> bytes:
        """The whole object. Refuses (StoreError) before reading when it is larger than `max_bytes`."""
        ...

    async def list(self, prefix: str, limit: int = 10_000) -> list[ObjectInfo]:
        """Objects in the folder `prefix` ("" for all) and below, ascending by key, the first `limit` of them."""
        ...


class Bucket(Reader, Protocol):
    """The node's own bucket."""

    async def put(self, key: str, data: bytes) -> None: ...

    async def delete(self, keys: list[str]) -> None:
        """Missing keys are no error."""
        ...


MAX_KEY = 512  # characters
_KEY = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")


def is_key(key: str) -> bool:
    """True if `key` names an object: relative, no empty part, no "." or "..", no lock file of a writer."""
    if len(key) > MAX_KEY or not _KEY.fullmatch(key) or key.endswith(".__lock"):
        return False
    return not any(part in (".", "..") for part in key.split("/"))


def check_key(key: str) -> str:
    """Returns `key`, or raises StoreError where it is none."""
    if not is_key(key):
        raise StoreError(
            f"not an object key: {key[:80]!r}; use relative names of [A-Za-z0-9._/-] without '.' or '..' parts"
        )
    return key


def check_prefix(prefix: str) -> str:
    """Returns `prefix` ("" or a key, with or without a final "/"), or raises StoreError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
