"""Receipts: what a miner says of its work, checked against what the same work gives here.

A wrong loss of inner step 0 is near proof that no forward pass was run at theta_w on the assigned batch. Near only:
the number depends a little on hardware. So it scales pay, at once and down to a floor, and recovers as penalties do.
"""

from templar_jax.incentive import penalty
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import PeerEvidence


def findings(config: IncentiveConfig, seen: PeerEvidence | None) -> tuple[str, ...]:
    """Which of the window's checks the peer failed."""
    failed = seen is not None and seen.step0 is not None and abs(seen.step0) > config.step0_tolerance
    return ("step0",) if failed else ()


def after(config: IncentiveConfig, factor: float, seen: PeerEvidence) -> float:
    """The factor on pay after a window in which the peer contributed; unchanged where nothing was checked."""
    if seen.step0 is None:
        return factor
    if findings(config, seen):
        return max(config.receipt_floor, factor * config.step0_factor)
    return penalty.recover(config, factor)
