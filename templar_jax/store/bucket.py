"""The bucket port: all that a node knows of object storage. Implementations: files, S3, simulated.

Keys are relative, "/"-separated, of [A-Za-z0-9._/-] only. A put is atomic: a reader sees the old object, the
new one, or none. Nobody trusts what a peer's bucket says of itself: readers bound sizes and check hashes.
"""

from dataclasses import dataclass
from typing import Protocol


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
        """Objects under `prefix`, ascending by key, at most `limit`."""
        ...


class Bucket(Reader, Protocol):
    """The node's own bucket."""

    async def put(self, key: str, data: bytes) -> None: ...

    async def delete(self, keys: list[str]) -> None:
        """Missing keys are no error."""
        ...
