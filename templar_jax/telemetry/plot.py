"""The run as a picture: training loss of each inner step, and held-out bits per byte of the global model."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def plot_run(events: Iterable[Mapping[str, Any]], out: Path, title: str = "") -> bool:
    """Writes a PNG from the lines of a JSONL file (`sinks.read_events`). False where there is nothing to draw yet.

    Raises:
      OSError: `out` cannot be written.
    """
    steps, held_out = curves(events)
    if not steps and not held_out:
        return False
    import matplotlib.figure  # slow to import, and only needed here
    import matplotlib.ticker

    figure = matplotlib.figure.Figure(figsize=(9, 5), dpi=110, layout="constrained")
    left = figure.subplots()
    left.set_xlabel("window")
    left.set_ylabel("training loss, nats per token")
    lines = left.plot(*_xy(steps), color="tab:green", alpha=0.35, linewidth=0.8, label="training loss")
    lines += left.plot(*_xy(smoothed(steps)), color="tab:green", linewidth=1.8, label="same, smoothed")
    right = left.twinx()
    right.set_ylabel("held-out bits per byte")
    lines += right.plot(*_xy(held_out), color="tab:blue", marker="o", markersize=4, label="held-out, global model")
    left.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    left.legend(handles=lines, loc="upper right")
    left.set_title(title)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".part.png")
    figure.savefig(partial)
    os.replace(partial, out)
    return True


def curves(events: Iterable[Mapping[str, Any]]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """([(window + share of its steps done, loss)], [(window, bits per byte)]); what was repeated after a kill, once."""
    losses: dict[int, dict[int, float]] = {}
    held_out: dict[int, float] = {}
    for event in events:
        if event["event"] == "StepDone":
            losses.setdefault(int(event["window"]), {})[int(event["step"])] = float(event["loss"])
        elif event["event"] == "HeldOut":
            held_out[int(event["window"])] = float(event["bits_per_byte"])
    steps = [
        (window + (step - 1) / max(of_window), loss)
        for window, of_window in sorted(losses.items())
        for step, loss in sorted(of_window.items())
        if math.isfinite(loss)
    ]
    return steps, sorted(held_out.items())


def smoothed(points: list[tuple[float, float]], keep: float = 0.9) -> list[tuple[float, float]]:
    """Exponential mean, corrected for its start so that the first point stands where it is."""
    out, mean, weight = [], 0.0, 0.0
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, mean / weight))
    return out


def _xy(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
