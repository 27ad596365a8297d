"""Documents to sorted runs: what one process makes of one shard.

A run is four arrays on disk: the first 128 bits of each document's sha256 (`keys` [2, n] uint64, ascending), where its
tokens begin (`starts` [n + 1]), the tokens, and the UTF-8 bytes that each token stands for. The key orders, splits
and deduplicates documents later, so neither the files' names nor their order show in the pages.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from templar_jax.data.readers import Bad, Record, read_jsonl, read_parquet, read_text
from templar_jax.data.sources import Part
from templar_jax.data.tokenizer import Tokenizer
from templar_jax.errors import StoreError
from templar_jax.store.disk import explain

RUN_TOKENS = 1 << 24  # tokens of a run at most (a longer document is a run of its own): 100 MB of memory
ARRAYS = ("keys", "starts", "tokens", "bytes")
DONE = "counts.json"  # written last


@dataclass(frozen=True)
class Counts:
    """What a shard came to."""

    documents: int = 0
    bad: int = 0
    tokens: int = 0
    bytes: int = 0
    first_bad: str = ""  # where and why

    def __add__(self, other: "Counts") -> "Counts":
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("documents", "bad", "tokens", "bytes")}
        return Counts(**sums, first_bad=self.first_bad or other.first_bad)


def documents(part: Part, text_key: str) -> Iterator[Record]:
    """The records of a part of a file, by the kind of file."""
    source = part.source
    if source.kind == "parquet":
        return read_parquet(source.path, part.start, part.end, text_key)
    if source.kind == "jsonl":
        return read_jsonl(source.path, part.start, part.end, text_key)
    return read_text(source.path)


def tokenise(
    shard: Iterable[Part], text_key: str, tokenizer: Tokenizer, folder: Path, stopped: Callable[[], bool]
) -> Counts | None:
    """Writes the runs of a shard to `folder`, which appears whole or not at all. None where `stopped()` became true.

    Raises:
      DataError: a file cannot be read to its end. StoreError: `folder` cannot be written.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        records = (record for part in shard for record in documents(part, text_key))
        counts = _write_runs(records, tokenizer, draft, stopped)
        if counts is not None:
            (draft / DONE).write_text(json.dumps(dataclasses.asdict(counts)))
            draft.rename(folder)
        return counts
    except OSError as error:
        raise StoreError(explain(error, folder.parent)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_runs(
    records: Iterable[Record], tokenizer: Tokenizer, folder: Path, stopped: Callable[[], bool]
) -> Counts | None:
    total, number, pending, size = Counts(), 0, [], 0
    for record in records:
        if stopped():
            return None
        if isinstance(record, Bad):
            total += Counts(bad=1, first_bad=f"{record.where}: {record.why}")
        elif record:
            try:
                tokens_N, bytes_N = tokenizer.encode(record)
            except ValueError as error:
                total += Counts(bad=1, first_bad=str(error))
                continue
            total += Counts(1, 0, len(tokens_N), len(record))
            pending.append((hashlib.sha256(record).digest()[:16], tokens_N, bytes_N))
            size += len(tokens_N)
            if size >= RUN_TOKENS:
                _save(folder / f"run-{number:06d}", pending)
                number, pending, size = number + 1, [], 0
    if pending:
        _save(folder / f"run-{number:06d}", pending)
    return total


def _save(path: Path, pending: list[tuple[bytes, np.ndarray, np.ndarray]]) -> None:
    pending.sort(key=lambda document: document[0])
    keys = np.frombuffer(b"".join(key for key, _, _ in pending), ">u8").reshape(-1, 2).T
    starts = np.cumsum([0, *(len(tokens_N) for _, tokens_N, _ in pending)], dtype=np.uint64)
    arrays = (
        np.ascontiguousarray(keys, np.uint64),
        starts,
        np.concatenate([tokens_N for _, tokens_N, _ in pending]),
        np.concatenate([bytes_N for _, _, bytes_N in pending]),
    )
    path.mkdir()
    for name, array in zip(ARRAYS, arrays, strict=True):
        with open(path / f"{name}.npy", "wb") as file:
            # np.save ends in tofile, whose errors do not say that the disk is full
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())


def finished(folder: Path) -> Counts | None:
    """The counts of a shard whose runs are all there, else None."""
    try:
        return Counts(**json.loads((folder / DONE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def run_array(run: Path, name: str) -> np.ndarray:
    """One of ARRAYS, mapped into memory as long as it is referred to (each map holds a file descriptor)."""
    return np.load(run / f"{name}.npy", mmap_mode="r")
