"""Receipts: what a miner says of its work, checked against what the same work gives here.

A wrong loss of inner step 0 is near proof that no forward pass was run at theta_w on the assigned batch. Near only:
the number depends a little on hardware. So it scales pay, at once and down to a floor, and recovers as penalties do.

A failed audit weighs more and lasts longer: one uid a window is picked, so what one failure costs has to outweigh many
windows that were not looked at. Silence costs the same as failing, else silence would be chosen. It proves nothing to a
third party (who serves which bytes is not signed), so it scales pay too, and never to zero.
"""

from templar_jax.incentive import penalty
from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Audit, PeerEvidence


def findings(config: IncentiveConfig, seen: PeerEvidence | None) -> tuple[str, ...]:
    """Which of the window's checks the peer failed: "step0", "audit"."""
    if seen is None:
        return ()
    wrong = seen.step0 is not None and abs(seen.step0) > config.step0_tolerance
    return ("step0",) * wrong + ("audit",) * (seen.audit is not None and not _passed(config, seen.audit))


def _passed(config: IncentiveConfig, audit: Audit) -> bool:
    alike = min(audit.sent, audit.state) >= config.audit_likeness and audit.overlap >= config.audit_overlap
    return audit.outcome == "done" and alike and audit.continuous is not False


def after(config: IncentiveConfig, factor: float, seen: PeerEvidence) -> float:
    """The factor on pay after a window in which the peer contributed; unchanged where nothing was checked."""
    if seen.step0 is None:
        return factor
    if abs(seen.step0) > config.step0_tolerance:
        return max(config.receipt_floor, factor * config.step0_factor)
    return penalty.recover(config, factor)


def audited(config: IncentiveConfig, factor: float, seen: PeerEvidence) -> float:
    """The factor on pay of full audits after a window in which the peer contributed."""
    if seen.audit is not None:
        return 1.0 if _passed(config, seen.audit) else config.audit_factor
    return 1.0 - config.audit_memory * (1.0 - factor)
