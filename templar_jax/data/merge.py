"""Sorted runs to pages: one pass over all documents in the order of their keys.

    runs -> documents in key order, duplicates dropped -> the first of them held out -> stream of tokens ->
    sequences of S -> blocks of many pages, permuted within -> pages of P sequences

The order is taken in buckets of the key space that fit in memory. Blocks mix sequences of many documents, so no page
is all one book; both are independent of how the documents were sharded.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from templar_jax.data import array
from templar_jax.data.manifest import FORMAT, Manifest
from templar_jax.data.permute import permute
from templar_jax.data.runs import run_array
from templar_jax.data.tokenizer import Tokenizer
from templar_jax.errors import DataError
from templar_jax.store.disk import write_file

BUCKET_TOKENS = 1 << 24  # tokens of a bucket, about
BLOCK_TOKENS = 1 << 24  # tokens of a block: changes the pages, so it belongs to the format
SHOWN_PAGES = 512  # written at once: a slow disk takes seconds for so many files
MAX_HELDOUT_TOKENS = 1 << 24  # more measures nothing better

Tokens = tuple[np.ndarray, np.ndarray]  # tokens, and the UTF-8 bytes that each stands for


@dataclass(frozen=True)
class Survey:
    """How many documents and tokens each part has, counted before anything is written."""

    heldout_documents: int
    heldout_tokens: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Written:
    """What stands in one array now."""

    sha256: tuple[str, ...]
    bytes: int  # that all tokens stand for
    predicted_N: np.ndarray  # uint32: bytes that tokens 1 to S - 1 of each sequence stand for


def write_pages(
    runs: list[Path],
    tokens: int,
    tokenizer: Tokenizer,
    out: Path,
    sequence: int,
    page: int,
    heldout: float,
    progress: Callable[[int, int], None],
) -> Manifest:
    """Writes both arrays and the held-out counts to `out`, and returns the manifest that is still to be written.

    Args:
      tokens: of all runs together, duplicates included.
      heldout: share of the tokens to hold out, in whole documents; at least one page.
      progress: called with (pages written, pages in all).

    Raises:
      DataError: too little text for one page of each part. StoreError: `out` cannot be written.
    """
    buckets = max(1, tokens // BUCKET_TOKENS)
    survey = _survey(runs, buckets, heldout, page * sequence)
    n_heldout, n_train = survey.heldout_tokens // (page * sequence), survey.tokens // (page * sequence)
    if not n_train or (heldout and not n_heldout):
        raise DataError(
            f"too little text: {survey.heldout_tokens + survey.tokens} tokens in "
            f"{survey.heldout_documents + survey.documents} documents give {n_train} training and {n_heldout} "
            f"held-out pages of {page * sequence} tokens: name more text, or lower data.page or data.sequence"
        )
    reader = _Reader(_tokens(runs, buckets), tokenizer.dtype)
    total = n_heldout + n_train
    write = functools.partial(_write, page=page, sequence=sequence, dtype=tokenizer.dtype)
    held = write(reader, out / array.HELDOUT, n_heldout, lambda done: progress(done, total))
    reader.take(survey.heldout_tokens - n_heldout * page * sequence)  # too little for a page
    train = write(reader, out / array.TRAIN, n_train, lambda done: progress(n_heldout + done, total))
    counts = held.predicted_N.astype("<u4").tobytes()
    write_file(out / array.HELDOUT_COUNTS, [counts])
    return Manifest(
        format=FORMAT,
        tokenizer=tokenizer.name,
        vocab=tokenizer.vocab,
        separator=tokenizer.separator,
        sequence=sequence,
        page=page,
        n_pages=n_train,
        n_heldout_pages=n_heldout,
        tokens=n_train * page * sequence,
        bytes=train.bytes,
        heldout_tokens=n_heldout * page * sequence,
        heldout_bytes=held.bytes,
        documents=survey.documents,
        heldout_documents=survey.heldout_documents,
        sha256=train.sha256,
        heldout_sha256=held.sha256,
        heldout_counts_sha256=hashlib.sha256(counts).hexdigest(),
    )


def _survey(runs: list[Path], buckets: int, heldout: float, page_tokens: int) -> Survey:
    """Counts documents and tokens; the held-out ones are the first in key order that reach the share asked for."""
    documents = tokens = 0
    for bucket in range(buckets):
        sizes = _bucket(runs, bucket, buckets).sizes
        documents, tokens = documents + len(sizes), tokens + int(sizes.sum())
    wanted = max(min(int(heldout * tokens), MAX_HELDOUT_TOKENS), page_tokens) if heldout else 0
    held_documents = held_tokens = 0
    for bucket in range(buckets):
        sums = np.cumsum(_bucket(runs, bucket, buckets).sizes)
        count = min(int(np.searchsorted(sums, wanted - held_tokens)) + 1, len(sums)) if held_tokens < wanted else 0
        held_documents, held_tokens = held_documents + count, held_tokens + int(sums[count - 1] if count else 0)
        if held_tokens >= wanted:
            break
    return Survey(held_documents, held_tokens, documents - held_documents, tokens - held_tokens)


@dataclass(frozen=True)
class _Bucket:
    """The distinct documents of one bucket in key order. `starts` counts from the first token of the first span."""

    spans: list[tuple[Path, int, int]]  # of each run: where the bucket's tokens lie in it
    starts: np.ndarray  # [n]
    sizes: np.ndarray  # [n] tokens, separator included


def _bucket(runs: list[Path], bucket: int, buckets: int) -> _Bucket:
    low, high = (np.uint64(min((bucket + i) * (1 << 64) // buckets, (1 << 64) - 1)) for i in (0, 1))
    spans, found = [], []
    for run in runs:
        keys = run_array(run, "keys")
        first = np.searchsorted(keys[0], low)
        last = np.searchsorted(keys[0], high, "right" if bucket == buckets - 1 else "left")
        starts = np.array(run_array(run, "starts")[first : last + 1], np.int64)
        spans.append((run, int(starts[0]), int(starts[-1])))
        found.append((*np.array(keys[:, first:last]), np.diff(starts)))
    high_key, low_key, sizes = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((low_key, high_key))
    high_key, low_key = high_key[order], low_key[order]
    same = (high_key[1:] == high_key[:-1]) & (low_key[1:] == low_key[:-1])
    order = order[np.concatenate([[True], ~same])] if len(order) else order
    return _Bucket(spans, (np.cumsum(sizes) - sizes)[order], sizes[order])


def _tokens(runs: list[Path], buckets: int) -> Iterator[Tokens]:
    """All distinct documents in key order, a bucket at a time."""
    for number in range(buckets):
        bucket = _bucket(runs, number, buckets)
        if len(bucket.sizes):
            places = [slice(a, a + n) for a, n in zip(bucket.starts, bucket.sizes, strict=True)]
            tokens, sizes = (
                np.concatenate([run_array(run, name)[begin:end] for run, begin, end in bucket.spans])
                for name in ("tokens", "bytes")
            )
            yield np.concatenate([tokens[at] for at in places]), np.concatenate([sizes[at] for at in places])


class _Reader:
    """Takes any number of tokens at a time off a stream of pieces."""

    def __init__(self, pieces: Iterator[Tokens], dtype: np.dtype) -> None:
        self.pieces = pieces
        self.ready: Tokens = np.empty(0, dtype), np.empty(0, np.uint16)

    def take(self, count: int) -> Tokens:
        """The next `count` tokens, which must be there."""
        pieces = [self.ready]
        while sum(len(tokens) for tokens, _ in pieces) < count:
            pieces.append(next(self.pieces))
        tokens, sizes = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 1))
        self.ready = tokens[count:], sizes[count:]
        return tokens[:count], sizes[:count]


def _write(
    reader: _Reader,
    path: Path,
    n_pages: int,
    progress: Callable[[int], None],
    *,
    page: int,
    sequence: int,
    dtype: np.dtype,
) -> Written:
    """Takes n_pages full pages off the reader and writes them as one array."""
    if not n_pages:
        return Written((), 0, np.empty(0, np.uint32))
    store = array.create(path, n_pages, page, sequence, dtype)
    sha256, total, predicted = [], 0, []
    step = max(1, BLOCK_TOKENS // (page * sequence))
    for first in range(0, n_pages, step):
        rows = min(step, n_pages - first) * page
        tokens, sizes = (x.reshape(rows, sequence) for x in reader.take(rows * sequence))
        order = permute(b"templar_jax/block/1" + first.to_bytes(8, "little"), rows, np.arange(rows))
        pages_nPS = tokens[order].reshape(-1, page, sequence)
        for at in range(0, len(pages_nPS), SHOWN_PAGES):
            array.write(store, path, first + at, pages_nPS[at : at + SHOWN_PAGES])
            progress(first + min(at + SHOWN_PAGES, len(pages_nPS)))
        sha256 += [hashlib.sha256(one_PS.data).hexdigest() for one_PS in pages_nPS]
        total += int(sizes.sum(dtype=np.int64))
        predicted.append(sizes[order, 1:].sum(axis=1, dtype=np.uint32))
    return Written(tuple(sha256), total, np.concatenate(predicted))
