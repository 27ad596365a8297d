"""The pictures of a network's report, each a matplotlib figure. Colours follow the uid in all of them."""

import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import matplotlib.patches
import matplotlib.ticker

from templar_jax.chain.port import Metagraph
from templar_jax.localnet.story import NodeStory, Span, Story

# Paul Tol's bright and muted schemes: told apart by most eyes, and on paper.
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#882255", "#999933", "#44AA99", "#BBBBBB")
PHASE_COLOURS = {
    "train": "#228833",
    "compress": "#66CCEE",
    "seal": "#4477AA",
    "commit": "#AA3377",
    "reveal": "#CCBB44",
    "lead": "#EE6677",
    "wait": "#E4E4E4",
    "apply": "#332288",
    "checkpoint": "#999933",
    "score": "#AA4499",
}


def new_figure(height: float = 4.2, width: float = 9.0) -> Any:
    return matplotlib.figure.Figure(figsize=(width, height), dpi=110, layout="constrained")


def colour(uid: int | None) -> str:
    return "#000000" if uid is None else PALETTE[uid % len(PALETTE)]


def plot_loss(story: Story, last: int | None) -> Any:
    """Each miner's mean training loss per window, and held-out bits per byte of the global model."""
    figure = new_figure()
    axes = figure.subplots()
    for node in by_uid(story.miners):
        points = [(w, statistics.fmean(steps.values())) for w, steps in sorted(node.steps.items()) if _in(w, last)]
        axes.plot(*_xy(points), color=colour(node.uid), linewidth=1.4, marker=".", label=label(node))
    axes.set_xlabel("window")
    axes.set_ylabel("training loss, nats per token")
    other = axes.twinx()
    held_out = {w: v for node in story.nodes.values() for w, v in node.held_out.items() if _in(w, last)}
    other.plot(*_xy(sorted(held_out.items())), color="black", linestyle="--", linewidth=1.2, label="held-out (right)")
    other.set_ylabel("held-out bits per byte")
    other.spines["top"].set_visible(False)
    axes.set_ylim(bottom=0)
    other.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *other.get_lines()]
    axes.legend(handles=lines, loc="lower left", fontsize="small", ncols=2)
    _finish(axes)
    return figure


