"""Checkpoints on disk, by Orbax.

    ROOT/STEP/public, private, meta     Orbax's items; STEP counts saves, it is no window
    ROOT/STEP/COMMIT.json               path, size and sha256 of every file, written last, after Orbax is done

A save copies the arrays to the host and returns; a thread waits for Orbax, writes COMMIT.json and removes old
checkpoints. Orbax's own files carry no checksums, so a checkpoint without a COMMIT.json that fits every byte does not
count, and the one before is used.
"""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from templar_jax.errors import CheckpointError, StoreError, TemplarError, line_of
from templar_jax.store import snapshot
from templar_jax.store.bucket import Bucket, Reader
from templar_jax.store.checkpoint import (
    Params,
    Restored,
    check_fetched,
    dtype_of,
    other_private,
    other_run,
    other_table,
    private_fingerprint,
    put_like,
    sharding_of,
)
from templar_jax.store.checkpoint_commit import COMMIT, hash_files, verify
from templar_jax.store.contribution import checkpoint_folder
from templar_jax.store.disk import explain, make_folder, write_file
from templar_jax.store.orbax_open import make_array_reader, make_checkpointer
from templar_jax.store.snapshot import Meta, layout_of

SAVE_TIMEOUT = 3600.0  # seconds that `wait` waits for one save


