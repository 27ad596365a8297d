"""Documents of a file, one at a time and in bounded memory.

Each reader yields UTF-8 bytes, or a `Bad` for a record that cannot be used: those are counted and passed over. A file
that cannot be read to its end raises DataError: half a file that looks whole would be another corpus.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard

from templar_jax.errors import DataError

WHOLE_FILE = 1 << 20  # bytes: a text file up to this size is one document ...
PIECE = 1 << 16  # ... a longer one is a collection, and cut at line ends into documents of at most this size
MAX_LINE = 1 << 28  # bytes of one jsonl record
BLOCK = 1 << 18  # bytes read at a time
COMPRESSED = (".gz", ".zst")


class Bad(NamedTuple):
    """A record that was passed over, and why."""

    where: str
    why: str


Record = bytes | Bad


def read_text(path: Path) -> Iterator[Record]:
    """Documents of a text file: the whole of it, or pieces of a long one. Not UTF-8, or a NUL: bad."""
    with _opened(path) as file:
        data = file.read(WHOLE_FILE + 1)
        if len(data) <= WHOLE_FILE:
            yield _utf8(data, str(path))
            return
        start = 0  # of `data` in the file
        while data:
            if len(data) < PIECE:
                data += file.read(BLOCK)
            end = _piece_end(data)
            yield _utf8(data[:end], f"{path} at byte {start}")
            data, start = data[end:], start + end


def read_jsonl(path: Path, start: int, end: int, key: str) -> Iterator[Record]:
    """The text under `key` of each line that begins in bytes [start, end); all lines of a compressed file."""
    with _opened(path) as file:
        where = f"{path} after byte {start}" if start else str(path)
        if start:
            file.seek(start - 1)
            _skip_line(file)  # what began before `start` belongs to the part before
        stream = path.suffix.lower() in COMPRESSED  # knows no position, and is one part
        number = 0
        while (stream or file.tell() < end) and (line := file.readline(MAX_LINE)):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                _skip_line(file)
                yield Bad(f"{where} line {number}", f"longer than {MAX_LINE} bytes")
            elif not line.isspace():
                yield _json_text(line, key, f"{where} line {number}")


def read_parquet(path: Path, start: int, end: int, column: str) -> Iterator[Record]:
    """The texts of a column in row groups [start, end)."""
    import pyarrow

    try:
        file = _parquet(path)
        if column not in file.schema_arrow.names:
            raise DataError(f"{path} has no column {column!r} but {', '.join(file.schema_arrow.names)}: set --text-key")
        row = 0
        for batch in file.iter_batches(256, row_groups=list(range(start, end)), columns=[column], use_threads=False):
            for text in batch.column(0).to_pylist():
                yield _text(text, f"{path} row group {start} row {row}")
                row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def parquet_row_groups(path: Path) -> int:
    """Raises DataError for a file that is no parquet."""
    import pyarrow

    try:
        return _parquet(path).num_row_groups
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _parquet(path: Path):
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path)


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(BLOCK)) and not rest.endswith(b"\n"):
        pass


def _piece_end(data: bytes) -> int:
    """Where to cut: after the last line end within PIECE; without one, between two characters."""
    if len(data) <= PIECE:
        return len(data)
    newline = data.rfind(b"\n", 0, PIECE)
    if newline >= 0:
        return newline + 1
    end = PIECE
    while end > PIECE - 4 and data[end] & 0xC0 == 0x80:  # a continuation byte
        end -= 1
    return end


def _utf8(data: bytes, where: str) -> Record:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return Bad(where, "not UTF-8")
    return Bad(where, "holds a NUL byte, so no text") if b"\0" in data else data


def _json_text(line: bytes, key: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Bad(where, "not JSON")
    if not isinstance(record, dict) or key not in record:
        return Bad(where, f"no key {key!r}")
    return _text(record[key], where)


def _text(text: object, where: str) -> Record:
    if not isinstance(text, str):
        return Bad(where, "not a text")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return Bad(where, "half a surrogate pair, so no UTF-8")


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"cannot read {path}: {reason}; repair or remove the file")


class _opened:
    """A file as a stream of plain bytes; what goes wrong while reading becomes a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> IO[bytes]:
        try:
            raw = open(self.path, "rb")
        except OSError as error:
            raise _unreadable(self.path, error) from error
        suffix = self.path.suffix.lower()
        if suffix == ".gz":
            self.layers = [raw, gzip.GzipFile(fileobj=raw)]
        elif suffix == ".zst":
            self.layers = [raw, io.BufferedReader(_Zstd(raw), BLOCK)]
        else:
            self.layers = [raw]
        return self.layers[-1]  # pyright: ignore[reportReturnType]

    def __exit__(self, kind, error, trace) -> None:
        for layer in reversed(self.layers):
            layer.close()
        if isinstance(error, (OSError, EOFError, zlib.error, zstandard.ZstdError)):
            raise _unreadable(self.path, error) from error


class _Zstd(io.RawIOBase):
    """Decompresses frame after frame. The library's own reader takes a truncated file for a short one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.frame: Any = None
        self.rest = b""  # read, but behind the end of the last frame
        self.ready = memoryview(b"")  # decompressed, but not asked for yet

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready and self._more():
            pass
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def _more(self) -> bool:
        """Decompresses one more block; False at the end of the file."""
        data, self.rest = self.rest or self.file.read(BLOCK), b""
        frame = self.frame if self.frame is not None and not self.frame.eof else None
        if not data:
            if frame is not None:
                raise EOFError("the file ends in the middle of a zstd frame")
            return False
        if frame is None:
            frame = self.frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self.ready = memoryview(frame.decompress(data))
        self.rest = frame.unused_data
        return True
