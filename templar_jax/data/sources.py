"""What to read: paths to files, files to shards of work, and the corpus that every machine has.

A shard is what one process tokenises at a time and what survives a kill. Shards depend on the files alone, never on
the number of processes.
"""

import os
import stat
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from templar_jax.data.readers import COMPRESSED, parquet_row_groups
from templar_jax.errors import DataError

Kind = Literal["text", "jsonl", "parquet"]
COMPRESSION_RATIO = 4  # of text, to weigh a compressed file's work
MIN_SHARD, MAX_SHARD, SHARDS = 1 << 20, 1 << 28, 64  # bytes, bytes, and how many to aim at
NOT_TEXT = {"__pycache__", "site-packages", "dist-packages"}  # folders of no use in any corpus
TESTS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Source:
    """One file of the corpus. `name` is its path below the folder that was named."""

    path: Path
    name: str
    kind: Kind
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Part:
    """A piece of a file: bytes [start, end) of plain text or jsonl, row groups [start, end) of parquet, else all."""

    source: Source
    start: int
    end: int
    weight: int  # bytes of text, about


def standard_library() -> list[Path]:
    """The Python standard library's own .py files on this machine, in order of their relative names.

    Left out: site-packages, tests, and the two files that name the machine which built this Python. About 12 MB;
    the same files give the same pages wherever they lie.

    Raises:
      DataError: this Python has no sources beside it (an embedded or zipped one).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [
        path
        for path in _walk(root, NOT_TEXT | TESTS)
        if path.suffix == ".py" and not path.name.startswith(("_sysconfigdata", "python-config"))
    ]
    if not found:
        raise DataError(f"no sources of the Python standard library in {root}: name a folder of text instead")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def find_sources(paths: Sequence[Path | str]) -> list[Source]:
    """Every file below `paths`, in order of names. Hidden files and __pycache__ are left out.

    Raises:
      DataError: a path that does not exist or cannot be read, or no file at all.
    """
    found = []
    for path in map(Path, paths):
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
            files = sorted(_walk(path, NOT_TEXT)) if is_folder else [path]
            found += [_source(file, file.relative_to(path).as_posix() if is_folder else file.name) for file in files]
        except FileNotFoundError as error:
            raise DataError(f"no such file or folder: {error.filename}") from error
        except OSError as error:
            raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error
    if not found:
        raise DataError(f"no files to read in {', '.join(map(str, paths)) or 'an empty list'}")
    return found


def shards(sources: Sequence[Source]) -> list[list[Part]]:
    """The work in shards of about the same weight: small files together, large ones cut where their format allows.

    Raises:
      DataError: a parquet file that is corrupt.
    """
    total = sum(_weight(source) for source in sources)
    limit = min(max(total // SHARDS, MIN_SHARD), MAX_SHARD)
    result, shard, weight = [], [], 0
    for part in (part for source in sources for part in _parts(source, limit)):
        if shard and weight + part.weight > limit:
            result.append(shard)
            shard, weight = [], 0
        shard.append(part)
        weight += part.weight
    return [*result, shard]


def _walk(root: Path, skip: set[str]) -> Iterable[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _source(path: Path, name: str) -> Source:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file: name files or folders")
    stem = path.name.lower()
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    jsonl = stem.endswith((".jsonl", ".ndjson")) or (stem.endswith(".json") and path.name.lower() != stem)
    kind: Kind = "parquet" if stem.endswith(".parquet") else "jsonl" if jsonl else "text"
    return Source(path, name, kind, status.st_size, status.st_mtime_ns)


def _weight(source: Source) -> int:
    compressed = source.kind == "parquet" or source.path.name.lower().endswith(COMPRESSED)
    return source.size * (COMPRESSION_RATIO if compressed else 1)


def _parts(source: Source, limit: int) -> list[Part]:
    weight = _weight(source)
    pieces = -(-weight // limit) or 1
    if source.kind == "parquet":
        units = parquet_row_groups(source.path)
    elif source.kind == "jsonl" and not source.path.name.lower().endswith(COMPRESSED):
        units = source.size
    else:
        return [Part(source, 0, source.size, weight)]  # a stream has one beginning
    pieces = max(1, min(pieces, units))
    edges = [units * i // pieces for i in range(pieces + 1)]
    return [Part(source, a, b, weight // pieces) for a, b in zip(edges, edges[1:], strict=False)]
