"""From shares of pay to what a chain stores."""

import math
from collections.abc import Mapping

from templar_jax.incentive.evidence import Identity

U16 = 65535


def normalised(pay: Mapping[Identity, float]) -> dict[Identity, float]:
    """Positive pays as shares of their sum, ascending by identity."""
    paid = {peer: pay[peer] for peer in sorted(pay) if pay[peer] > 0.0}
    total = math.fsum(paid.values())
    return {peer: value / total for peer, value in paid.items()}


def for_chain(
    weights: Mapping[Identity, float], uids: Mapping[Identity, int], burn_uid: int | None = None
) -> dict[int, int]:
    """u16 per uid, ascending, the largest at 65535 (a chain divides by the sum); those that round to 0 are left out.

    Args:
      weights: shares, sum at most 1.
      uids: who holds which uid now; identities without one (re-registered, replaced) get nothing.
      burn_uid: takes what is missing to a sum of 1; None: everybody's share grows.
    """
    shares = {uids[peer]: share for peer, share in weights.items() if peer in uids}
    if burn_uid is not None:
        rest = 1.0 - math.fsum(shares.values())
        shares[burn_uid] = shares.get(burn_uid, 0.0) + max(0.0, rest)
    largest = max(shares.values(), default=0.0)
    if largest <= 0.0:
        return {}
    scaled = {uid: math.floor(shares[uid] / largest * U16 + 0.5) for uid in sorted(shares)}
    return {uid: value for uid, value in scaled.items() if value}
