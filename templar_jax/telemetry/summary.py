"""The end of a run on one screen: a table on a terminal, plain lines elsewhere, and the same figures as JSON."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from templar_jax.config import RunConfig
from templar_jax.errors import StoreError
from templar_jax.store.disk import explain, make_folder
from templar_jax.telemetry.meter import Meter
from templar_jax.telemetry.plot import plot_run
from templar_jax.telemetry.sinks import read_events
from templar_jax.telemetry.text import UNKNOWN, bytes_, number, percent


def rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value with its unit) of `Meter.figures()`."""

    def from_to(first: float | None, last: float | None) -> str:
        return UNKNOWN if first is None else f"{number(first)} -> {number(last)}"

    payload = f"{bytes_(figures['payload_bytes'])}, {figures['bits_per_param']:.3f} bits per parameter"
    return [
        ("windows", str(figures["windows"])),
        ("tokens", f"{figures['tokens']:,} at {figures['tokens_per_s']:,.0f} per second of training"),
        ("training loss", from_to(figures["loss_first"], figures["loss_last"]) + " nats per token"),
        (
            "held-out text",
            from_to(figures["heldout_bits_per_byte_first"], figures["heldout_bits_per_byte_last"]) + " bits per byte",
        ),
        ("contribution", payload if figures["payload_bytes"] else UNKNOWN),
        ("idle", f"{percent(figures['idle_share'])} of the time"),
        ("state root", figures["state_root"] or UNKNOWN),
        ("restarts", str(figures["restarts"])),
    ]


def print_summary(console: Console, figures: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
    """`files`: what was written where, e.g. {"picture": ..., "events": ...}."""
    lines = rows(figures) + [(name, str(path)) for name, path in (files or {}).items()]
    if console.is_terminal:
        table = Table(title="summary", show_header=False, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column(style="grey62", no_wrap=True)
        table.add_column(overflow="fold")
        for row in lines:
            table.add_row(*row)
        console.print(table)
    else:
        for name, value in lines:
            console.out(f"summary  {name}: {value}", highlight=False)


def write_end(
    console: Console, meter: Meter, picture: Path, events: Path, run: RunConfig, name: str, json_file: Path | None
) -> None:
    """Draws the picture, prints the summary, and writes the figures where `json_file` names a file.

    Raises:
      StoreError: a file cannot be written; what stands in the summary has been printed by then.
    """
    files, refused = {"events": events}, None
    try:
        if plot_run(read_events(events), picture, f"{run.name} {run.run_id[:8]}, {name}"):
            files = {"picture": picture, **files}
    except OSError as error:
        refused = StoreError(explain(error, picture))
    print_summary(console, meter.figures(), files)
    if json_file is not None:
        try:
            write_json(json_file, meter.figures())
        except OSError as error:
            refused = StoreError(explain(error, json_file))
    if refused is not None:
        raise refused


def check_json(path: Path | None) -> None:
    """StoreError if `path` cannot become a file: known before the work instead of after it."""
    if path is None:
        return
    make_folder(path.parent)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise StoreError(f"{path} cannot be written (a folder, or no permission): name another file with --json")


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes the figures as one JSON object (null for what is no number); the file is there whole or not at all.

    Raises:
      OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    figures = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in figures.items()}
    partial.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
