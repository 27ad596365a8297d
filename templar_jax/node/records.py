"""Where a validator keeps what its weights follow from: one record a window, and the state of its rules.

The state is only a shorter way to what replay of the records gives, so it is written after them; a node that is
killed in between replays what the state does not know yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from templar_jax.errors import DataError, StoreError
from templar_jax.incentive.replay import Record
from templar_jax.store.disk import explain, write_file

STATE = "state.json"
SUFFIX = ".jsonl"


class Records(Protocol):
    def save(self, window: int, record: Record, state: bytes) -> None:
        """Keeps a window's record durably, then the state after it. Raises StoreError."""
        ...

    def state(self) -> bytes | None:
        """The state as it was saved last."""
        ...

    def windows(self) -> list[int]:
        """Of all records, ascending."""
        ...

    def load(self, window: int) -> Record:
        """Raises DataError, StoreError."""
        ...


@dataclass(frozen=True)
class DiskRecords:
    """Files in one folder: WINDOW.jsonl, two lines each, and state.json; each whole or not there at all."""

    folder: Path

    def save(self, window: int, record: Record, state: bytes) -> None:
        write_file(self.folder / f"{window:010d}{SUFFIX}", [record.evidence, record.outcome])
        write_file(self.folder / STATE, [state])

    def state(self) -> bytes | None:
        try:
            return (self.folder / STATE).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(explain(error, self.folder / STATE)) from error

    def windows(self) -> list[int]:
        names = (path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}"))
        return sorted(int(name) for name in names if len(name) == 10 and name.isascii() and name.isdigit())

    def load(self, window: int) -> Record:
        path = self.folder / f"{window:010d}{SUFFIX}"
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise StoreError(explain(error, path)) from error
        if len(lines) != 2:
            raise DataError(f"{path} holds {len(lines)} lines, a record has 2: take it from its author again")
        return Record(*lines)


@dataclass
class MemoryRecords:
    """Survives what the simulator calls a crash as long as the simulator keeps it, as a disk would."""

    kept: dict[int, Record] = field(default_factory=dict)
    newest: bytes | None = None

    def save(self, window: int, record: Record, state: bytes) -> None:
        self.kept[window] = record
        self.newest = state

    def state(self) -> bytes | None:
        return self.newest

    def windows(self) -> list[int]:
        return sorted(self.kept)

    def load(self, window: int) -> Record:
        return self.kept[window]


def read_all(records: Records) -> Iterator[Record]:
    """Every record, ascending by window."""
    return (records.load(window) for window in records.windows())
