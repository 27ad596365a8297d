"""Tokenises shards, here or in spawned processes. Nothing is forked: JAX, grain and tensorstore keep threads."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path

from templar_jax.data.runs import Counts, finished, tokenise
from templar_jax.data.sources import Part
from templar_jax.data.tokenizer import BYTES, Tokenizer, open_tokenizer
from templar_jax.errors import DataError

_worker: tuple[Tokenizer, Event]  # of a spawned process


def tokenise_all(
    todo: list[list[Part]],
    text_key: str,
    tokenizer: Tokenizer,
    work: Path,
    workers: int,
    progress: Callable[[int, int], None],
) -> Counts:
    """Tokenises every shard that is not done yet into `work`/shard-NUMBER; the counts of all.

    Raises:
      DataError: a file cannot be read, or a process died. StoreError: `work` cannot be written.
    """
    folders = [work / f"shard-{number:06d}" for number in range(len(todo))]
    counts = {number: found for number, folder in enumerate(folders) if (found := finished(folder))}
    missing = [number for number in range(len(todo)) if number not in counts]
    progress(len(counts), len(todo))
    if min(workers, len(missing)) <= 1:
        for number in missing:
            found = tokenise(todo[number], text_key, tokenizer, folders[number], lambda: False)
            assert found is not None
            counts[number] = found
            progress(len(counts), len(todo))
    else:
        jobs = {number: (todo[number], text_key, folders[number]) for number in missing}
        _in_processes(jobs, tokenizer, workers, counts, lambda: progress(len(counts), len(todo)))
    return sum((counts[number] for number in range(len(todo))), Counts())


def _in_processes(
    jobs: dict[int, tuple], tokenizer: Tokenizer, workers: int, counts: dict[int, Counts], progress: Callable[[], None]
) -> None:
    """Runs the jobs; at the first failure the others stop between two documents."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (str(tokenizer.file or BYTES), stop))
    try:
        running = {pool.submit(_run, *job): number for number, job in jobs.items()}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                found = future.result()
                assert found is not None  # only a stop ends a shard early
                counts[running.pop(future)] = found
                progress()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that tokenised died (out of memory?): run again with fewer --workers; finished shards are kept"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _start(tokenizer: str, stop: Event) -> None:
    """In each process: Ctrl-C is the parent's business, and no process outlives it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = open_tokenizer(tokenizer), stop


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(shard: list[Part], text_key: str, folder: Path) -> Counts | None:
    tokenizer, stop = _worker
    return tokenise(shard, text_key, tokenizer, folder, stop.is_set)
