"""Prepared pages on disk: the manifest, training pages and held-out sequences.

Letters: n pages asked for, P sequences of a page, S tokens of a sequence, N sequences.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from templar_jax.data.array import HELDOUT, HELDOUT_COUNTS, TRAIN, PageArray
from templar_jax.data.manifest import NAME, Manifest, manifest_hash, parse_manifest
from templar_jax.data.tokenizer import BYTES, Tokenizer, open_tokenizer
from templar_jax.errors import DataError

TOKENIZER_FILE = "tokenizer.json"  # a copy beside the pages, so that what they say can be read back


@dataclass(frozen=True)
class Pages:
    """A folder that `prepare` wrote. Training pages are numbered from 0 to n_pages - 1."""

    folder: Path
    manifest: Manifest
    manifest_hash: str  # hex: what `data.manifest` of a run pins
    _train: PageArray
    _heldout: PageArray | None

    def read(self, page_ids: Sequence[int]) -> np.ndarray:
        """[n, P, S] uint16 or uint32, in the order asked for.

        Raises:
          DataError: a page that is corrupt, missing or out of range; names it.
        """
        return self._train.read(page_ids)

    def read_heldout(self, n_sequences: int) -> tuple[np.ndarray, int]:
        """The first N held-out sequences and the UTF-8 bytes of what is predicted in them.

        Returns:
          tokens [N, S] int32; bytes that tokens 1 to S - 1 of each sequence stand for, in total: nats of these
          positions / ln 2 / bytes = bits per byte.

        Raises:
          DataError: there are fewer, or their pages are corrupt.
        """
        page, there = self.manifest.page, self.manifest.n_heldout_pages * self.manifest.page
        if n_sequences > there or self._heldout is None:
            raise DataError(
                f"{n_sequences} held-out sequences asked for, {self.folder} holds {there}: set node.eval_sequences "
                f"to at most {there}, or prepare more text"
            )
        tokens_nPS = self._heldout.read(range(-(-n_sequences // page)))
        counts_N = self._heldout_counts()[:n_sequences]
        return tokens_nPS.reshape(-1, self.manifest.sequence)[:n_sequences].astype(np.int32), int(counts_N.sum())

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Reads every page and checks its sha256. Raises DataError for the first that is not what it was."""
        arrays = [self._train] if self._heldout is None else [self._train, self._heldout]
        total, done = sum(len(array.sha256) for array in arrays), 0
        for array in arrays:
            for first in range(0, len(array.sha256), 64):
                ids = range(first, min(first + 64, len(array.sha256)))
                array.read(ids)
                done += len(ids)
                if progress:
                    progress(done, total)
        if self._heldout is not None:
            self._heldout_counts()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the pages were made with. Raises DataError if its file is gone or another."""
        if self.manifest.tokenizer == BYTES:
            return open_tokenizer(BYTES)
        path = self.folder / TOKENIZER_FILE
        tokenizer = open_tokenizer(path)
        if tokenizer.name != self.manifest.tokenizer:
            raise DataError(f"{path} is not the tokenizer of these pages: put the file with that sha256 there")
        return tokenizer

    def _heldout_counts(self) -> np.ndarray:
        path = self.folder / HELDOUT_COUNTS
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; prepare the pages again") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.heldout_counts_sha256:
            raise DataError(f"{path} is not what the manifest says: copy it again, or prepare the pages again")
        return np.frombuffer(data, "<u4")


def open_pages(path: Path | str) -> Pages:
    """Opens a folder of prepared pages.

    Raises:
      DataError: no manifest there (preparing was interrupted, or another folder), or a damaged one.
    """
    folder = Path(path)
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"no prepared pages in {folder}: run scripts/prepare_data.py --out {folder}") from error
    except OSError as error:
        raise DataError(f"cannot read {folder / NAME}: {error.strerror}") from error
    manifest = parse_manifest(data, folder / NAME)
    train = PageArray(folder / TRAIN, "training", manifest, manifest.sha256)
    heldout = None
    if manifest.n_heldout_pages:
        heldout = PageArray(folder / HELDOUT, "held-out", manifest, manifest.heldout_sha256)
    return Pages(folder, manifest, manifest_hash(data), train, heldout)
