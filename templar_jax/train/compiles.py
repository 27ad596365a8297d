"""What XLA compiles: a listener that counts, and the persistent cache that saves compiling again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
HIT_EVENT = "/jax/compilation_cache/cache_hits"


@dataclass
class Compiles:
    """Counted since the listener was attached. A program taken from the persistent cache counts in `hits` too."""

    count: int = 0  # programs that the backend had to make, or to load from the persistent cache
    seconds: float = 0.0
    hits: int = 0  # of `count`: loaded from the persistent cache


def attach(compiles: Compiles) -> tuple:
    """Starts counting into `compiles` for the rest of the process; returns the listeners for `detach`."""

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT:
            compiles.count += 1
            compiles.seconds += duration_secs

    def on_event(event: str, **kwargs: str | int) -> None:
        if event == HIT_EVENT:
            compiles.hits += 1

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    return on_duration, on_event


def detach(listeners: tuple) -> None:
    """Stops counting."""
    jax.monitoring.unregister_event_duration_listener(listeners[0])
    jax.monitoring.unregister_event_listener(listeners[1])


@contextmanager
def counting() -> Iterator[Compiles]:
    """`with counting() as compiles: ...`: what was compiled inside the block."""
    compiles = Compiles()
    listeners = attach(compiles)
    try:
        yield compiles
    finally:
        detach(listeners)


def enable_compile_cache(folder: Path) -> None:
    """Keeps every compiled program under `folder`, also those that took less than JAX's default of one second."""
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
