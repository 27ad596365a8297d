"""One zarr3 array of pages, [n, P, S] tokens in chunks of one page, through tensorstore."""

import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from templar_jax.data.manifest import Manifest
from templar_jax.errors import DataError, StoreError
from templar_jax.store.disk import explain

TRAIN, HELDOUT = "train", "heldout"  # folders of the two arrays
HELDOUT_COUNTS = "heldout_bytes.u32"  # UTF-8 bytes of the predicted tokens of each held-out sequence, little-endian


def create(path: Path, n: int, page: int, sequence: int, dtype: np.dtype) -> ts.TensorStore:
    """An empty array; one that stands there is deleted. Raises StoreError."""
    return _open(path, n, page, sequence, dtype, create=True, delete_existing=True)


def write(store: ts.TensorStore, path: Path, first: int, pages_nPS: np.ndarray) -> None:
    """Writes pages first, first + 1, ... Raises StoreError (no space, no permission)."""
    try:
        store[first : first + len(pages_nPS)].write(pages_nPS).result()
    except (ValueError, OSError) as error:
        raise _refused(path, error) from error


class PageArray:
    """The pages of one array, each checked against its sha256 as it is read. Any number of threads may read."""

    def __init__(self, path: Path, name: str, manifest: Manifest, sha256: Sequence[str]) -> None:
        self.path, self.name, self.sha256 = path, name, sha256
        self.shape = (manifest.page, manifest.sequence)
        self.dtype = manifest.dtype
        self.store = _open(path, len(sha256), *self.shape, self.dtype, open=True, assume_metadata=True)

    def read(self, page_ids: Sequence[int]) -> np.ndarray:
        """[n, P, S] in the order asked for. Raises DataError for a page that does not exist or is not what it was."""
        for page in page_ids:
            if not 0 <= page < len(self.sha256):
                raise DataError(f"page {page} of {self.path}: there are {len(self.sha256)} pages")
        futures = [self.store[page].read() for page in page_ids]
        out = np.empty((len(page_ids), *self.shape), self.dtype)
        for at, (page, future) in enumerate(zip(page_ids, futures, strict=True)):
            try:
                out[at] = future.result()
            except (ValueError, OSError) as error:
                raise self._corrupt(page, "unreadable") from error
            if hashlib.sha256(out[at]).hexdigest() != self.sha256[page]:
                raise self._corrupt(page, "not what the manifest says")
        return out

    def _corrupt(self, page: int, why: str) -> DataError:
        file = self.path / "c" / str(page) / "0" / "0"
        return DataError(
            f"{self.name} page {page} is {why}: copy {file} from a good copy of these pages, or remove "
            f"{self.path.parent} and prepare it again"
        )


def _open(path: Path, n: int, page: int, sequence: int, dtype: np.dtype, **how: Any) -> ts.TensorStore:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {
            "shape": [n, page, sequence],
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, page, sequence]}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 3}},
                {"name": "crc32c"},
            ],
        },
        # A missing page is an error, not zeros; and a page of zeros is written like any other.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }
    try:
        return ts.open(spec, **how).result()
    except (ValueError, OSError) as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> StoreError:
    """tensorstore tells what the operating system said in words only."""
    for words, number in (("No space left", errno.ENOSPC), ("quota", errno.EDQUOT), ("ermission denied", errno.EACCES)):
        if words in str(error):
            return StoreError(explain(OSError(number, words), path))
    return StoreError(f"{path}: {str(error).splitlines()[0]}")
