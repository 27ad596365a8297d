"""The batches of one window: the assigned pages' sequences in an order that the window's seed names.

Letters: B sequences of an inner step, P sequences of a page, S tokens of a sequence, M pages of a window.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from templar_jax.data.manifest import Manifest
from templar_jax.data.permute import permute
from templar_jax.errors import ConfigError, DataError

PREFETCH = 4  # batches made ahead, where there are threads


class PageSource(Protocol):
    """`Pages`, or a `PageCache` before them."""

    @property
    def manifest(self) -> Manifest: ...

    def read(self, page_ids: Sequence[int]) -> np.ndarray: ...


class Loader(Iterator[np.ndarray]):
    """Iterates int32 [B, S]. Batch i is a pure function of (run, window, seed, pages, i), wherever iteration began."""

    def __init__(self, batches: Any, cursor: dict[str, Any], step: int) -> None:
        self._batches, self._cursor, self._step = batches, cursor, step

    def __next__(self) -> np.ndarray:
        batch_BS = next(self._batches)
        self._step += 1
        return batch_BS

    def state(self) -> dict[str, Any]:
        """The cursor: JSON values only. `restore_loader` goes on with the batch that would have come next."""
        return {**self._cursor, "step": self._step}

    def close(self) -> None:
        """Lets go of the prefetching threads."""
        self._batches.close()


def make_loader(
    pages: PageSource,
    page_ids: Sequence[int],
    *,
    run_id: str,
    window: int,
    batch: int,
    steps: int,
    seed: bytes,
    start_step: int = 0,
    threads: int = 1,
    rows: Sequence[int] | None = None,
) -> Loader:
    """The batches `start_step` to `steps - 1` of a window.

    Args:
      page_ids: the M pages assigned; read and checked here, at once.
      seed: the window's assignment seed; names the order together with run and window.
      threads: that make batches ahead; 0: each batch is made when it is asked for (simulation).
      rows: of each batch that are made; None: all.

    Raises:
      ConfigError: the pages hold fewer than steps * batch sequences. DataError: a page is corrupt or missing.
    """
    n_sequences = len(page_ids) * pages.manifest.page
    if steps * batch > n_sequences:
        raise ConfigError(
            f"{steps} steps of {batch} sequences need more than the {n_sequences} of {len(page_ids)} pages: "
            "lower inner.steps or inner.batch, or assign more pages"
        )
    cursor = _cursor(run_id, window, batch, seed, page_ids)
    sequences_NS = pages.read(page_ids).reshape(n_sequences, pages.manifest.sequence)

    def make_batch(step: int) -> np.ndarray:
        chosen = _rows(cursor, n_sequences, step)
        return sequences_NS[chosen if rows is None else chosen[list(rows)]].astype(np.int32)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH if threads else 0)
    dataset = grain.MapDataset.range(start_step, steps).map(make_batch).to_iter_dataset(options)
    return Loader(iter(dataset), cursor, start_step)


def restore_loader(
    pages: PageSource,
    page_ids: Sequence[int],
    cursor: Mapping[str, Any],
    *,
    run_id: str,
    window: int,
    batch: int,
    steps: int,
    seed: bytes,
    threads: int = 1,
    make: Callable[..., Loader] = make_loader,
) -> Loader:
    """The loader that `state()` described, from its next batch on, bit for bit.

    Raises:
      DataError: the cursor is of another run, window, assignment or batch size, or is damaged; and as `make_loader`.
    """
    expected = _cursor(run_id, window, batch, seed, page_ids)
    again = "start the window from its first batch"
    if not isinstance(cursor, Mapping) or set(cursor) != {*expected, "step"}:
        raise DataError(f"the saved data position is damaged: {again}")
    for name, value in expected.items():
        if cursor[name] != value:
            raise DataError(f"the saved data position is of another {name} ({cursor[name]}, here {value}): {again}")
    step = cursor["step"]
    if type(step) is not int or not 0 <= step <= steps:
        raise DataError(f"the saved data position is at step {step!r} of {steps}: {again}")
    return make(
        pages,
        page_ids,
        run_id=run_id,
        window=window,
        batch=batch,
        steps=steps,
        seed=seed,
        start_step=step,
        threads=threads,
    )


def first_batch(
    pages: PageSource, page_ids: Sequence[int], *, run_id: str, window: int, batch: int, seed: bytes
) -> np.ndarray:
    """Batch 0 of `make_loader`, int32 [B, S], read from those pages only that it has sequences of.

    Raises DataError: a page is corrupt or missing.
    """
    page = pages.manifest.page
    rows = _rows(_cursor(run_id, window, batch, seed, page_ids), len(page_ids) * page, 0)
    there, where = np.unique(rows // page, return_inverse=True)
    tokens_MPS = pages.read([page_ids[int(number)] for number in there])
    return tokens_MPS[where, (rows % page).astype(np.int64)].astype(np.int32)


def _rows(cursor: Mapping[str, Any], n_sequences: int, step: int) -> np.ndarray:
    """Which of the window's sequences make batch number `step`: [B]."""
    key, batch = b"templar_jax/order/1" + bytes.fromhex(cursor["order"]), cursor["batch"]
    return permute(key, n_sequences, np.arange(step * batch, (step + 1) * batch))


def _cursor(run_id: str, window: int, batch: int, seed: bytes, page_ids: Sequence[int]) -> dict[str, Any]:
    """All of a cursor but its step. `order` stands for what names the order of the sequences."""
    text = json.dumps([run_id, window, seed.hex(), list(map(int, page_ids))])
    return {"run": run_id, "window": window, "batch": batch, "order": hashlib.sha256(text.encode()).hexdigest()}
