"""The loader: which batches, in which order, and going on where it stopped."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from corpus import small_pages
from test_data_pages import chunk

from templar_jax.data.cache import PageCache
from templar_jax.data.loader import Loader, first_batch, make_loader, restore_loader
from templar_jax.data.pages import Pages
from templar_jax.errors import ConfigError, DataError

IDS = [7, 2, 9, 4, 11]  # 20 sequences
WINDOW = dict(run_id="ab" * 16, window=5, batch=3, steps=6, seed=bytes(32))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return small_pages(tmp_path_factory.mktemp("loader"))


def drain(loader: Loader) -> np.ndarray:
    batches = list(loader)
    loader.close()
    return np.array(batches)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_each_sequence_of_the_pages_at_most_once(pages: Pages, threads: int) -> None:
    batches = drain(make_loader(pages, IDS, **WINDOW, threads=threads))
    assert batches.shape == (6, 3, 32) and batches.dtype == np.int32
    there = [row.tobytes() for row in pages.read(IDS).reshape(-1, 32).astype(np.int32)]
    taken = [row.tobytes() for row in batches.reshape(-1, 32)]
    assert len(set(there)) == len(there) and len(set(taken)) == 18 and set(taken) <= set(there)
    assert np.array_equal(batches, drain(make_loader(pages, IDS, **WINDOW, threads=0)))


def test_order_is_that_of_run_window_seed_and_pages(pages: Pages) -> None:
    same = drain(make_loader(pages, IDS, **WINDOW))
    for change in ({"run_id": "cd" * 16}, {"window": 6}, {"seed": b"\1" * 32}):
        assert not np.array_equal(same, drain(make_loader(pages, IDS, **{**WINDOW, **change})))
    # A batch does not depend on how many there are.
    assert np.array_equal(same[:2], drain(make_loader(pages, IDS, **{**WINDOW, "steps": 2})))


def test_the_first_batch_alone_is_that_of_the_loader(pages: Pages) -> None:
    for ids in (IDS, [3, 8, 1, 0, 6, 12]):
        alone = first_batch(pages, ids, **{k: v for k, v in WINDOW.items() if k != "steps"})  # type: ignore[arg-type]
        assert alone.dtype == np.int32 and np.array_equal(alone, drain(make_loader(pages, ids, **WINDOW))[0])


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("stop", range(7))
def test_goes_on_bit_for_bit(pages: Pages, stop: int, threads: int) -> None:
    whole = drain(make_loader(pages, IDS, **WINDOW))
    loader = make_loader(pages, IDS, **WINDOW, threads=threads)
    first = [next(loader) for _ in range(stop)]
    cursor = json.loads(json.dumps(loader.state()))
    loader.close()
    assert cursor["step"] == stop
    rest = list(restore_loader(pages, IDS, cursor, **WINDOW, threads=threads))
    assert np.array_equal(np.array(first + rest), whole)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"run_id": "cd" * 16}, "run"),
        ({"window": 6}, "window"),
        ({"batch": 2}, "batch"),
        ({"seed": b"\1" * 32}, "order"),
    ],
)
def test_a_cursor_is_refused_elsewhere(pages: Pages, change: dict, name: str) -> None:
    loader = make_loader(pages, IDS, **WINDOW)
    next(loader)
    with pytest.raises(DataError, match=f"the saved data position is of another {name} .*: start the window from"):
        restore_loader(pages, IDS, loader.state(), **{**WINDOW, **change})
    with pytest.raises(DataError, match="of another order"):
        restore_loader(pages, IDS[::-1], loader.state(), **WINDOW)
    loader.close()


@pytest.mark.parametrize("step", [-1, 7, "1", None, True, 1.0])
def test_a_damaged_cursor_is_refused(pages: Pages, step: object) -> None:
    cursor = make_loader(pages, IDS, **WINDOW, threads=0).state()
    with pytest.raises(DataError, match="at step"):
        restore_loader(pages, IDS, {**cursor, "step": step}, **WINDOW)
    del cursor["step"]
    with pytest.raises(DataError, match="damaged"):
        restore_loader(pages, IDS, cursor, **WINDOW)


def test_more_steps_than_sequences(pages: Pages) -> None:
    with pytest.raises(ConfigError, match="7 steps of 3 sequences need more than the 20 of 5 pages: lower inner.steps"):
        make_loader(pages, IDS, **{**WINDOW, "steps": 7})


def test_no_thread_without_threads_and_none_left_behind(pages: Pages) -> None:
    before = set(threading.enumerate())
    loader = make_loader(pages, IDS, **WINDOW, threads=0)
    next(loader)
    assert not [thread for thread in set(threading.enumerate()) - before if "grain" in thread.name]
    loader = make_loader(pages, IDS, **WINDOW, threads=2)
    next(loader)
    started = [thread for thread in set(threading.enumerate()) - before if "grain" in thread.name]
    assert started
    loader.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


class Counting:
    """Pages that count how often each is read."""

    def __init__(self, pages: Pages) -> None:
        self.pages, self.manifest, self.reads = pages, pages.manifest, []

    def read(self, page_ids) -> np.ndarray:
        self.reads += list(page_ids)
        return self.pages.read(page_ids)


@pytest.mark.parametrize("threads", [0, 1])
def test_prefetched_pages_are_read_once(pages: Pages, threads: int) -> None:
    counting = Counting(pages)
    cache = PageCache(counting, threads=threads)  # type: ignore[arg-type]
    cache.prefetch(IDS)
    cache.prefetch(IDS)
    batches = drain(make_loader(cache, IDS, **WINDOW, threads=0))
    assert counting.reads == IDS
    assert np.array_equal(batches, drain(make_loader(pages, IDS, **WINDOW, threads=0)))
    assert np.array_equal(cache.read([1, 2]), pages.read([1, 2]))  # what nobody asked for early
    cache.prefetch([3])
    cache.prefetch([4])  # another window after all
    assert np.array_equal(cache.read([3]), pages.read([3]))
    assert np.array_equal(cache.read([4]), pages.read([4]))
    cache.close()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_corrupt_page_appears_when_it_is_read(tmp_path: Path, threads: int) -> None:
    pages = small_pages(tmp_path)
    chunk(pages, 9).write_bytes(b"damaged")
    cache = PageCache(pages, threads=threads)
    cache.prefetch(IDS)
    with pytest.raises(DataError, match="training page 9"):
        make_loader(cache, IDS, **WINDOW)
    cache.close()
