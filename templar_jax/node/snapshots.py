"""What a miner's state was when it left a window, kept until nobody can ask for it any more: on disk, or in memory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from templar_jax.errors import StoreError
from templar_jax.store.disk import DRAFT, explain, make_folder, write_file

KEEP = 3  # a window's audit needs two, and the next window may be sealed before its answer is due
SUFFIX = ".state"


class Snapshots(Protocol):
    """Raises StoreError."""

    def save(self, window: int, state: bytes) -> None:
        """Keeps the state after `window` durably, and forgets all but the KEEP newest."""
        ...

    def load(self, window: int) -> bytes: ...

    def windows(self) -> list[int]:
        """Ascending."""
        ...

    def drop(self, window: int) -> None: ...


@dataclass
class MemorySnapshots:
    """Survives what the simulator calls a crash as long as the simulator keeps it, as a disk would."""

    kept: dict[int, bytes] = field(default_factory=dict)

    def save(self, window: int, state: bytes) -> None:
        self.kept[window] = state
        for old in self.windows()[:-KEEP]:
            del self.kept[old]

    def load(self, window: int) -> bytes:
        if window not in self.kept:
            raise StoreError(f"no state of window {window} was kept")
        return self.kept[window]

    def windows(self) -> list[int]:
        return sorted(self.kept)

    def drop(self, window: int) -> None:
        self.kept.pop(window, None)


@dataclass(frozen=True)
class DiskSnapshots:
    """One file a window, written with fsync. See `open_snapshots`."""

    folder: Path

    def save(self, window: int, state: bytes) -> None:
        write_file(self._path(window), [state])
        for old in self.windows()[:-KEEP]:
            self.drop(old)

    def load(self, window: int) -> bytes:
        try:
            return self._path(window).read_bytes()
        except OSError as error:
            raise StoreError(explain(error, self._path(window))) from error

    def windows(self) -> list[int]:
        found = (path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}"))
        return sorted(int(name) for name in found if name.isascii() and name.lstrip("-").isdigit())

    def drop(self, window: int) -> None:
        _remove(self._path(window))

    def _path(self, window: int) -> Path:
        return self.folder / f"{window:010d}{SUFFIX}"


def open_snapshots(folder: Path) -> DiskSnapshots:
    """Those in the folder of a node that starts, without what an earlier process left half written. StoreError."""
    make_folder(folder)
    for draft in folder.glob(f"*{DRAFT}*"):
        _remove(draft)
    return DiskSnapshots(folder)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(explain(error, path)) from error
