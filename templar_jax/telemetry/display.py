"""The live display on a terminal: where in the window the node is, what the model has learnt, who took part."""

import math
import threading
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from templar_jax.telemetry.events import PHASES, Event, NodeStarted
from templar_jax.telemetry.state import View
from templar_jax.telemetry.text import UNKNOWN, bytes_, count, number, peers, percent, uids

# Each phase: colour, and the letter that shows it where there are no colours.
LOOK = {
    "train": ("green", "T"),
    "compress": ("cyan", "Z"),
    "seal": ("blue", "S"),
    "commit": ("magenta", "C"),
    "reveal": ("yellow", "R"),
    "lead": ("bright_yellow", "L"),
    "wait": ("grey50", "."),
    "apply": ("bright_cyan", "A"),
    "checkpoint": ("bright_magenta", "K"),
}
MARKS = "D deadline K keys M manifest"
WIDE = 90  # columns from which on everything stands side by side
SPARKS = "▁▂▃▄▅▆▇█"


class Display:
    """Sink that redraws four times a second until closed.

    Args:
      console: where to draw.
      clock: the node's clock, in seconds.
      block: the chain's position now as a fraction of blocks, or None while it is not known. It moves the cursor.
    """

    def __init__(
        self, console: Console, clock: Callable[[], float], block: Callable[[], float | None] = lambda: None
    ) -> None:
        self._view = View()
        self._lock = threading.Lock()  # rich draws on a thread of its own
        self._clock = clock
        self._block = block
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=False)
        self._live.start()

    def emit(self, event: Event, time: float) -> None:
        with self._lock:
            self._view.see(event, time)

    def close(self) -> None:
        self._live.stop()  # draws a last time

    def _render(self) -> RenderableType:
        with self._lock:
            try:
                return draw(self._view, self._clock(), self._block(), self._console.width)
            except Exception as error:  # a picture is never worth the drawing thread, nor the terminal's state
                return Text(f"the display failed: {error!r}; the events are in the JSONL file", style="red")


def draw(view: View, now: float, block: float | None, width: int) -> RenderableType:
    """The whole display for a console of `width` columns. Pure.

    Three columns stay free: where they do not, the terminal's echo of Ctrl-C wraps, and leaves a line behind.
    """
    inner = max(30, min(width - 3, 110) - 4)
    parts: list[RenderableType] = []
    if view.window is not None and view.started is not None:
        parts += [
            _headline(view, block),
            _timeline(view, view.started, now, block, inner),
            _legend(view, inner),
            Text(""),
        ]
    if view.step is not None or view.windows:
        parts += [_figures(view, inner), _last_window(view), _curve(view, inner)]
    if view.windows:
        parts += [Text(""), _windows(view, inner)]
    if view.messages:
        parts += [Text(""), *(Text(text, style=style, overflow="ellipsis") for style, text in view.messages)]
        if view.noted is not None and now - view.noted >= 1:
            parts.append(Text(f"{now - view.noted:.0f} s", style="grey62"))
    return Panel(Group(*parts), title=_title(view), title_align="left", width=inner + 4, border_style="grey50")


def _title(view: View) -> Text:
    if view.started is None:
        return Text("templar_jax")
    s = view.started
    name = s.name or s.hotkey
    uid = "" if view.uid is None else f" · uid {view.uid}"
    return Text(f"{s.run} {s.run_id[:8]} · {count(s.parameters)} parameters · {s.devices} · {name}{uid}")


def _headline(view: View, block: float | None) -> Text:
    text = Text(f"window {view.window}", style="bold")
    if block is not None and view.started is not None:
        text.append("   " + _where(view.window or 0, view.started, block), style="not bold")
    phase = view.phase
    if phase is not None:
        text.append("   ")
        text.append(phase, style=f"bold {LOOK[phase][0]}")
    if view.step is not None and view.started is not None:
        text.append(f"   step {view.step.step} of {view.started.steps}", style="not bold")
    if view.block is not None:
        text.append("   committed" + (", key published" if view.revealed else ""), style="not bold")
    return text


def _where(window: int, started: NodeStarted, block: float) -> str:
    """The position in the window, or how long until it opens."""
    offset = block - window * started.window_blocks
    if offset < 0:
        return f"opens in {-offset * started.block_seconds:.0f} s"
    return f"block {int(offset)} of {started.window_blocks}"


def status(view: View, now: float, block: float | None) -> str:
    """What is going on, in one plain line."""
    if view.window is None or view.started is None or view.noted is not None:
        since = "" if view.noted is None else f" ({now - view.noted:.0f} s so far)"
        return (view.messages[-1][1] if view.messages else "starting") + since
    where = "" if block is None else f"  {_where(view.window, view.started, block)}"
    return f"window {view.window}{where}" + (f"  {view.phase}" if view.phase else "")


