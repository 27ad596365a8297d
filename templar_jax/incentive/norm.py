"""Norm: how much larger a contribution is than the window's usual one.

The outer step clips every contribution to the lower median of norms, so a large one wins nothing by itself; but if many
send large ones the median rises with them. So what is far beyond the others' is worth less, in proportion.
Honest norms of a window lay within 0.95 to 1.06 of their median (docs/decisions.md).
"""

from collections.abc import Mapping

from templar_jax.incentive.config import IncentiveConfig
from templar_jax.incentive.evidence import Identity, WindowEvidence
from templar_jax.incentive.statistics import weighted_quantile


def factors(
    config: IncentiveConfig, evidence: WindowEvidence, standing: Mapping[Identity, float]
) -> dict[Identity, float]:
    """Factor on the window's value of every accepted peer; 1 up to `norm_most` times the usual norm.

    The usual norm is the lower median weighted by what each peer has stood for so far, as the scale of gains is.

    Args:
      standing: weight >= 0 of each of these peers, from before this window.
    """
    norms = {seen.peer: seen.norm for seen in evidence.peers if seen.accepted and seen.norm > 0.0}
    if len(norms) < config.norm_least_peers:
        return dict.fromkeys(norms, 1.0)
    most = config.norm_most * weighted_quantile(((norm, standing[peer]) for peer, norm in norms.items()), 0.5)
    return {peer: max(config.norm_floor, min(1.0, most / norm)) for peer, norm in norms.items()}
