"""What the rules do to honest peers: violations, findings, how unequal their pay is, what planted losers change."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.study import bounds
from benchmarks.study.run import RULES
from benchmarks.study.verdict import Result, honest_of
from templar_jax.simulate.pay import median

PLANTED = "noise"  # three uids that always lose


def facts(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Of all simulations of twelve honest peers, and of those with planted losers beside nine."""
    runs = results.get("honest", [])
    peers = [(result, peer) for result in runs for peer in honest_of(result)]
    windows = sum(result["windows"] for result, _ in peers)
    findings: dict[str, int] = {}
    for _, peer in peers:
        for kind, number in peer["findings"].items():
            findings[kind] = findings.get(kind, 0) + number
    return {
        "seeds": len(runs),
        "peer_windows": windows,
        "violations": sum(sum(peer["violations"].values()) for _, peer in peers),
        "findings": {kind: bounds.of_rate(hits, windows) for kind, hits in sorted(findings.items())},
        "none": bounds.of_rate(0, windows) if windows else None,
        "evenness": {
            rules: [evenness(result, rules) for result in runs if len(result["gaps"]["honest"]) >= 40]
            for rules in RULES
        },
        "planted": {rules: planted(results, rules) for rules in RULES},
    }


def evenness(result: Result, rules: str) -> float:
    """Pay of the worst honest peer over that of the median one, all windows."""
    pay = [sum(peer["pay"][rules]) for peer in honest_of(result)]
    usual = median(pay)
    return min(pay) / usual if usual else 0.0


def shares(result: Result, rules: str) -> dict[str, float]:
    """Each honest peer's part of what all honest peers are paid."""
    pay = {peer["node"]: sum(peer["pay"][rules]) for peer in honest_of(result)}
    total = sum(pay.values())
    return {node: value / total for node, value in pay.items()} if total else {}


def planted(results: Mapping[str, Sequence[Result]], rules: str) -> dict[str, float] | None:
    """How far losers move an honest peer's share: SD of share with them over share without, less 1, same seeds.

    What they may move, as training differs too, is as far as another seed's evaluation does: the SD of shares among
    honest peers stands beside it.
    """
    alone = {result["job"]["seed"]: result for result in results.get("absent", [])}
    moved, spread = [], []
    for result in results.get(PLANTED, []):
        before, after = shares(alone.get(result["job"]["seed"], {"peers": []}), rules), shares(result, rules)
        moved += [after[node] / before[node] - 1.0 for node in after if before.get(node)]
        spread += [before[node] * len(before) - 1.0 for node in before]
    if len(moved) < 2:
        return None
    return {"moved": statistics.pstdev(moved), "worst": max(map(abs, moved)), "spread": statistics.pstdev(spread)}
