"""docs/attacks.png: what every adversary earns under both sets of rules, at a glance."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.verdict import MOST_PER_COMPUTE, MOST_WITHOUT_WORK, Row

COLOURS = {"v213": "tab:gray", "default": "tab:blue"}
SIZES = {"v213": 70, "default": 22}  # where both stand, both are seen
LEAST, MOST = 0.01, 8.0  # what lies outside is drawn at the edge


def draw(rows: Sequence[Row], out: Path) -> None:
    """Writes the PNG; nothing without adversaries that are paid."""
    idle = [row for row in rows if row.letter == "a"]
    partly = [row for row in rows if row.letter == "b"]
    if not idle and not partly:
        return
    import matplotlib.figure  # slow to import, and only needed here

    heights = [max(1, len(idle)), max(1, len(partly))]
    figure = matplotlib.figure.Figure(figsize=(9, 1.8 + 0.24 * sum(heights)), dpi=110, layout="constrained")
    above, below = figure.subplots(2, height_ratios=heights)
    _panel(above, idle, [{r: row.weight[r][0] for r in COLOURS} for row in idle], MOST_WITHOUT_WORK)
    above.set_title("(a) no work: weight relative to the median honest peer's, windows 20-40", loc="left", fontsize=10)
    paid = [{rules: _per_compute(row, rules) for rules in COLOURS} for row in partly]
    _panel(below, partly, paid, MOST_PER_COMPUTE)
    below.set_title("(b) partial work: pay per step relative to honest, windows 20-40", loc="left", fontsize=10)
    above.legend(loc="lower right", fontsize=8)
    draft = out.with_suffix(".part.png")
    figure.savefig(draft, metadata={"Software": None})
    draft.replace(out)


def _per_compute(row: Row, rules: str) -> float:
    interval = row.per_compute[rules]
    return interval.mean if interval else 0.0


def _panel(axes, rows: Sequence[Row], values: Sequence[dict[str, float]], limit: float) -> None:
    for place, of in enumerate(values):
        ends = {rules: min(MOST, max(LEAST, value if math.isfinite(value) else MOST)) for rules, value in of.items()}
        axes.plot(list(ends.values()), [place, place], color="lightgray", linewidth=1.0, zorder=1)
        for rules, value in ends.items():
            axes.scatter(
                [value], [place], s=SIZES[rules], color=COLOURS[rules], label=rules if place == 0 else None, zorder=2
            )
    axes.axvspan(limit, MOST * 1.3, color="tab:red", alpha=0.08, zorder=0)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(LEAST / 1.3, MOST * 1.3)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
