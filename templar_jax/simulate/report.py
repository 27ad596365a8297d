"""What a simulation came to, in figures."""

from typing import Any

from templar_jax.incentive.rules import rules
from templar_jax.node.judge import PROVABLE
from templar_jax.simulate.facts import Facts, Peer, facts, heldout_loss
from templar_jax.simulate.network import Outcome, healed, roots
from templar_jax.simulate.pay import LATE, Paid, mean, paid, per_compute, read
from templar_jax.telemetry.events import Alarm, ManifestApplied, Scored


def figures(outcome: Outcome) -> dict[str, Any]:
    """The figures of `simulate.py --json`. Losses are in nats per token.

    Pay is by the default rules; what the reference's rules would have paid for the same evidence stands beside it
    under "v213". It is that of the first honest validator; without one nobody is paid.
    """
    known, log, found = facts(outcome, heldout_loss(outcome)), outcome.log, roots(outcome.log)
    applied = [entry.event for entry in log if isinstance(entry.event, ManifestApplied)]
    judge = next((name for name, role in known.validators.items() if role == "honest"), None)
    seen = read(outcome.evidence[judge]) if judge else []
    by_default, by_v213 = (paid(rules(name), seen, known) for name in ("default", "v213"))
    trained = [loss for loss in known.losses if loss is not None]
    return {
        "events": known.events,
        "log_sha256": known.log_sha256,
        "state_roots_equal": known.state_roots_equal,
        "windows_split": sorted(window for window, each in found.items() if len(each) > 1),
        "healed": healed(log),
        "windows": len(known.windows),
        "windows_empty": sorted(found.keys() - {one.window for one in applied if one.accepted}),
        "seconds": known.seconds,
        "loss": {
            "first_window": trained[0] if trained else None,
            "last_window": trained[-1] if trained else None,
            "heldout": known.heldout,
        },
        "alarms": len(known.alarms),
        "alarms_by_kind": alarms(outcome),
        "violations": sum(len(e.event.violations) for e in log if isinstance(e.event, Scored)),
        "honest_weight_share": honest_share(known, by_default),
        "v213_honest_weight_share": honest_share(known, by_v213),
        "validators": known.validators,
        "per_uid": [{**of_peer(known, peer, by_default), "v213": of_pay(known, peer, by_v213)} for peer in known.peers],
    }


def alarms(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """By kind, of those that honest nodes raised: whether it can be proven, how many there were, against which uids."""
    found: dict[str, dict[str, Any]] = {}
    for entry in outcome.log:
        if isinstance(entry.event, Alarm) and outcome.role(entry.node) == "honest":
            kind = found.setdefault(entry.event.kind, {"proven": entry.event.kind in PROVABLE, "count": 0, "uids": []})
            kind["count"] += 1
            kind["uids"] = sorted({*kind["uids"], entry.event.uid})
    return dict(sorted(found.items()))


def count(words: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return dict(sorted(found.items()))


def honest_share(known: Facts, by_rules: Paid) -> float | None:
    """Mean over windows of the honest peers' part of all pay. None: nobody was ever paid."""
    honest = [peer.node for peer in known.peers if peer.role == "honest"]
    shares = []
    for number in range(len(known.windows)):
        total = sum(weights[number] for weights in by_rules.weights.values())
        if total > 0.0:
            shares.append(sum(by_rules.weights[node][number] for node in honest) / total)
    return mean(shares) if shares else None


def of_peer(known: Facts, peer: Peer, by_rules: Paid) -> dict[str, Any]:
    work = sum(sum(each.steps) for each in known.peers)
    return {
        "node": peer.node,
        "uid": peer.uids[-1] if peer.uids else None,
        "uids": peer.uids,
        "role": peer.role,
        "compute_share": sum(peer.steps) / work if work else 0.0,
        "accepted": peer.accepted,
        "refused_reasons": peer.refused,
        "violations": by_rules.violations[peer.node],
        **of_pay(known, peer, by_rules),
    }


def of_pay(known: Facts, peer: Peer, by_rules: Paid) -> dict[str, Any]:
    """Shares of weight are means over windows: all, and the second twenty of a simulation that has them."""
    weights = by_rules.weights[peer.node]
    late = len(known.windows) >= LATE.stop
    return {
        "weight_share": mean(weights),
        "weight_share_20_40": mean(weights[LATE]) if late else None,
        "pay_per_compute": per_compute(known, by_rules, [peer.node]),
        "pay_per_compute_20_40": per_compute(known, by_rules, [peer.node], LATE) if late else None,
        "findings": by_rules.findings[peer.node],
    }
