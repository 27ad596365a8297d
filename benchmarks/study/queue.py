"""Runs the jobs of the study side by side, each on a core of its own, and none twice."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from benchmarks.study import run as runs
from benchmarks.study.job import Job, Places
from templar_jax.config import NodeConfig, RunConfig

# A simulation's nodes take turns in one thread; XLA's own threads would only wait for each other on one core.
FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_cpu_enable_concurrency_optimized_scheduler=false"


def state(job: Job, places: Places, keep: bool) -> str:
    """ "done", "score" (the rules have changed) or "run".

    Args:
      keep: simulations of an earlier version of the code are good enough.
    """
    now, found = runs.versions(job), None
    if places.result(job).exists():
        found = runs.load(places.result(job))["versions"]
        if found["rules"] == now["rules"] and (keep or found["simulation"] == now["simulation"]):
            return "done"
    kept = runs.recorded(job, places)
    return "score" if kept is not None and (keep or kept[0]["simulation"] == now["simulation"]) else "run"


def pending(jobs: Iterable[Job], places: Places, keep: bool) -> Iterator[tuple[Job, str]]:
    for job in jobs:
        what = state(job, places, keep)
        if what != "done":
            yield job, what


def work(
    todo: list[tuple[Job, str]],
    side_by_side: int,
    config: tuple[RunConfig, NodeConfig],
    places: Places,
    say: Callable[[str], None],
) -> list[str]:
    """Does the jobs; one that fails is told and costs itself only. Returns what failed."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for number in range(side_by_side):
        cores.put(free[number % len(free)])
    failed: list[str] = []
    with ProcessPoolExecutor(side_by_side, context, _own_core, (cores,)) as pool:
        futures: dict[Future, Job] = {}
        for job, what in todo:
            if what == "score":
                futures[pool.submit(runs.score, job, places)] = job
            else:
                futures[pool.submit(runs.run, job, *config, places)] = job
        for number, future in enumerate(as_completed(futures), 1):
            job, error = futures[future], future.exception()
            say(f"{number}/{len(todo)} {job.stem}: {error or 'done'}")
            if error is not None:
                failed.append(f"{job.stem}: {type(error).__name__}: {error}")
    return failed


def _own_core(cores: "multiprocessing.Queue[int]") -> None:
    """Before JAX counts its cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get(timeout=10)})
