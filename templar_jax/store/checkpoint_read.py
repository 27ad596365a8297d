"""Reads the global model out of a node's checkpoints, without being that node: for export, generation, evaluation.

Read-only, one array at a time or straight onto a mesh; the node may go on running meanwhile.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from templar_jax.config import RunConfig
from templar_jax.errors import CheckpointError, ConfigError, line_of
from templar_jax.sharding import table
from templar_jax.store.checkpoint_commit import COMMIT
from templar_jax.store.snapshot import Meta

# Where COMMIT.json may lie under the folder that a user names: a step, a folder of steps, a node, a run, a home.
PLACES = (COMMIT, f"*/{COMMIT}", f"checkpoints/*/{COMMIT}", f"*/checkpoints/*/{COMMIT}", f"*/*/checkpoints/*/{COMMIT}")


@dataclass(frozen=True)
class Saved:
    """One checkpoint's public part. `shapes` by name, outer momentum included."""

    folder: Path
    meta: Meta
    shapes: dict[str, tuple[int, ...]]

    def check(self, run: RunConfig) -> None:
        """Raises ConfigError unless the run's parameters are in it, with the shapes of its table."""
        for param in table(run):
            found = self.shapes.get(param.name)
            if found != param.shape:
                raise ConfigError(
                    f"checkpoint {self.folder} has {param.name} {found or 'not at all'}, the run has {param.shape}: "
                    "give the --config that it was trained with"
                )

    def load(self, name: str) -> np.ndarray:
        """One array on the host. Raises CheckpointError: it cannot be read (any more)."""
        return np.asarray(self._restore({name: None})[name])

    def place(self, like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The named arrays as `like` says: shape, dtype (cast while reading) and sharding; in its order."""
        return self._restore(like)

    def _restore(self, like: Mapping[str, Any]) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        numbers = {name: f"{number:05d}" for number, name in enumerate(sorted(self.shapes))}
        item, how = {}, {}
        for name, struct in like.items():
            key = numbers[name]
            if struct is None:
                item[key], how[key] = np.empty(self.shapes[name]), ocp.RestoreArgs(restore_type=np.ndarray)
            else:
                item[key], how[key] = struct, ocp.ArrayRestoreArgs(sharding=struct.sharding, dtype=struct.dtype)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                args = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
                found = reader.restore(self.folder / "public", args=args)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint {self.folder} cannot be read ({line_of(error)}): its node may have replaced it, try again"
            ) from error
        return {name: found[numbers[name]] for name in like}


def open_checkpoint(path: Path, window: int | None = None) -> Saved:
    """The newest whole checkpoint under `path` (a step's folder, a node's, a home), or the newest of `window`.

    Raises:
      CheckpointError: there is none, or the newest is damaged.
    """
    commits = {commit for place in PLACES for commit in path.glob(place)}
    for commit in sorted(commits, key=_time, reverse=True):
        saved = _open(commit.parent)
        if window is None or saved.meta.window == window:
            return _verified(saved)
    which = "" if window is None else f" of window {window}"
    raise CheckpointError(f"no checkpoint{which} under {path}: name another folder, or train first (scripts/mine.py)")


def _open(folder: Path) -> Saved:
    try:
        record = json.loads((folder / "meta" / "metadata").read_bytes())  # as Orbax writes a JSON item
        shapes = {name: tuple(shape) for name, shape, _ in record["public"]}
        hashes = bytes.fromhex(record["predecessor"]), bytes.fromhex(record["root"])
        return Saved(folder, Meta(record["run_id"], record["window"], record["outer_step"], *hashes), shapes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read ({line_of(error)}): name another") from error


def _verified(saved: Saved) -> Saved:
    """Raises CheckpointError unless the bytes of the public part are those that COMMIT.json lists."""
    try:
        listed = json.loads((saved.folder / COMMIT).read_bytes())
        for row in listed:
            if row["path"].startswith("public/"):
                with open(saved.folder / row["path"], "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != row["sha256"]:
                        raise CheckpointError(f"checkpoint {saved.folder} is damaged ({row['path']}): name another")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {saved.folder} cannot be read ({line_of(error)}): name another") from error
    return saved


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # its node has just removed it
        return 0.0
