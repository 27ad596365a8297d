"""Gain: how much a contribution lowered the loss on sequences nobody was assigned, relative to honest peers'."""

from collections.abc import Mapping

from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Identity, WindowEvidence
from templar_jax.incentive.statistics import mean_and_variance, weighted_quantile


def improvements(evidence: WindowEvidence) -> dict[Identity, float]:
    """Mean fall of the unassigned loss, nats a sequence, of every evaluated peer."""
    return {
        seen.peer: mean_and_variance(
            [
                before - after
                for before, after in zip(evidence.unassigned_before, seen.losses.unassigned_after, strict=True)
            ]
        )[0]
        for seen in evidence.peers
        if seen.losses
    }


def gains(
    config: IncentiveConfig, improvement: Mapping[Identity, float], standing: Mapping[Identity, float]
) -> dict[Identity, float]:
    """Improvements over the window's honest scale, within +-gain_cap.

    The scale is the lower median weighted by what each peer has stood for so far: planted losers have no
    standing, so they cannot lower it. Bad windows count below zero, so that noise averages out instead of paying.
    No gains at all in a window whose scale is not positive: it tells nothing.

    Args:
      improvement: as from `improvements`.
      standing: weight >= 0 of each of these peers, from before this window.
    """
    if not improvement:
        return {}
    scale = weighted_quantile(((improvement[peer], standing[peer]) for peer in improvement), 0.5)
    if scale <= 0.0:
        return {}
    return {peer: max(-config.gain_cap, min(config.gain_cap, value / scale)) for peer, value in improvement.items()}
