"""What a simulation came to, in figures."""

from typing import Any

from templar_jax.node.judge import PROVABLE
from templar_jax.simulate.network import Entry, Outcome, digest, healed, roots
from templar_jax.telemetry.events import Alarm, ManifestApplied, Registered, Scored, StepDone


def figures(outcome: Outcome) -> dict[str, Any]:
    """The figures of `simulate.py --json`. Losses are means over nodes, in nats per token."""
    log = outcome.log
    found = roots(log)
    applied = [entry.event for entry in log if isinstance(entry.event, ManifestApplied)]
    uids = {entry.node: entry.event.uid for entry in log if isinstance(entry.event, Registered)}
    return {
        "events": len(log),
        "log_sha256": digest(log),
        "state_roots_equal": bool(found) and all(len(each) == 1 for each in found.values()),
        "windows_split": sorted(window for window, each in found.items() if len(each) > 1),
        "healed": healed(log),
        "windows": len(found),
        "windows_empty": sorted(found.keys() - {one.window for one in applied if one.accepted}),
        "seconds": log[-1].time if log else 0.0,
        "loss": _loss(log),
        "alarms": sum(isinstance(entry.event, Alarm) for entry in log),
        "alarms_by_kind": alarms(log),
        "violations": sum(len(e.event.violations) for e in log if isinstance(e.event, Scored)),
        "per_uid": [
            {"node": node, "uid": uid, "role": outcome.role(node), **_of_uid(log, uid)}
            for node, uid in sorted(uids.items())
        ],
    }


def alarms(log: tuple[Entry, ...]) -> dict[str, dict[str, Any]]:
    """By kind: whether such an alarm can be proven, how many there were, and against which uids."""
    found: dict[str, dict[str, Any]] = {}
    for entry in log:
        if isinstance(entry.event, Alarm):
            kind = found.setdefault(entry.event.kind, {"proven": entry.event.kind in PROVABLE, "count": 0, "uids": []})
            kind["count"] += 1
            kind["uids"] = sorted({*kind["uids"], entry.event.uid})
    return dict(sorted(found.items()))


def _loss(log: tuple[Entry, ...]) -> dict[str, float | None]:
    by_window: dict[int, list[float]] = {}
    for entry in log:
        if isinstance(entry.event, StepDone):
            by_window.setdefault(entry.event.window, []).append(entry.event.loss)
    means = [sum(by_window[window]) / len(by_window[window]) for window in sorted(by_window)]
    return {"first_window": means[0] if means else None, "last_window": means[-1] if means else None}


def _of_uid(log: tuple[Entry, ...], uid: int) -> dict[str, Any]:
    """In how many windows its contribution was taken, and why not in the others; each window once."""
    verdicts: dict[int, ManifestApplied] = {}
    for entry in log:
        if isinstance(entry.event, ManifestApplied):
            verdicts.setdefault(entry.event.window, entry.event)
    refused: dict[str, int] = {}
    for event in verdicts.values():
        reason = dict(event.refused).get(uid)
        if reason is not None:
            refused[reason] = refused.get(reason, 0) + 1
    return {"accepted": sum(uid in event.accepted for event in verdicts.values()), "refused_reasons": refused}
