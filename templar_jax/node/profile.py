"""A trace of one window's training and compression, for TensorBoard or Perfetto (`--node.profile_window N`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from templar_jax.config import NodeConfig
from templar_jax.telemetry.events import Event, Noted


def trace_folder(config: NodeConfig, run_id: str, window: int) -> Path:
    """Where the trace of a window goes. JAX adds a folder per trace, named by its time."""
    return Path(config.home) / "profile" / f"{run_id[:8]}-window-{window}"


@contextmanager
def profiled(config: NodeConfig, run_id: str, window: int, emit: Callable[[Event], None]) -> Iterator[None]:
    """Traces what runs inside if `window` is the one that is asked for; says where the trace lies."""
    if window != config.profile_window:
        yield
        return
    folder = trace_folder(config, run_id, window)
    with jax.profiler.trace(str(folder)):
        yield
    emit(Noted(f"trace of window {window}: tensorboard --logdir {folder}"))