def _timeline(view: View, started: NodeStarted, now: float, block: float | None, columns: int) -> Text:
    """One column per fraction of a block; work over waiting, later over earlier; the deadlines and the cursor below."""
    seconds = started.window_blocks * started.block_seconds
    first = view.opened
    if block is not None:  # the chain knows where the window began
        first = now - (block - (view.window or 0) * started.window_blocks) * started.block_seconds

    def column(time: float) -> int:
        return int((time - first) / seconds * columns)

    cells: list[str | None] = [None] * columns
    for segment in sorted(view.segments, key=lambda segment: segment.phase != "wait"):  # work shows through waiting
        start = column(segment.start)
        for at in range(max(0, start), min(columns, max(start, column(segment.end or now)) + 1)):
            cells[at] = segment.phase
    bar = Text()
    for phase in cells:
        bar.append("━" if phase is None else LOOK[phase][1], style="grey23" if phase is None else _block_style(phase))
    marks = [" "] * columns
    for name, offset in started.marks:
        marks[min(columns - 1, round(offset / started.window_blocks * columns))] = name
    cursor = column(now)
    scale = Text("".join(marks), style="grey62")
    if 0 <= cursor < columns:
        scale = Text.assemble(scale[:cursor], ("▲", "bold white"), scale[cursor + 1 :])
    return Text("\n").join([bar, scale])


def _block_style(phase: str) -> str:
    return f"black on {LOOK[phase][0]}"


def _legend(view: View, columns: int) -> Text:
    shown = {segment.phase for segment in view.segments}
    text = Text()
    for phase in PHASES:
        text.append(f" {LOOK[phase][1]} ", style=_block_style(phase) if phase in shown else "grey50")
        text.append(f"{phase} ", style="" if phase in shown else "grey50")
    if columns >= text.cell_len + len(MARKS):  # else it would not fit on the line
        text.append(MARKS, style="grey50")
    return text


def _figures(view: View, columns: int) -> Table:
    step, last, applied, sealed = view.step, view.windows[-1] if view.windows else None, view.applied, view.sealed
    loss = step.loss if step else last.loss_last if last else None
    rate = step.tokens_per_s if step else last.tokens_per_s if last else None
    cells = [
        ("loss", number(loss)),
        ("held-out bits/byte", number(view.held_out)),
        ("tokens/s", UNKNOWN if rate is None else f"{rate:,.0f}"),
        ("lr", f"{step.lr:.2e}" if step else UNKNOWN),
        ("payload", f"{bytes_(sealed.payload_bytes)} ({sealed.bits_per_param:.3f} bits/param)" if sealed else UNKNOWN),
        ("outer step", str(applied.outer_step) if applied else UNKNOWN),
        ("idle", percent(last.idle_share) if last else UNKNOWN),
        ("checkpoint", UNKNOWN if view.checkpoint is None else f"window {view.checkpoint}"),
    ]
    in_row = 4 if columns >= WIDE else 2
    grid = Table.grid(padding=(0, 3))
    for at in range(0, len(cells), in_row):
        grid.add_row(
            *(Text.assemble((f"{name} ", "grey62"), (value, "bold")) for name, value in cells[at : at + in_row])
        )
    return grid


def _last_window(view: View) -> Text:
    if view.applied is None:
        return Text("nobody's contribution has been applied yet", style="grey62")
    return Text.assemble(("last window ", "grey62"), peers(view.applied.accepted, view.applied.refused))


def _curve(view: View, columns: int) -> Text:
    """The training loss of the last steps as one row of bars, between its least and its greatest."""
    losses = [loss for loss in list(view.losses)[-(columns - 16) :] if math.isfinite(loss)]
    if len(losses) < 2:
        return Text("")
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    bars = "".join(SPARKS[min(len(SPARKS) - 1, int((loss - low) / span * len(SPARKS)))] for loss in losses)
    return Text.assemble(("loss ", "grey62"), (bars, "green"), (f" {low:.2f}-{high:.2f}", "grey62"))


def _windows(view: View, columns: int) -> Table:
    """The last windows as rows; a narrow terminal leaves out the idle time and shortens the root."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="grey62")
    wide = columns >= WIDE
    for name in ("window", "steps", "loss", "held-out", *(("idle",) if wide else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("accepted", no_wrap=True)
    table.add_column("state root", no_wrap=True)
    for done in view.windows:
        table.add_row(
            str(done.window),
            str(done.steps),
            f"{number(done.loss_first, 2)} → {number(done.loss_last, 2)}",
            number(done.heldout_bits_per_byte),
            *((percent(done.idle_share),) if wide else ()),
            uids(done.accepted, 8 if wide else 4) if done.accepted else "nobody",
            done.root[: 12 if wide else 8],
        )
    return table
