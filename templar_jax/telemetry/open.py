"""The telemetry of a process: JSONL under home, what the node's config names, and the screen that fits the output."""

import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.errors import StoreError
from templar_jax.telemetry.display import Display
from templar_jax.telemetry.events import Warned
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
    if console.is_terminal:
        sinks.append(Display(console, clock, block))
    else:
        lines = PlainLines(out)
        lines.pulse(clock, block)
        sinks.append(lines)
    telemetry = Telemetry(sinks, clock)
    _warnings_to(telemetry)
    sys.unraisablehook = _unraisable
    return telemetry


def _unraisable(what: "sys.UnraisableHookArgs") -> None:
    """Python's own, but for what tensorstore prints when a write fails whose caller has gone: it was told already."""
    if not (isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(what)


def _warnings_to(telemetry: Telemetry) -> None:
    """What libraries warn of becomes an event, each text once: raw lines on stderr would tear the display."""
    seen: set[str] = set()

    class Events(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "absl":  # Orbax, on its own threads; what goes wrong there comes as a CheckpointError
                return
            text = record.getMessage().strip()
            cause = text.splitlines()[0] if text else record.name
            if cause not in seen:
                seen.add(cause)
                telemetry.emit(Warned(cause))

    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *where: f"{category.__name__}: {message}"
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if type(handler).__qualname__ != Events.__qualname__]
    root.addHandler(Events(logging.WARNING))
