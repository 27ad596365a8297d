"""Where a miner keeps its seals until their window is over: on disk, or in memory in a simulation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from templar_jax.store.sealed_files import load_seal, newest_seal, prune_seals, save_seal


@dataclass(frozen=True)
class SavedSeal:
    """A sealed object and the 32-byte key that opens it."""

    key: bytes
    sealed: bytes


class Seals(Protocol):
    def load(self, window: int) -> SavedSeal | None:
        """The window's seal, if one was saved."""
        ...

    def save(self, window: int, seal: SavedSeal) -> SavedSeal:
        """Keeps the seal durably; returns the earlier one where the window has one already."""
        ...

    def newest(self) -> int | None:
        """The newest window that has one."""
        ...

    def prune(self, oldest_window: int) -> None:
        """Forgets the seals of windows before `oldest_window`."""
        ...


@dataclass(frozen=True)
class DiskSeals:
    """One file a window, written with fsync. Raises StoreError."""

    folder: Path

    def load(self, window: int) -> SavedSeal | None:
        found = load_seal(self.folder, window)
        return SavedSeal(*found) if found else None

    def save(self, window: int, seal: SavedSeal) -> SavedSeal:
        return SavedSeal(*save_seal(self.folder, window, seal.key, seal.sealed))

    def newest(self) -> int | None:
        return newest_seal(self.folder)

    def prune(self, oldest_window: int) -> None:
        prune_seals(self.folder, oldest_window)


@dataclass
class MemorySeals:
    """Survives what the simulator calls a crash as long as the simulator keeps it, as a disk would."""

    kept: dict[int, SavedSeal] = field(default_factory=dict)

    def load(self, window: int) -> SavedSeal | None:
        return self.kept.get(window)

    def save(self, window: int, seal: SavedSeal) -> SavedSeal:
        return self.kept.setdefault(window, seal)

    def newest(self) -> int | None:
        return max(self.kept, default=None)

    def prune(self, oldest_window: int) -> None:
        for window in [w for w in self.kept if w < oldest_window]:
            del self.kept[window]