class OrbaxCheckpoints:
    """Checkpoints in the folder `root`, the newest `keep` of them. One node at a time.

    A node of several processes (hosts/) has one of these in each, on the same folder: process 0 decides, and runs
    `parts` of the work in all of them by `everywhere`.
    """

    def __init__(
        self, root: Path, keep: int = 3, part_bytes: int = snapshot.PART_BYTES, index: int = 0, count: int = 1
    ) -> None:
        self.root = root.absolute()
        self.index = index
        self.keep = max(2, keep)  # one to fall back to
        self.part_bytes = part_bytes
        make_folder(self.root)
        for draft in [*self.root.glob("*.orbax-checkpoint-tmp*"), *self.root.glob("fetched-*")]:
            shutil.rmtree(draft, ignore_errors=True)  # of a killed process
        self.parts = {"save": self._start, "load": self._load, "place": self._place}
        self.everywhere: Callable[..., Any] = lambda part, *args: self.parts[part](*args)
        self._checkpointer = make_checkpointer(set(range(count)))
        self._reader = make_checkpointer({index}) if count > 1 else self._checkpointer  # without the other processes
        self._array_reader = make_array_reader(index)
        self._lock = threading.RLock()  # publishing reads on one thread while the node may save on another
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, meta: Meta, public: Params, private: Any, extra: dict[str, Any]) -> None:
        with self._lock:
            self.wait()
            self.everywhere("save", max(self._steps(), default=0) + 1, meta, public, private, extra)

    def _start(self, step: int, meta: Meta, public: Params, private: Any, extra: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        self.wait()
        record = {
            "run_id": meta.run_id,
            "window": meta.window,
            "outer_step": meta.outer_step,
            "predecessor": meta.predecessor.hex(),
            "root": meta.root.hex(),
            "public": [list(row) for row in layout_of(public)],
            "private": private_fingerprint(private),
            "extra": extra,
        }
        items = {
            "public": ocp.args.StandardSave(_numbered([public[name] for name in sorted(public)])),
            "meta": ocp.args.JsonSave(record),
        }
        if leaves := jax.tree.leaves(private):
            items["private"] = ocp.args.StandardSave(_numbered(leaves))
        try:
            self._checkpointer.save(self.root / f"{step:08d}", args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._explained(error) from error
        self._thread = threading.Thread(target=self._finish, args=(step,), name="checkpoint", daemon=True)
        self._thread.start()

    def _finish(self, step: int) -> None:
        """On the thread: waits for Orbax, commits, removes what is old."""
        try:
            self._checkpointer.wait_until_finished()
            if self.index > 0:
                return
            folder = self.root / f"{step:08d}"
            write_file(folder / COMMIT, [json.dumps(hash_files(folder), indent=0).encode()])
            for old in [s for s in self._steps() if (self._folder(s) / COMMIT).exists()][: -self.keep]:
                shutil.rmtree(self._folder(old))
            for leftover in [s for s in self._steps() if s < step and not (self._folder(s) / COMMIT).exists()]:
                shutil.rmtree(self._folder(leftover))
        except Exception as error:  # told to whoever saves or waits next
            self._failure = error

    def wait(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.join(SAVE_TIMEOUT)
                if thread.is_alive():
                    raise CheckpointError(f"a checkpoint in {self.root} was not written within {SAVE_TIMEOUT:.0f} s")
            failure, self._failure = self._failure, None
        if failure is not None:
            raise self._explained(failure) from failure

    def close(self) -> None:
        """Waits for the last save and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            self._reader.close()
            self._array_reader.close()

    def restore(self, run_id: str, public_like: Any, private_like: Any) -> tuple[Restored | None, list[str]]:
        self.wait()
        notes: list[str] = []
        for step in reversed(self._steps()):
            what = f"checkpoint {self._folder(step)}"
            try:
                verify(self._folder(step))
                record = self._record(step)
                if record["run_id"] != run_id:
                    notes.append(other_run(what, record["run_id"]))
                elif record["public"] != [list(row) for row in _listed(layout_of(public_like))]:
                    notes.append(other_table(what))
                else:
                    like = private_like(record["extra"]) if callable(private_like) else private_like
                    fits = record["private"] == private_fingerprint(like)
                    if not fits:
                        notes.append(other_private(what))
                    public, private = self.everywhere("load", step, public_like, like if fits else None)
                    return Restored(_meta(record), public, private, record["extra"]), notes
            except CheckpointError as error:
                notes.append(str(error))
            except (OSError, ValueError, KeyError, TypeError) as error:
                notes.append(f"{what} cannot be read ({line_of(error)}): passed over")
        return None, notes

    def _load(self, step: int, public_like: Any, private_like: Any) -> tuple[Params, Any]:
        import orbax.checkpoint as ocp

        names = sorted(public_like)
        leaves, structure = jax.tree.flatten(private_like)
        items = {"public": ocp.args.StandardRestore(_numbered([_abstract(public_like[name]) for name in names]))}
        if leaves:
            items["private"] = ocp.args.StandardRestore(_numbered([_abstract(leaf) for leaf in leaves]))
        found = self._checkpointer.restore(self._folder(step), args=ocp.args.Composite(**items))
        by_name = dict(zip(names, _in_order(found["public"]), strict=True))
        private = jax.tree.unflatten(structure, _in_order(found["private"]) if leaves else [])
        return {name: by_name[name] for name in public_like}, private

    async def publish(self, bucket: Bucket) -> tuple[int, bytes]:
        """Holds one array at a time in host memory."""
        step, record = await asyncio.to_thread(self._newest)
        meta, layout = _meta(record), tuple((name, tuple(shape), dtype) for name, shape, dtype in record["public"])
        numbers = {name: f"{number:05d}" for number, (name, _, _) in enumerate(layout)}

        async def load(name: str) -> np.ndarray:
            return await asyncio.to_thread(self._load_one, step, numbers[name])

        digest = await snapshot.publish(bucket, checkpoint_folder(meta.window), meta, layout, load, self.part_bytes)
        return meta.window, digest

    def _newest(self) -> tuple[int, dict[str, Any]]:
        """Number and record of the newest checkpoint that is whole."""
        with self._lock:
            self.wait()
            for step in reversed(self._steps()):
                try:
                    verify(self._folder(step))
                except CheckpointError:
                    continue
                return step, self._record(step)
        raise CheckpointError("there is no checkpoint to publish yet")

    def _load_one(self, step: int, number: str) -> np.ndarray:
        import orbax.checkpoint as ocp

        how = {number: ocp.RestoreArgs(restore_type=np.ndarray)}
        args = ocp.args.PyTreeRestore({number: np.empty(0)}, restore_args=how, partial_restore=True)
        try:
            found = self._array_reader.restore(self._folder(step) / "public", args=args)
        except (OSError, ValueError, KeyError) as error:  # a newer one has replaced it
            raise CheckpointError(f"checkpoint {self._folder(step)} cannot be read ({line_of(error)})") from error
        return np.asarray(found[number])

    async def fetch(
        self, reader: Reader, run_id: str, window: int, sha256: bytes, public_like: Any, timeout: float
    ) -> Restored:
        """By way of files, so that the host's memory holds a few parts only."""
        layout = layout_of(public_like)
        draft = self.root / f"fetched-{sha256.hex()[:16]}"
        shutil.rmtree(draft, ignore_errors=True)
        make_folder(draft)
        paths = {name: draft / f"{number:04d}" for number, (name, _, _) in enumerate(layout)}
        try:
            for path in paths.values():
                path.touch()

            def write(name: str, offset: int, piece: bytes) -> None:
                with open(paths[name], "r+b") as file:
                    file.seek(offset)
                    file.write(piece)

            folder = checkpoint_folder(window)
            meta = await snapshot.fetch(reader, folder, sha256, layout, write, timeout, self.part_bytes)
            check_fetched(meta, run_id, window)
            return Restored(meta, self.everywhere("place", draft.name, public_like), None, {})
        except OSError as error:
            raise StoreError(explain(error, draft)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _place(self, draft: str, public_like: Any) -> Params:
        """The arrays that `fetch` wrote, on the mesh."""
        arrays = {
            name: np.memmap(self.root / draft / f"{number:04d}", dtype, mode="r", shape=shape)
            if 0 not in shape
            else np.empty(shape, dtype)
            for number, (name, shape, dtype) in enumerate(layout_of(public_like))
        }
        return put_like(arrays, public_like)

    def _folder(self, step: int) -> Path:
        return self.root / f"{step:08d}"

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdigit() and path.is_dir())

    def _record(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        found = self._reader.restore(self._folder(step), args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return found["meta"]

    def _explained(self, error: Exception) -> CheckpointError:
        text = str(error)
        if isinstance(error, TemplarError):
            return CheckpointError(text)
        if "No space left" in text or "RESOURCE_EXHAUSTED" in text:
            return CheckpointError(f"no space left on the disk of {self.root}: free some, or set another folder")
        return CheckpointError(f"a checkpoint in {self.root} could not be written: {line_of(error)}")


def _numbered(leaves: list[Any]) -> dict[str, Any]:
    """Names contain "/" and trees contain tuples; Orbax sees neither."""
    return {f"{number:05d}": leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for number, leaf in enumerate(leaves)}


def _in_order(found: dict[str, Any]) -> list[Any]:
    return [found[key] for key in sorted(found)]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype_of(leaf), sharding=sharding_of(leaf))


def _listed(layout: snapshot.Layout) -> list[tuple[str, list[int], str]]:
    return [(name, list(shape), dtype) for name, shape, dtype in layout]


def _meta(record: dict[str, Any]) -> Meta:
    hashes = bytes.fromhex(record["predecessor"]), bytes.fromhex(record["root"])
    return Meta(record["run_id"], record["window"], record["outer_step"], *hashes)
