"""Effort: did a peer train, and how much, on the sequences that were assigned to it?

Training on some sequences helps those more than others. The standardised gap

    d = (mean improvement on assigned - mean improvement on unassigned) / (SD * sqrt 2)

is free of scale and near 0 for whoever did not train on its assignment (re-encoded aggregates, other data, drained
error feedback); it grows with the number of steps. One window tells little, so gaps d_w are regressed on
the window's honest gap m_w over windows:

    effort = (prior * weight + sum n_w m_w d_w) / (weight + sum n_w m_w**2),      1/n_w = variance of d_w,

with fading memory: windows in which honest peers stand out count for more. 1 is an honest peer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Identity, WindowEvidence
from templar_jax.incentive.statistics import mean_and_variance, weighted_quantile


class Gap(NamedTuple):
    """One peer's gap in one window."""

    d: float
    n: float  # 1 / variance of d


@dataclass(frozen=True)
class Effort:
    """What is remembered of a peer."""

    dot: float = 0.0  # sum of n m d
    square: float = 0.0  # sum of n m**2
    against: float = 0.0  # log evidence for "works less than `finding_share` of an honest peer", never below 0


def gaps(evidence: WindowEvidence) -> dict[Identity, Gap]:
    """The gap of every evaluated peer; 0 for a contribution that changes no loss."""
    found = {}
    for seen in evidence.peers:
        if (losses := seen.losses) is None:
            continue
        assigned = [b - a for b, a in zip(losses.assigned_before, losses.assigned_after, strict=True)]
        others = [b - a for b, a in zip(evidence.unassigned_before, losses.unassigned_after, strict=True)]
        (mean, variance), (other_mean, other_variance) = mean_and_variance(assigned), mean_and_variance(others)
        spread = math.sqrt(variance + other_variance)  # SD * sqrt 2
        n = 2.0 / (1.0 / len(assigned) + 1.0 / len(others))
        found[seen.peer] = Gap((mean - other_mean) / spread if spread > 0.0 else 0.0, n)
    return found


def honest_gap(found: Mapping[Identity, Gap], standing: Mapping[Identity, float]) -> float:
    """m_w: the median gap, weighted by standing; never negative."""
    return max(0.0, weighted_quantile(((gap.d, standing[peer]) for peer, gap in found.items()), 0.5)) if found else 0.0


def add(config: IncentiveConfig, effort: Effort, gap: Gap, honest: float) -> Effort:
    """Remembers one more window.

    `against` is a CUSUM of log likelihood ratios, "no effort" against "at least finding_share of the honest gap", with
    the honest gap known: an e-detector, so that an honest peer waits exp(finding_log) windows on average for a
    false finding, whenever one looks.
    """
    bound = config.finding_share * honest
    ratio = gap.n * bound * (0.5 * bound - gap.d)
    return Effort(
        config.memory * effort.dot + gap.n * honest * gap.d,
        config.memory * effort.square + gap.n * honest * honest,
        min(2.0 * config.finding_log, max(0.0, effort.against + ratio)),
    )


def share(config: IncentiveConfig, effort: Effort) -> float:
    """The peer's effort, 1 for an honest one, within [effort_floor, effort_cap]."""
    weight = config.effort_prior_weight
    value = (weight * config.effort_prior + effort.dot) / (weight + effort.square)
    return max(config.effort_floor, min(config.effort_cap, value))


def finding(config: IncentiveConfig, effort: Effort) -> bool:
    """Whether the evidence says, beyond any doubt that time could bring, that this peer does not do its work."""
    return effort.against > config.finding_log