def plot_weights(story: Story, history: Sequence[Metagraph], blocks: int, last: int | None) -> Any:
    """Above: the share of pay that the validators give each uid, thin each alone, bold their mean.
    Below: what the chain makes of it after each epoch, incentive of miners and dividends of validators."""
    figure = new_figure(6.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    mean = {window: shares for window, shares in story.weights().items() if _in(window, last)}
    names, ends = story.uids(), list[tuple[float, str, str]]()
    for uid in sorted({uid for shares in mean.values() for uid in shares}):
        for node in story.validators:
            own = {window: event["weights"].get(str(uid)) for window, event in node.scored.items()}
            alone = [(window, own[window]) for window in sorted(own) if own[window] is not None and _in(window, last)]
            above.plot(*_xy(alone), color=colour(uid), linewidth=0.7, alpha=0.5)
        points = [(window, shares[uid]) for window, shares in mean.items() if uid in shares]
        above.plot(*_xy(points), color=colour(uid), linewidth=2.2)
        ends.append((points[-1][1], _name(uid, names), colour(uid)))
    above.set_title("weights: thin, of each validator; bold, their mean", loc="left", fontsize="small")
    below.set_title("paid by the chain: solid, incentive; dashed, dividends", loc="left", fontsize="small")
    _finish_shares(above, "share of pay", ends)
    ends, end = [], max(mean, default=0)
    for uid in sorted({neuron.uid for graph in history for neuron in graph.neurons}):
        pays = uid in names and names[uid].validates
        points = [
            (graph.block / blocks, neuron.dividends if pays else neuron.incentive)
            for graph in history
            for neuron in graph.neurons
            if neuron.uid == uid
        ]
        style = "--" if pays else "-"
        points.append((max(end, points[-1][0]), points[-1][1]))  # it holds until the next epoch
        below.step(*_xy(points), where="post", color=colour(uid), linestyle=style, linewidth=1.8)
        ends.append((points[-1][1], _name(uid, names), colour(uid)))
    _finish_shares(below, "share of pay", ends)
    below.set_xlabel("window")
    return figure


def plot_nodes(story: Story, last: int | None) -> Any:
    """Payload and idle share of each miner in each window."""
    figure = new_figure(3.6)
    left, right = figure.subplots(1, 2)
    for node in by_uid(story.miners):
        sealed = [(w, event["payload_bytes"] / 1024) for w, event in sorted(node.sealed.items()) if _in(w, last)]
        left.plot(*_xy(sealed), color=colour(node.uid), marker=".", label=label(node))
        idle = [(w, event["idle_share"]) for w, event in sorted(node.done.items()) if _in(w, last)]
        right.plot(*_xy(idle), color=colour(node.uid), marker=".", label=label(node))
    left.set_ylabel("payload, KiB")
    right.set_ylabel("idle share of the window")
    right.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    right.set_ylim(0, 1)
    left.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("window")
        _finish(axes)
    left.legend(fontsize="small", loc="lower left")
    return figure


def plot_phases(story: Story, window: int, genesis: float, block_seconds: float) -> Any:
    """What each node did in one window, over blocks from its start, with the deadlines of the timetable."""
    nodes = by_uid(list(story.nodes.values()))
    started = next((node.started for node in nodes if node.started), None)
    figure = new_figure(1.6 + 0.42 * len(nodes))
    axes = figure.subplots()
    length = started["window_blocks"] if started else 1
    opened = genesis + window * length * block_seconds
    for row, node in enumerate(nodes):
        for span in sorted(node.spans, key=lambda span: span.phase != "wait"):
            start, end = (span.start - opened) / block_seconds, (span.end - opened) / block_seconds
            if end < -0.25 * length or start > 1.1 * length:
                continue
            faded = 1.0 if span.window == window else 0.35
            where = dict(left=start, height=0.7, color=PHASE_COLOURS.get(span.phase, "black"), alpha=faded)
            axes.barh(row, max(end - start, 0.03), **where)
        _scoring(axes, row, node, window, opened, block_seconds)
    axes.set_yticks(range(len(nodes)), [label(node) for node in nodes])
    axes.invert_yaxis()
    axes.set_xlim(-0.2 * length, 1.05 * length)
    for name, at in (("S", 0), *((started or {}).get("marks", ())), ("S+1", length)):
        axes.axvline(at, color="black", linewidth=0.8, linestyle=":")
        axes.text(at, -0.62, name, ha="center", va="bottom", fontsize="small")
    axes.set_xlabel(f"blocks from the start of window {window}")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    handles = [matplotlib.patches.Patch(color=tint, label=phase) for phase, tint in PHASE_COLOURS.items()]
    figure.legend(handles=handles, fontsize="small", ncols=len(handles), loc="outside lower center", handlelength=1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _scoring(axes: Any, row: int, node: NodeStory, window: int, opened: float, block_seconds: float) -> None:
    """A validator scores beside its phases: a thin bar below them."""
    event = node.scored.get(window)
    if event is not None:
        end = (event["time"] - opened) / block_seconds
        start = end - event["seconds"] / block_seconds
        axes.barh(row + 0.36, end - start, left=start, height=0.14, color=PHASE_COLOURS["score"])


def typical_window(story: Story, last: int | None) -> int | None:
    """A window in the middle of the run in which most was done."""
    counts: dict[int, int] = {}
    spans: list[Span] = [span for node in story.nodes.values() for span in node.spans if _in(span.window, last)]
    for span in spans:
        counts[span.window] = counts.get(span.window, 0) + (span.phase not in ("wait", "checkpoint"))
    if not counts:
        return None
    middle = statistics.median(counts)
    return min(counts, key=lambda window: (-counts[window], abs(window - middle)))


def by_uid(nodes: list[NodeStory]) -> list[NodeStory]:
    return sorted(nodes, key=lambda node: (node.uid is None, node.uid or 0))


def label(node: NodeStory) -> str:
    return node.name if node.uid is None else f"uid {node.uid} {node.name}"


def _name(uid: int, names: dict[int, NodeStory]) -> str:
    return label(names[uid]) if uid in names else f"uid {uid}"


def _finish_shares(axes: Any, what: str, ends: list[tuple[float, str, str]]) -> None:
    """Per cent from 0, and names beside the ends of the lines, pushed apart where they would overlap."""
    axes.set_ylabel(what)
    axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 0.01))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    height = axes.get_subplotspec().get_gridspec().get_height_ratios()[axes.get_subplotspec().rowspan.start]
    gap = 0.13 * axes.get_ylim()[1] / height
    for at, (_, text, tint) in zip(apart([value for value, *_ in sorted(ends)], gap), sorted(ends), strict=True):
        where = dict(xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", va="center")
        axes.annotate(text, (1.0, at), color=tint, fontsize="small", annotation_clip=False, **where)
    _finish(axes)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Ascending `values`, moved as little as it takes that none is nearer to the next than `gap`."""
    groups: list[tuple[float, int]] = []  # (middle, members), each group as dense as is allowed
    for value in values:
        middle, count = value, 1
        while groups and middle - groups[-1][0] < gap * (count + groups[-1][1]) / 2:
            other, members = groups.pop()
            middle, count = (middle * count + other * members) / (count + members), count + members
        groups.append((middle, count))
    return [middle + gap * (at - (count - 1) / 2) for middle, count in groups for at in range(count)]


def _in(window: int, last: int | None) -> bool:
    return last is None or window <= last


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _finish(axes: Any) -> None:
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
