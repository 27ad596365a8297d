"""Order statistics and means that do not depend on the order of their input, in IEEE operations only.

No exp, log or pow: those differ between C libraries, and replay must not.
"""

import math
from collections.abc import Iterable, Sequence


def mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased variance of at least two values, exactly rounded sums."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) * (value - mean) for value in values) / (len(values) - 1)


def weighted_quantile(pairs: Iterable[tuple[float, float]], share: float) -> float:
    """The smallest value at or below which `share` of the weight lies.

    Args:
      pairs: (value, weight >= 0), at least one; all weights 0 count as equal.
      share: in [0, 1]; 0.5 is the lower median.
    """
    ranked = sorted(pairs)
    if not any(weight for _, weight in ranked):
        ranked = [(value, 1.0) for value, _ in ranked]
    target = share * math.fsum(weight for _, weight in ranked)
    below = 0.0
    for value, weight in ranked:
        below += weight  # in ascending order: the same rounding whatever the order of the input
        if below >= target:
            return value
    return ranked[-1][0]


def quantile(values: Iterable[float], share: float) -> float:
    """`weighted_quantile` of equal weights."""
    return weighted_quantile(((value, 1.0) for value in values), share)


def half_power(base: float, power: float) -> float:
    """base ** power for base >= 0 and power 1, 1.5 or 2, by multiplication and square root only."""
    match power:
        case 1.0:
            return base
        case 1.5:
            return base * math.sqrt(base)
        case 2.0:
            return base * base
    raise ValueError(f"power {power}: choose 1, 1.5 or 2")
