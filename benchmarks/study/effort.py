"""Whether pay orders peers by the part of the steps that they do, from one simulation a seed and kind of laziness.

Three residents do all steps; three groups of four do all, a half and a quarter. "Join at 0" is the evidence as it was
recorded. "Join at 20" is the same evidence without the groups before window 20: the rules meet them there for the
first time, in a network that knows the residents (their earlier contributions are in the model all the same).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.study.job import Job
from templar_jax.incentive.evidence import WindowEvidence
from templar_jax.incentive.rules import rules
from templar_jax.simulate import pay
from templar_jax.simulate.facts import Facts

RESIDENTS, GROUP = 3, 4
KINDS: Mapping[str, tuple[str, str]] = {
    "effort-plain": ("lazy50", "lazy25"),
    "effort-rescaled": ("lazy50-rescaled", "lazy25-rescaled"),
}
JOIN = 20
SPANS = ((0, 10), (10, 20), (20, 40))  # windows after joining


def jobs(seeds: Sequence[int]) -> list[Job]:
    peers = RESIDENTS + 3 * GROUP
    return [
        Job(name, seed, tuple((role, GROUP) for role in roles), peers)
        for seed in seeds
        for name, roles in KINDS.items()
    ]


def is_of(job: Mapping[str, Any]) -> bool:
    return job["name"] in KINDS


def groups(known: Facts) -> list[list[str]]:
    """Names of the peers that do all, a half and a quarter."""
    full = [peer.node for peer in known.peers if peer.role == "honest"][RESIDENTS:]
    half = [peer.node for peer in known.peers if peer.role.startswith("lazy50")]
    return [full, half, [peer.node for peer in known.peers if peer.role.startswith("lazy25")]]


def joining_later(seen: Sequence[WindowEvidence], known: Facts, windows: int) -> list[WindowEvidence]:
    """The evidence without the groups before the window number `windows`."""
    first = known.windows[min(windows, len(known.windows) - 1)]
    residents = {peer.node for peer in known.peers if peer.role == "honest"}
    residents = set(sorted(residents)[:RESIDENTS])

    def here(identity: Any) -> bool:
        return known.owners.get(identity.hotkey) in residents

    def early(one: WindowEvidence) -> WindowEvidence:
        return dataclasses.replace(
            one,
            registered=tuple(identity for identity in one.registered if here(identity)),
            peers=tuple(peer for peer in one.peers if here(peer.peer)),
            pairs=tuple(pair for pair in one.pairs if here(pair.first) and here(pair.second)),
        )

    def known_pairs(one: WindowEvidence) -> WindowEvidence:  # the last windows before may name who was not there yet
        kept = (pair for pair in one.pairs if pair.second_window >= first or here(pair.second))
        return dataclasses.replace(one, pairs=tuple(kept))

    return [early(one) if one.window < first else known_pairs(one) for one in seen]


def measured(seen: Sequence[WindowEvidence], known: Facts) -> dict[str, Any]:
    """By moment of joining and span of windows after it: mean pay of each group, and how many pairs are in order."""
    found = {}
    for join in (0, JOIN):
        by_rules = pay.paid(rules("default"), joining_later(seen, known, join), known)
        for first, last in SPANS:
            if join + last <= len(known.windows):
                span = slice(join + first, join + last)
                of = [[pay.mean(by_rules.weights[node][span]) for node in group] for group in groups(known)]
                found[f"join {join}, windows {first}-{last}"] = {
                    "means": [round(pay.mean(group), 6) for group in of],
                    "pairs": [_in_order(of[0], of[1]), _in_order(of[1], of[2]), _in_order(of[0], of[2])],
                }
    return found


def _in_order(more: Sequence[float], less: Sequence[float]) -> float:
    """The part of pairs in which who does more is paid more."""
    return pay.mean([float(one > other) for one, other in product(more, less)])
