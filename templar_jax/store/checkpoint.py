"""The checkpoint port: what a node keeps of itself, and what it shows others of the global model.

A checkpoint has a *public* part (what every node of the run has at that point of history: parameters, outer momentum),
a *private* part (optimizer, error feedback: any pytree) and a small JSON record. It restores onto any mesh: the caller
says by `like` trees (arrays or ShapeDtypeStructs with shardings) where the arrays shall lie.

Two implementations: `checkpoint_orbax` on disk, and `MemoryCheckpoints` for simulations, where nothing may run on
another thread. Both publish the same bytes (see snapshot).
"""

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from templar_jax.errors import CheckpointError, RefusedError
from templar_jax.store import snapshot
from templar_jax.store.bucket import Bucket, Reader
from templar_jax.store.contribution import checkpoint_folder
from templar_jax.store.snapshot import Meta, layout_of

__all__ = ["Checkpoints", "MemoryCheckpoints", "Meta", "Restored", "private_fingerprint", "put_like"]

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Restored:
    """A checkpoint on the caller's mesh."""

    meta: Meta
    public: Params
    private: Any  # the pytree, or None: fetched from a peer, or saved by a program with another structure
    extra: dict[str, Any]  # the JSON record, {} where fetched from a peer


class Checkpoints(Protocol):
    """The node's own checkpoints."""

    def save(self, meta: Meta, public: Params, private: Any, extra: dict[str, Any]) -> None:
        """Starts a save. The arrays may be donated or deleted once this returns.

        Raises CheckpointError: the save before this one failed (full disk, ...).
        """
        ...

    def wait(self) -> None:
        """Blocks until the last save is durable. Raises CheckpointError where it failed."""
        ...

    def restore(self, run_id: str, public_like: Any, private_like: Any) -> tuple[Restored | None, list[str]]:
        """The newest checkpoint that is whole and of this run, or None; and a line about each one passed over.

        Args:
          run_id: of the run; others' checkpoints are passed over.
          public_like, private_like: trees of arrays or ShapeDtypeStructs with shardings. `private_like` may also be
            a function of the JSON record that returns such a tree.
        """
        ...

    async def publish(self, bucket: Bucket) -> tuple[int, bytes]:
        """Uploads the public part of the newest checkpoint; returns (window, sha256) for the chain.

        Raises CheckpointError (none saved), StoreError.
        """
        ...

    async def fetch(
        self, reader: Reader, run_id: str, window: int, sha256: bytes, public_like: Any, timeout: float
    ) -> Restored:
        """A published checkpoint of another node. Raises RefusedError, NotFound, StoreError."""
        ...


def put_like(arrays: dict[str, np.ndarray], like: Any) -> Params:
    """Places each array as `like[name]` is sharded; every shard is a copy of its own."""
    return {
        name: jax.make_array_from_callback(
            tuple(target.shape), sharding_of(target), lambda index, array=arrays[name]: np.array(array[index])
        )
        for name, target in like.items()
    }


def sharding_of(leaf: Any) -> jax.sharding.Sharding:
    """Where a leaf of a `like` tree lies: the first device if it does not say."""
    found = getattr(leaf, "sharding", None)
    return found if found is not None else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def dtype_of(leaf: Any) -> np.dtype:
    return np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def private_fingerprint(tree: Any) -> list[str]:
    """Path, dtype and shape of every leaf: what must agree for a private part to be restored."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {dtype_of(leaf).name} {np.shape(leaf)}" for path, leaf in leaves]


def check_fetched(meta: Meta, run_id: str, window: int) -> Meta:
    """Raises RefusedError("run" | "window") where a published checkpoint is another than the chain says."""
    if meta.run_id != run_id:
        raise RefusedError("run", f"a checkpoint of run {meta.run_id}")
    if meta.window != window:
        raise RefusedError("window", f"a checkpoint of window {meta.window}, announced for {window}")
    return meta


@dataclass(frozen=True)
class _Saved:
    meta: Meta
    public: dict[str, np.ndarray]
    private: Any  # the pytree with NumPy leaves
    extra: str  # JSON


@dataclass
class MemoryCheckpoints:
    """For simulations: survives what the simulator calls a crash for as long as the simulator keeps it."""

    keep: int = 2
    part_bytes: int = snapshot.PART_BYTES
    saved: list[_Saved] = field(default_factory=list)  # oldest first

    def save(self, meta: Meta, public: Params, private: Any, extra: dict[str, Any]) -> None:
        copies = {name: np.array(array) for name, array in public.items()}
        self.saved.append(_Saved(meta, copies, jax.tree.map(np.array, private), json.dumps(extra)))
        del self.saved[: -self.keep]

    def wait(self) -> None:
        """Nothing is under way."""

    def restore(self, run_id: str, public_like: Any, private_like: Any) -> tuple[Restored | None, list[str]]:
        notes = []
        for saved in reversed(self.saved):
            if saved.meta.run_id != run_id:
                notes.append(other_run(f"the checkpoint of window {saved.meta.window}", saved.meta.run_id))
                continue
            if layout_of(saved.public) != layout_of(public_like):
                notes.append(other_table(f"the checkpoint of window {saved.meta.window}"))
                continue
            extra = json.loads(saved.extra)
            like = private_like(extra) if callable(private_like) else private_like
            private = None
            if private_fingerprint(saved.private) == private_fingerprint(like):
                leaves = jax.tree.leaves(saved.private)
                placed = put_like(dict(enumerate(leaves)), dict(enumerate(jax.tree.leaves(like))))  # type: ignore[arg-type]
                private = jax.tree.unflatten(jax.tree.structure(like), placed.values())
            else:
                notes.append(other_private(f"the checkpoint of window {saved.meta.window}"))
            return Restored(saved.meta, put_like(saved.public, public_like), private, extra), notes
        return None, notes

    async def publish(self, bucket: Bucket) -> tuple[int, bytes]:
        if not self.saved:
            raise CheckpointError("there is no checkpoint to publish yet")
        newest = self.saved[-1]
        folder, layout = checkpoint_folder(newest.meta.window), layout_of(newest.public)

        async def load(name: str) -> np.ndarray:
            return newest.public[name]

        digest = await snapshot.publish(bucket, folder, newest.meta, layout, load, self.part_bytes)
        return newest.meta.window, digest

    async def fetch(
        self, reader: Reader, run_id: str, window: int, sha256: bytes, public_like: Any, timeout: float
    ) -> Restored:
        layout = layout_of(public_like)
        buffers = {name: bytearray() for name, _, _ in layout}

        def write(name: str, offset: int, piece: bytes) -> None:
            buffer = buffers[name]
            buffer.extend(bytes(max(0, offset + len(piece) - len(buffer))))
            buffer[offset : offset + len(piece)] = piece

        folder = checkpoint_folder(window)
        meta = await snapshot.fetch(reader, folder, sha256, layout, write, timeout, self.part_bytes)
        check_fetched(meta, run_id, window)
        arrays = {name: np.frombuffer(buffers[name], dtype).reshape(shape) for name, shape, dtype in layout}
        return Restored(meta, put_like(arrays, public_like), None, {})


def other_run(what: str, run_id: str) -> str:
    return f"{what} is of run {run_id[:8]}: passed over"


def other_table(what: str) -> str:
    return f"{what} holds other parameters than this run's: passed over"


def other_private(what: str) -> str:
    return f"{what} has a private part of another structure: the optimizer and error feedback start afresh"
