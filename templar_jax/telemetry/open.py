"""The telemetry of a process: JSONL under home, what the node's config names, and the screen that fits the output."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.errors import StoreError
from templar_jax.telemetry.display import Display
from templar_jax.telemetry.plain import PlainLines
from templar_jax.telemetry.sinks import JsonLines, Sink, Telemetry, extra_sinks


def open_telemetry(
    run: RunConfig,
    node: NodeConfig,
    events: Path,
    *,
    clock: Callable[[], float] = time.time,
    block: Callable[[], float | None] = lambda: None,
    stream: TextIO | None = None,
) -> Telemetry:
    """Everything that a script needs to say. The caller closes it.

    Args:
      events: the JSONL file, e.g. <home>/miner-0/events.jsonl.
      clock: the node's clock in seconds.
      block: the chain's position now in (fractions of) blocks, for the display's cursor.
      stream: where people look, default stdout: the live display if it is a terminal, plain lines otherwise.

    Raises:
      StoreError: the JSONL file cannot be written. ConfigError: a sink of `node.sinks` is not installed.
    """
    out = stream or sys.stdout
    try:
        sinks: list[Sink] = [JsonLines(events)]
    except OSError as error:
        raise StoreError(f"cannot write {events}: {error.strerror}; free or change node.home {node.home}") from error
    sinks += extra_sinks(run, node)
    console = Console(file=out)
    sinks.append(Display(console, clock, block) if console.is_terminal else PlainLines(out))
    return Telemetry(sinks, clock)
