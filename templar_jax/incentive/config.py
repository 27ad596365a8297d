"""Parameters of the default rules, in one place.

They stand outside of RunConfig, whose hash names the run: pay must be retunable when a new attack is found, without
ending a run and its model. Every record of a validator names the parameters that it used (replay.Outcome), so that
anybody sees who pays by which. Their values were fitted to simulations with adversaries: docs/attacks.md.
"""

from dataclasses import dataclass, field


def _factors() -> tuple[tuple[str, float], ...]:
    return (("late", 0.75), ("equivocation", 0.0))


@dataclass(frozen=True)
class IncentiveConfig:
    """Defaults and what they trade. A "window" of evidence is one in which a peer was evaluated."""

    memory: float = 0.95  # weight of a window's evidence relative to the next one's: the last 20 windows count
    # gain
    gain_cap: float = 1.25  # times the window's honest scale; losses count down to the same bound
    # effort
    effort_prior: float = 0.1  # of a peer with no evidence, in honest efforts: low, so that a new name gains nothing
    effort_prior_weight: float = 8.0  # 1 / variance of that prior
    effort_floor: float = 0.05  # a statistical finding never zeroes anybody
    effort_cap: float = 1.25
    finding_share: float = 0.5  # tested: the standardised gap is at least this share of the honest one
    finding_log: float = 13.815510557964274  # ln 10**6: an honest peer is found once in a million windows or less
    finding_scale: float = 0.5  # of pay while the finding stands
    # rating
    newcomer_quantile: float = 0.1  # of the ratings of those who stand; a newcomer starts there or at:
    newcomer_most: float = 0.25  # of an honest gain
    rating_prior_weight: float = 4.0  # windows of evidence that the start is worth
    rating_prior_sd: float = 0.5
    confidence: float = 1.0  # standard errors below the mean, for selection only
    power: float = 2.0  # pay = merit ** power; one of 1, 1.5, 2
    # similarity
    similarity_least_peers: int = 8
    similarity_spread: float = 8.0  # cut = median + this times (median - lower quartile) of the window's own values
    similarity_margin: float = 0.15  # and at least this above the median
    similarity_most: float = 0.9  # cut at most here; likeness of this or more scales to the floor
    similarity_floor: float = 0.05
    # norm
    norm_least_peers: int = 3  # of fewer no median is robust
    norm_most: float = 4.0  # times the usual norm; beyond, a value shrinks as the norm grows
    norm_floor: float = 0.05
    # rule violations: pay is multiplied at once; what is left of a penalty shrinks by `penalty_memory` a clean window
    violation: float = 0.5
    violations: tuple[tuple[str, float], ...] = field(default_factory=_factors)
    penalty_memory: float = 0.75
    # receipt: what a miner says of its work, checked: see receipt.py
    step0_tolerance: float = 0.004  # relative; bf16 against f32 came to 0.0011 at most (docs/decisions.md)
    step0_factor: float = 0.5  # on pay, for each window with another loss than that
    receipt_floor: float = 0.05
    audit_likeness: float = 0.97  # least, of contribution and state: docs/decisions.md
    audit_overlap: float = 0.8  # least
    audit_factor: float = 0.1  # on pay after a failed audit; passing the next one lifts it, and else:
    audit_memory: float = 0.97  # what is left of the reduction a window later
    # selection
    explore_share: float = 0.2  # of the places go to those least recently taken
