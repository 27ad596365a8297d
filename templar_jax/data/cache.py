"""Pages of the next window, fetched while this one trains."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from templar_jax.data.manifest import Manifest
from templar_jax.data.pages import Pages


class PageCache:
    """Stands before `Pages` and reads like them; holds what was prefetched last and nothing else.

    With threads=0 nothing runs beside the caller: `prefetch` reads at once (simulation).
    """

    def __init__(self, pages: Pages, threads: int = 1) -> None:
        self.pages = pages
        self._pool = ThreadPoolExecutor(threads, "prefetch-pages") if threads else None
        self._ids: tuple[int, ...] = ()
        self._ready: Future[np.ndarray] | None = None

    @property
    def manifest(self) -> Manifest:
        return self.pages.manifest

    def prefetch(self, page_ids: Sequence[int]) -> None:
        """Starts to read these pages; does nothing where they are the ones being read already. Never raises."""
        ids = tuple(page_ids)
        if ids == self._ids and self._ready is not None:
            return
        self._ids = ids
        if self._pool is not None:
            self._ready = self._pool.submit(self.pages.read, ids)
            return
        self._ready = Future()
        try:
            self._ready.set_result(self.pages.read(ids))
        except Exception as error:  # `read` raises it, as it would with a thread
            self._ready.set_exception(error)

    def read(self, page_ids: Sequence[int]) -> np.ndarray:
        """As `Pages.read`. What was prefetched is handed out once and forgotten; errors of reading appear here."""
        if tuple(page_ids) != self._ids or self._ready is None:
            return self.pages.read(page_ids)
        ready, self._ready, self._ids = self._ready, None, ()
        return ready.result()

    def close(self) -> None:
        """Waits for a read in progress and lets go of the thread."""
        if self._pool is not None:
            self._pool.shutdown()
