"""Where events go. A sink that fails is switched off and named once; it never stops the node."""

import dataclasses
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from templar_jax.config import NodeConfig, RunConfig
from templar_jax.errors import ConfigError
from templar_jax.telemetry.events import Event, HeldOut, StepDone, Warned, WindowDone
from templar_jax.telemetry.meter import Meter


class Sink(Protocol):
    """Takes each event with its time in seconds of the node's clock. May raise anything."""

    def emit(self, event: Event, time: float) -> None: ...

    def close(self) -> None: ...


class Telemetry:
    """Hands each event to the meter and to every sink; calling it is `emit`."""

    def __init__(self, sinks: Sequence[Sink], clock: Callable[[], float]) -> None:
        self.meter = Meter()
        self._sinks = list(sinks)
        self._clock = clock

    def __call__(self, event: Event) -> None:
        self.emit(event)

    def emit(self, event: Event) -> None:
        """Never raises. A WindowDone follows the event that completes a window."""
        now = self._clock()
        done = self.meter.see(event, now)
        self._spread(event, now)
        if done is not None:
            self._spread(done, now)

    def close(self) -> None:
        """Flushes and closes all sinks."""
        for sink in self._sinks:
            try:
                sink.close()
            except Exception:  # nothing is left to say it to
                continue
        self._sinks = []

    def _spread(self, event: Event, now: float) -> None:
        failed: list[tuple[Sink, Exception]] = []
        for sink in self._sinks:
            try:
                sink.emit(event, now)
            except Exception as error:
                failed.append((sink, error))
        self._sinks = [sink for sink in self._sinks if all(sink is not broken for broken, _ in failed)]
        for sink, error in failed:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._spread(Warned(f"{type(sink).__name__} is switched off until the next start: {cause}"), now)


class JsonLines:
    """One JSON object a line, appended: {"time": ..., "event": "StepDone", ...fields}. Survives a kill at any byte.

    Raises (at opening):
      OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_torn(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        if torn:
            self._file.write("\n")  # a killed process left half a line: it stays alone on its own

    def emit(self, event: Event, time: float) -> None:
        line = {"time": round(time, 3), "event": type(event).__name__, **dataclasses.asdict(event)}
        self._file.write(json.dumps(_finite(line), separators=(",", ":")) + "\n")

    def close(self) -> None:
        self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL file as dicts, oldest first; half-written ones are left out. No file: nothing."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "event" in entry:
                yield entry


class Wandb:
    """Weights & Biases. Runs of one home continue each other: the id is (run_id, hotkey name)."""

    def __init__(self, run: RunConfig, node: NodeConfig) -> None:
        wandb = _extra("wandb", "wandb")
        self._run = wandb.init(
            project="templar-jax",
            name=f"{run.name}-{node.hotkey or 'miner'}",
            group=run.run_id,
            config={"run": dataclasses.asdict(run), "node": dataclasses.asdict(node)},
            dir=node.home,
        )

    def emit(self, event: Event, time: float) -> None:
        del time
        step, values = scalars(event)
        if values:
            self._run.log({**values, "global_step" if isinstance(event, StepDone) else "window": step})

    def close(self) -> None:
        self._run.finish()


class TensorBoard:
    """Event files for TensorBoard under <home>/tensorboard."""

    def __init__(self, run: RunConfig, node: NodeConfig) -> None:
        writer = _extra("tensorboardX", "tensorboard").SummaryWriter
        self._writer = writer(str(Path(node.home) / "tensorboard" / run.run_id))

    def emit(self, event: Event, time: float) -> None:
        step, values = scalars(event)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, time)

    def close(self) -> None:
        self._writer.close()


def extra_sinks(run: RunConfig, node: NodeConfig) -> list[Sink]:
    """The sinks that `node.sinks` names.

    Raises:
      ConfigError: the package of one is not installed, or it does not start.
    """
    makers: dict[str, Callable[[RunConfig, NodeConfig], Sink]] = {"wandb": Wandb, "tensorboard": TensorBoard}
    sinks: list[Sink] = []
    for name in node.sinks:
        try:
            sinks.append(makers[name](run, node))
        except ConfigError:
            raise
        except Exception as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f'node.sinks has "{name}", which does not start: {cause}; remove it or mend that'
            ) from error
    return sinks


def scalars(event: Event) -> tuple[int, dict[str, float]]:
    """(x, {name: value}) of what a plotting sink draws; steps over the global inner step, the rest over windows."""
    if isinstance(event, StepDone):
        names = ("loss", "grad_norm", "lr", "tokens_per_s")
        return event.global_step, {f"train/{name}": getattr(event, name) for name in names}
    if isinstance(event, HeldOut):
        return event.window, {"global/heldout_bits_per_byte": event.bits_per_byte}
    if isinstance(event, WindowDone):
        names = ("steps", "payload_bytes", "idle_share")
        values: dict[str, float] = {f"window/{name}": getattr(event, name) for name in names}
        values |= {f"seconds/{phase}": seconds for phase, seconds in event.phases.items()}
        return event.window, values | {"window/accepted": len(event.accepted), "window/refused": len(event.refused)}
    return 0, {}


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f'node.sinks has "{extra}", which is not installed: .venv/bin/python -m pip install -e ".[{extra}]"'
        ) from error


def _ends_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become text, and `float(text)` brings them back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value.hex() if isinstance(value, bytes) else value
