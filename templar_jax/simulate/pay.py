"""What every peer of a simulation would have earned, by any rules, from the evidence that a validator recorded.

One simulation serves all sets of rules. Pay acts back on a simulation only where an outer step leaves out who earns too
little, and through adversaries that act on what they earn: both saw the pay of the rules that the validators ran.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from templar_jax.incentive import effort, evidence
from templar_jax.incentive.evidence import WindowEvidence
from templar_jax.incentive.state import Rules
from templar_jax.incentive.statistics import quantile
from templar_jax.simulate.facts import Facts

LATE = slice(20, 40)  # windows over which pay is compared: by then rules had time to see


@dataclass(frozen=True)
class Paid:
    """By owner. Lists over windows are in the order of `Facts.windows`."""

    weights: dict[str, list[float]]  # after each window; the last ones stay where a window was not scored
    findings: dict[str, dict[str, int]]  # statistical ones: kind -> windows
    violations: dict[str, dict[str, int]]  # broken rules: reason -> windows


def read(lines: Iterable[bytes]) -> list[WindowEvidence]:
    """Recorded evidence. DataError for a line that nobody recorded."""
    return [evidence.decode(line) for line in lines]


def paid(by: Rules, seen: Sequence[WindowEvidence], known: Facts) -> Paid:
    """Applies the rules to the evidence of all windows, from the first on."""
    nodes = [peer.node for peer in known.peers]
    weights: dict[str, list[float]] = {node: [] for node in nodes}
    findings, violations = ({node: Counter[str]() for node in nodes} for _ in range(2))
    state, at, now = by.init(), 0, Counter[str]()
    for window in known.windows:
        while at < len(seen) and seen[at].window <= window:
            state, scores = by.step(state, seen[at])
            now = _by_owner(by.weights(state), known)
            for identity, score in scores.items():
                _count(findings, known.owners.get(identity.hotkey), score.findings)
            for peer in seen[at].peers:
                _count(violations, known.owners.get(peer.peer.hotkey), peer.violations)
            at += 1
        for node in nodes:
            weights[node].append(now[node])
    return Paid(
        weights, *({node: dict(sorted(one.items())) for node, one in each.items()} for each in (findings, violations))
    )


def _by_owner(weights: Mapping, known: Facts) -> Counter[str]:
    total = Counter[str]()
    for identity, weight in weights.items():
        total[known.owners.get(identity.hotkey, "")] += weight
    return total


def _count(where: dict[str, Counter[str]], node: str | None, names: Iterable[str]) -> None:
    if node in where:
        where[node].update(set(names))


def gaps(seen: Sequence[WindowEvidence], known: Facts) -> dict[str, list[float | None]]:
    """The standardised gap d of each window: {"honest": median of honest peers, "adversary": mean of the others}."""
    roles = {peer.node: peer.role for peer in known.peers}
    by_window = {one.window: effort.gaps(one) for one in seen}
    found: dict[str, list[float | None]] = {"honest": [], "adversary": []}
    for window in known.windows:
        of = {"honest": [], "adversary": []}
        for identity, gap in by_window.get(window, {}).items():
            role = roles.get(known.owners.get(identity.hotkey, ""), "adversary")
            of["honest" if role == "honest" else "adversary"].append(gap.d)
        found["honest"].append(quantile(of["honest"], 0.5) if of["honest"] else None)
        found["adversary"].append(sum(of["adversary"]) / len(of["adversary"]) if of["adversary"] else None)
    return found


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def median(values: Iterable[float]) -> float:
    """The lower median; 0 of nothing."""
    known = list(values)
    return quantile(known, 0.5) if known else 0.0


def per_compute(known: Facts, by_rules: Paid, nodes: Iterable[str], span: slice = slice(None)) -> float | None:
    """Pay per inner step of these peers together, over the median honest peer's. None: no step, or nobody is paid.

    Peers of one owner are taken together: who of them worked is their own affair.
    """
    steps = {peer.node: sum(peer.steps[span]) for peer in known.peers}
    pay = {node: sum(weights[span]) for node, weights in by_rules.weights.items()}
    honest = [p.node for p in known.peers if p.role == "honest" and steps[p.node]]
    usual = median(pay[node] / steps[node] for node in honest)
    chosen = list(nodes)
    worked = sum(steps[node] for node in chosen)
    return sum(pay[node] for node in chosen) / worked / usual if worked and usual > 0.0 else None
