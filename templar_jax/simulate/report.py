"""What a simulation came to, in figures."""

from typing import Any

from templar_jax.simulate.network import Entry, Outcome, digest, roots
from templar_jax.telemetry.events import Alarm, ManifestApplied, Registered, StepDone


def figures(outcome: Outcome) -> dict[str, Any]:
    """The figures of `simulate.py --json`. Losses are means over nodes, in nats per token."""
    log = outcome.log
    found = roots(log)
    uids = {entry.node: entry.event.uid for entry in log if isinstance(entry.event, Registered)}
    return {
        "events": len(log),
        "log_sha256": digest(log),
        "state_roots_equal": bool(found) and all(len(each) == 1 for each in found.values()),
        "windows": len(found),
        "seconds": log[-1].time if log else 0.0,
        "loss": _loss(log),
        "alarms": sum(isinstance(entry.event, Alarm) for entry in log),
        "per_uid": [
            {"node": node, "uid": uid, "role": outcome.role(node), **_of_uid(log, uid)}
            for node, uid in sorted(uids.items())
        ],
    }


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
