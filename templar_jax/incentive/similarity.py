"""Similarity: contributions that are no work of their own. Nobody is accused; likeness is only not paid twice.

Honest contributions of a window resemble each other, by how much depends on model, data and progress. So the cut
between "alike" and "the same" comes from the window's own values, and from the half of them that copies cannot move:
the median and the lower quartile.
"""

from collections.abc import Iterable
from typing import NamedTuple

from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Identity, WindowEvidence
from templar_jax.incentive.statistics import quantile


class Likeness(NamedTuple):
    """What one peer's contribution of one window is scaled by."""

    fresh: float = 1.0  # 1: nothing like what was public before; down to similarity_floor
    cluster: int = 1  # peers that sent the same this window, itself included: they share one member's pay


def cut(config: IncentiveConfig, values: Iterable[float]) -> float:
    """Cosines above this are not the likeness of honest work."""
    known = list(values)
    middle = quantile(known, 0.5)
    margin = max(config.similarity_margin, config.similarity_spread * (middle - quantile(known, 0.25)))
    return min(config.similarity_most, middle + margin)


def clusters(members: Iterable[Identity], links: Iterable[tuple[Identity, Identity]]) -> dict[Identity, int]:
    """Size of each member's connected component."""
    parent = {member: member for member in members}

    def root(member: Identity) -> Identity:
        while parent[member] != member:
            member = parent[member]
        return member

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    roots = [root(member) for member in parent]
    return {member: roots.count(root(member)) for member in parent}


def likeness(config: IncentiveConfig, evidence: WindowEvidence) -> dict[Identity, Likeness]:
    """Every accepted peer's likeness; all fresh and alone where there are too few peers to know what is usual."""
    accepted = [seen.peer for seen in evidence.peers if seen.accepted]
    if len(accepted) < config.similarity_least_peers:
        return {peer: Likeness() for peer in accepted}
    known = set(accepted)
    pairs = [pair for pair in evidence.pairs if pair.first in known]
    now = [pair for pair in pairs if pair.second_window == evidence.window and pair.second in known]
    groups = [  # populations that differ when everybody is honest, each with its own cut
        [(seen.peer, seen.stale_cosine) for seen in evidence.peers if seen.accepted and seen.stale_cosine is not None],
        [(p.first, p.cosine) for p in pairs if p.second_window < evidence.window and p.second == p.first],
        [(p.first, p.cosine) for p in pairs if p.second_window < evidence.window and p.second != p.first],
    ]
    fresh = dict.fromkeys(accepted, 1.0)
    for group in groups:
        for peer, factor in _freshness(config, group):
            fresh[peer] = min(fresh[peer], factor)
    limit = cut(config, (pair.cosine for pair in now)) if now else 1.0
    sizes = clusters(accepted, ((pair.first, pair.second) for pair in now if pair.cosine > limit))
    return {peer: Likeness(fresh[peer], sizes[peer]) for peer in accepted}


def _freshness(config: IncentiveConfig, group: list[tuple[Identity, float]]) -> list[tuple[Identity, float]]:
    """1 up to the cut, then falling linearly to the floor at similarity_most."""
    if len(group) < config.similarity_least_peers:
        return []
    limit = cut(config, (cosine for _, cosine in group))
    room = config.similarity_most - limit
    factors = []
    for peer, cosine in group:
        if cosine > limit:
            excess = min(1.0, (cosine - limit) / room) if room > 0.0 else 1.0
            factors.append((peer, 1.0 - (1.0 - config.similarity_floor) * excess))
    return factors
