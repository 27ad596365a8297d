"""Penalties: what a broken rule costs. Rules are checked, not estimated, so they cost at once and by a fixed factor."""

from collections.abc import Iterable

from templar_jax.incentive.config import IncentiveConfig


def add(config: IncentiveConfig, factor: float, violations: Iterable[str]) -> float:
    """The factor on pay after a window with these violations (each kind counts once)."""
    costs = dict(config.violations)
    for reason in sorted(set(violations)):
        factor *= costs.get(reason, config.violation)
    return factor


def recover(config: IncentiveConfig, factor: float) -> float:
    """The factor after a window in which the peer contributed by the rules."""
    return 1.0 - config.penalty_memory * (1.0 - factor)
