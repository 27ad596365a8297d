"""The live table of a network on a terminal, and the same facts as plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from templar_jax.localnet.story import Row, Story
from templar_jax.telemetry.text import UNKNOWN, number, percent, printable, shares, uids

MESSAGES = 6  # of the newest that stay on the screen
SILENCE = 10.0  # seconds after which plain lines say what is going on
COLUMNS = ("uid", "role", "window", "gain", "effort", "weight", "incentive", "dividends", "accepted", "reason", "state")
LEAST = ("window", "dividends")
LEFT = ("role", "reason", "state")


@dataclass(frozen=True)
class Now:
    """What is shown beside the story."""

    title: str
    block: int
    blocks: int  # of a window
    first: int | None  # window with which this network began; None before it
    windows: int
    rows: Sequence[Row]
    phase: str = ""  # what localnet itself is at


class Screen(Protocol):
    def say(self, who: str, text: str) -> None: ...

    def show(self, story: Story, now: Now) -> None: ...

    def close(self) -> None: ...


def cells(row: Row) -> tuple[str, ...]:
    """One row of COLUMNS."""
    share = [UNKNOWN if value is None else percent(value) for value in (row.weight, row.incentive, row.dividends)]
    return (
        UNKNOWN if row.uid is None else str(row.uid),
        row.role,
        UNKNOWN if row.window is None else str(row.window),
        number(row.gain, 2),
        number(row.effort, 2),
        *share,
        UNKNOWN if row.accepted is None else f"{row.accepted}/{row.closed}",
        row.reason or UNKNOWN,
        row.state,
    )


def make_table(rows: Sequence[Row], width: int = 120) -> Table:
    """The table for `width` columns; a narrow one leaves out the least."""
    narrow = width < 96
    table = Table(box=None, padding=(0, 1 if narrow else 2, 0, 0), header_style="grey62")
    for name in COLUMNS:
        long = name in ("reason", "state")  # the only texts that may be cut
        overflow = "ellipsis" if long else "fold"
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True, overflow=overflow)
        longest = max(len(text) for text in (name, *(cells(row)[COLUMNS.index(name)] for row in rows)))
        table.columns[-1].min_width = min(longest, 18) if long else longest
        if name == "state":
            table.columns[-1].min_width = max(11, min(longest, 18))  # as wide while a node trains
            table.columns[-1].max_width = 26  # "died: killed by SIGKILL"
    for row in rows:
        table.add_row(*cells(row), style="red" if row.state.startswith("died") else "")
    if narrow:
        table.columns = [c for c in table.columns if c.header not in LEAST]
    return table


def headline(now: Now) -> str:
    """Where the network stands, in one line."""
    if now.phase:
        return now.phase
    window = now.block // now.blocks
    if now.first is None:
        return f"window {window}, block {now.block % now.blocks} of {now.blocks}: not all nodes take part yet"
    of = f"{min(max(window - now.first + 1, 1), now.windows)} of {now.windows}"
    return f"window {window} ({of})   block {now.block % now.blocks} of {now.blocks}"


@dataclass
class LiveTable:
    """Sink: redraws in place whenever it is shown; no thread of its own, so that processes can be started beside it."""

    console: Console
    messages: list[str] = field(default_factory=list)
    live: Live | None = None

    def say(self, who: str, text: str) -> None:
        self.messages = [*self.messages, f"{who}: {printable(text)}"][-MESSAGES:]

    def show(self, story: Story, now: Now) -> None:
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        self.live.update(draw(story, now, self.messages, self.console.width), refresh=True)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def draw(story: Story, now: Now, messages: Sequence[str], width: int) -> RenderableType:
    """The whole picture for a console of `width` columns. Pure."""
    inner = max(40, min(width - 3, 120))
    parts: list[RenderableType] = [Text(headline(now), style="bold")]
    parts += [make_table(now.rows, inner - 4)] if now.rows else []
    losses = list(story.losses().items())
    if losses:
        held_out = {w: v for node in story.nodes.values() for w, v in node.held_out.items()}
        text = f"loss {losses[0][1]:.2f} → {losses[-1][1]:.2f} nats/token"
        if held_out:
            text += f"   held-out {held_out[min(held_out)]:.2f} → {held_out[max(held_out)]:.2f} bits/byte"
        parts.append(Text(text))
    verdicts = story.verdicts()
    if verdicts:
        different = story.differing()
        said = f"windows {uids(tuple(different))}: DIFFERENT" if different else "equal in every window"
        root = verdicts[max(verdicts)]["root"][:12]
        parts.append(Text(f"state roots {said}   {root}", style="bold red" if different else ""))
    parts += [Text(text, style="yellow", no_wrap=True, overflow="ellipsis") for text in messages]
    return Panel(Group(*parts), title=now.title, title_align="left", width=inner, border_style="grey50")


@dataclass
class PlainLines:
    """One line for each window that closed, each that was scored, and each thing that went wrong."""

    console: Console
    closed: int = -1
    scored: dict[str, int] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    def say(self, who: str, text: str) -> None:
        self._write(f"{who}: {printable(text)}")

    def show(self, story: Story, now: Now) -> None:
        losses = story.losses()
        for window, event in story.verdicts().items():
            if window > self.closed:
                self.closed = window
                refused = "".join(f", uid {uid} refused: {printable(why)}" for uid, why in event["refused"])
                who = f"{len(event['accepted'])} accepted (uid {uids(tuple(event['accepted']))}){refused}"
                self._write(f"window {window}  loss {number(losses.get(window))}  {who}  root {event['root'][:12]}")
        for node in story.validators:
            newest = max(node.scored, default=-1)
            if newest > self.scored.get(node.name, -1):
                self.scored[node.name] = newest
                event = node.scored[newest]
                said = f"scored {event['evaluated']} of {event['accepted']}: {_shares(event['weights'])}"
                self._write(f"window {newest}  {node.name} {said}")
        if time.monotonic() - self.last >= SILENCE:
            states = ", ".join(f"{row.name} {row.state}" for row in now.rows)
            self._write(f"... {headline(now)}{': ' if states else ''}{states}")

    def close(self) -> None:
        pass

    def _write(self, text: str) -> None:
        self.last = time.monotonic()
        self.console.out(f"{time.strftime('%H:%M:%S')}  {text}", highlight=False)


def _shares(weights: Mapping[str, float]) -> str:
    return shares({int(uid): share for uid, share in weights.items()})


def open_screen(console: Console) -> Screen:
    return LiveTable(console) if console.is_terminal else PlainLines(console)
