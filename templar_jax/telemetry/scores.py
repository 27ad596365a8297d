"""What a validator made of each window: the figures of `validate.py`, from the events that it wrote."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from templar_jax.telemetry.text import UNKNOWN, number, percent, printable

COLUMNS = ("gain", "effort", "rating", "fresh", "penalty")


def figures(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{"windows": one dict a scored window, "alarms": of windows that were not scored}, JSON-ready, uids as text.

    Args:
      events: as `sinks.read_events` gives them.
    """
    windows: dict[int, dict[str, Any]] = {}
    alarms: dict[int, list[dict[str, Any]]] = {}
    health: dict[int, Mapping[str, str]] = {}
    for event in events:
        if event["event"] == "Scored":
            scores = event["scores"]
            windows[event["window"]] = {
                "window": event["window"],
                "beta": event["beta"],
                "evaluated": event["evaluated"],
                "accepted": event["accepted"],
                "scores": {uid: score["pay"] for uid, score in scores.items()},
                "effort": {uid: score.get("effort") for uid, score in scores.items()},
                "gain": {uid: score.get("gain") for uid, score in scores.items()},
                "weights": event["weights"],
                "refused": event["refused"],
                "violations": event["violations"],
                "findings": event["findings"],
                "link": event["link"],
                "seconds": event["seconds"],
                "weights_set": None,
            }
        elif event["event"] == "WeightsSet" and event["window"] in windows:
            windows[event["window"]]["weights_set"] = event["weights"]
        elif event["event"] == "Challenged":
            health[event["window"]] = event["answers"]
        elif event["event"] == "Alarm":
            alarms.setdefault(event["window"], []).append({key: event[key] for key in ("kind", "uid", "proof")})
    for window, found in windows.items():
        found["alarms"] = alarms.pop(window, [])
        found["challenge"] = health.get(window, {})
    left = [{"window": window, **alarm} for window, found in sorted(alarms.items()) for alarm in found]
    return {"windows": [windows[window] for window in sorted(windows)], "alarms": left}


def print_scores(console: Console, events: Iterable[Mapping[str, Any]]) -> None:
    """The newest window as a table of peers, the best paid first."""
    newest: Mapping[str, Any] | None = None
    health: Mapping[str, str] = {}
    for event in events:
        newest = event if event["event"] == "Scored" else newest
        if event["event"] == "Challenged":
            health = event["answers"]
    if newest is None:
        console.out("summary  no window was scored", highlight=False)
        return
    table = Table(title=f"window {newest['window']}", box=None, title_justify="left", padding=(0, 2, 0, 0))
    for name in ("uid", "weight", *COLUMNS, "remarks"):
        table.add_column(name, justify="left" if name == "remarks" else "right", no_wrap=name != "remarks")
    weights = newest["weights"]
    everyone = {*newest["scores"], *newest["refused"]}
    for uid in sorted(everyone, key=lambda uid: (-weights.get(uid, 0.0), int(uid))):
        score = newest["scores"].get(uid, {})
        remarks = [*newest["violations"].get(uid, []), *newest["findings"].get(uid, [])]
        remarks += [newest["refused"][uid]] if uid in newest["refused"] else []
        values = (number(score.get(name)) if name in score else UNKNOWN for name in COLUMNS)
        remarks += [f"state {health[uid]}"] if health.get(uid, "same") != "same" else []
        remark = printable(", ".join(dict.fromkeys(remarks)))
        table.add_row(uid, percent(weights.get(uid, 0.0)), *values, remark)
    console.print(table)
