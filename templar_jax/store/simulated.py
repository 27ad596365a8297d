"""Buckets of a simulation: dictionaries on a virtual clock, with faults on demand.

All nodes share one `SimStore`. Nothing completes on another thread: an operation is `await clock.sleep(...)` and a
dictionary access, so the same seed gives the same history.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from templar_jax.clock import Clock
from templar_jax.errors import NotFound, StoreError
from templar_jax.store.bucket import ObjectInfo, check_key, check_prefix

Kind = Literal["get", "list", "put", "delete"]
STALL_SECONDS = 600.0  # a put, list or delete that stalls fails after this
SCHEME = "sim:"


@dataclass(frozen=True)
class Operation:
    """What is about to happen; a fault hook decides by it."""

    actor: str  # who does it: the name under which the bucket or reader was opened
    bucket: str
    kind: Kind
    key: str  # or prefix; "" for delete
    size: int  # bytes to be moved
    at: float  # virtual seconds


@dataclass(frozen=True)
class Fault:
    """drop: fails at once, without effect. delay: `seconds` more. stall: never answers. torn: half the bytes.

    A torn put stores the half and fails (a broken store); a torn get returns the half (a lying one). swap: a get
    returns `data`.
    """

    kind: Literal["drop", "delay", "stall", "torn", "swap"]
    seconds: float = 0.0
    data: bytes = b""


def no_fault(operation: Operation) -> Fault | None:
    del operation
    return None


@dataclass
class SimStore:
    """All buckets of one simulated world."""

    clock: Clock
    latency: float = 0.05  # seconds of every operation
    bytes_per_second: float = 50e6  # of each operation by itself
    fault: Callable[[Operation], Fault | None] = no_fault  # what happens to anybody's operations
    owners: dict[str, Callable[[Operation], Fault | None]] = field(default_factory=dict)  # to others', by bucket
    buckets: dict[str, dict[str, tuple[bytes, float]]] = field(default_factory=dict)

    def bucket(self, name: str) -> "SimBucket":
        """The node's own bucket; made if it is new."""
        self.buckets.setdefault(check_key(name), {})
        return SimBucket(self, name, name)

    def reader(self, locator: str, actor: str = "") -> "SimReader":
        """Somebody's bucket by its locator; StoreError where the locator is none of this world."""
        name = locator.removeprefix(SCHEME)
        if not locator.startswith(SCHEME) or name not in self.buckets:
            raise StoreError(f"no simulated bucket {locator[:80]!r}")
        return SimReader(self, name, actor)


class SimReader:
    """A bucket seen by `actor`."""

    def __init__(self, store: SimStore, name: str, actor: str) -> None:
        self.store = store
        self.name = name
        self.actor = actor
        self.locator = SCHEME + name

    @property
    def _objects(self) -> dict[str, tuple[bytes, float]]:
        return self.store.buckets[self.name]

    async def _pass_time(self, kind: Kind, key: str, size: int, timeout: float) -> Fault | None:
        """Lets the operation's time pass, and returns what happens to its bytes; StoreError if it fails."""
        store = self.store
        operation = Operation(self.actor, self.name, kind, key, size, store.clock.time())
        fault = store.fault(operation)
        if fault is None and self.actor != self.name:
            fault = store.owners.get(self.name, no_fault)(operation)
        seconds = store.latency + size / store.bytes_per_second
        if fault is not None and fault.kind == "delay":
            seconds += fault.seconds
        if (fault is not None and fault.kind == "stall") or seconds > timeout:
            await store.clock.sleep(timeout)
            raise StoreError(f"{self.locator} did not answer {kind} {key} within {timeout:.0f} s")
        await store.clock.sleep(seconds)
        if fault is not None and fault.kind == "drop":
            raise StoreError(f"{self.locator} refused {kind} {key}")
        return fault if fault is not None and fault.kind in ("torn", "swap") else None

    async def get(self, key: str, max_bytes: int, timeout: float) -> bytes:
        check_key(key)
        data, _ = self._objects.get(key, (b"", 0.0))
        fault = await self._pass_time("get", key, min(len(data), max_bytes), timeout)
        if key not in self._objects:
            raise NotFound(f"no object {key} in {self.locator}")
        data, _ = self._objects[key]  # as it is when the answer comes
        if fault is not None and fault.kind == "swap":
            data = fault.data
        if len(data) > max_bytes:
            raise StoreError(f"{key} in {self.locator} has {len(data)} bytes, more than the {max_bytes} allowed")
        return data[: len(data) // 2] if fault is not None and fault.kind == "torn" else data

    async def list(self, prefix: str, limit: int = 10_000) -> list[ObjectInfo]:
        check_prefix(prefix)
        await self._pass_time("list", prefix, 0, STALL_SECONDS)
        folder = prefix.rstrip("/") + "/" if prefix else ""
        keys = sorted(key for key in self._objects if key.startswith(folder))
        return [ObjectInfo(key, len(self._objects[key][0]), self._objects[key][1]) for key in keys[:limit]]


class SimBucket(SimReader):
    """The node's own bucket."""

    async def put(self, key: str, data: bytes) -> None:
        check_key(key)
        data = bytes(data)
        fault = await self._pass_time("put", key, len(data), STALL_SECONDS)
        torn = fault is not None and fault.kind == "torn"
        self._objects[key] = (data[: len(data) // 2] if torn else data, self.store.clock.time())
        if torn:
            raise StoreError(f"{self.locator} broke off while {key} was written")

    async def delete(self, keys: list[str]) -> None:
        for key in keys:
            check_key(key)
        await self._pass_time("delete", "", 0, STALL_SECONDS)
        for key in keys:
            self._objects.pop(key, None)
